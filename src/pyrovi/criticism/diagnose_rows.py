"""Rows of a diagnosis: a value, its threshold, the verdict and what to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["pass", "warn", "fail", "not available"]


@dataclass(frozen=True)
class Check:
    """One check."""

    what: str
    """What was checked."""
    value: float | None
    """What was found; ``None`` if it could not be."""
    threshold: float | None
    """The value at which the verdict is no longer ``pass``; ``None`` if there is none."""
    verdict: Verdict
    """``pass``, ``warn``, ``fail`` or ``not available``."""
    advice: str = ""
    """What it means and what to do about it, or why it is not available."""
    detail: str = ""
    """Where: the quantity, the number of observations."""

    @property
    def text(self) -> str:
        """What was found, in words."""
        if self.value is None:
            return self.detail
        limit = "" if self.threshold is None else f" (limit {self.threshold:.4g})"
        return f"{self.value:.4g}{limit}" + (f", {self.detail}" if self.detail else "")


def graded(
    what: str,
    value: float,
    limits: tuple[float, float],
    advice: str,
    *,
    detail: str = "",
    high_is_good: bool = False,
) -> Check:
    """Judge a value by two limits: beyond the first it is a warning, beyond the second a failure.

    Parameters
    ----------
    what, value, detail
        As in :class:`Check`. NaN fails: it has no business there.
    limits
        Limits of ``pass`` and of ``warn``.
    advice
        What to do if it does not pass.
    high_is_good
        Whether values below the limits are the bad ones.
    """
    sign = -1 if high_is_good else 1
    verdict: Verdict = "fail"
    if sign * value <= sign * limits[0]:
        verdict = "pass"
    elif sign * value <= sign * limits[1]:
        verdict = "warn"
    advice = "" if verdict == "pass" else advice
    if math.isnan(value):
        advice = f"It is not a number. {advice}"
    return Check(what, value, limits[0], verdict, advice, detail)


def unavailable(what: str, reason: str) -> Check:
    """A check that could not be made."""
    return Check(what, None, None, "not available", reason)
