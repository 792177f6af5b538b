"""``diagnose``: one table of everything that tells whether a fit can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyrovi.criticism.diagnose_mcmc import approximation_checks, mcmc_checks
from pyrovi.criticism.diagnose_rows import Check, Verdict
from pyrovi.criticism.diagnose_svi import svi_checks
from pyrovi.errors import ModelError
from pyrovi.posterior.alignment import Symmetry

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass

_MARKS = {"pass": "#2e7d32", "warn": "#b26a00", "fail": "#b3261e", "not available": "#6b6b6b"}


@dataclass(frozen=True)
class Diagnosis:
    """What was found."""

    method: str
    """``"svi"``, ``"nuts"`` or ``"approximation"``."""
    checks: tuple[Check, ...]
    """The single checks."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per check: ``value``, ``threshold``, ``verdict``, ``advice``."""
        import pandas as pd

        rows = [
            {
                "value": check.value,
                "threshold": check.threshold,
                "verdict": check.verdict,
                "advice": check.advice,
            }
            for check in self.checks
        ]
        index = pd.Index([check.what for check in self.checks], name="check")
        return pd.DataFrame(rows, index=index, columns=["value", "threshold", "verdict", "advice"])

    @property
    def passed(self) -> bool:
        """Whether something was checked and no check failed; warnings do not count."""
        return self._count("pass", "warn") > 0 and not self.failed

    @property
    def verdict(self) -> str:
        """The verdict in words: what failed, or how many checks passed, and how many warn."""
        if self.failed:
            return f"failed: {', '.join(self.failed)}"
        if not self._count("pass", "warn"):
            return "nothing could be checked"
        warnings = self._count("warn")
        return "passed" + (f", with {warnings} warning{'s' * (warnings > 1)}" if warnings else "")

    def _count(self, *verdicts: str) -> int:
        return sum(check.verdict in verdicts for check in self.checks)

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [check.what for check in self.checks if check.verdict == "fail"]

    def __repr__(self) -> str:
        width = max(len(check.what) for check in self.checks)
        lines = [
            f"{check.verdict:>13}  {check.what:<{width}}  {check.text}"
            + (f"\n{'':>15}-> {check.advice}" if check.advice else "")
            for check in self.checks
        ]
        return f"Diagnosis ({self.method}): {self.verdict}\n" + "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(check.what)}</td><td>{escape(check.text)}</td>"
            f'<td style="color:{_MARKS[check.verdict]};font-weight:600">{check.verdict}</td>'
            f'<td style="text-align:left">{escape(check.advice)}</td></tr>'
            for check in self.checks
        )
        head = "".join(f"<th>{name}</th>" for name in ("check", "found", "verdict", "advice"))
        title = f"<caption>Diagnosis ({self.method}): {escape(self.verdict)}</caption>"
        return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def diagnose(
    model: BaseModelClass,
    *,
    align: Mapping[str, Symmetry] | None = None,
    max_observations: int = 200,
    amortization: bool = True,
    seed: int | None = None,
) -> Diagnosis:
    """Judge a fit: whether it has converged, fits agree, and the guide fits the posterior.

    Parameters
    ----------
    model
        A trained model with its data.
    align
        Dimension -> ``"rotation"``, ``"permutation"`` or ``"sign"``: what the model cannot tell of
        its factors; the fits are turned to match before they are compared.
    max_observations
        Most observations that the local posterior is judged on, a seeded sample of the training
        observations. The rows say how many it was.
    amortization
        Estimate the amortisation gap, for which single observations are optimised: the slowest of
        the checks.
    seed
        Root seed.

    Returns
    -------
    Diagnosis
        ``table``, ``passed``, ``failed``.

    Raises
    ------
    ModelError
        If the model has not been trained.
    """
    if not model.is_trained:
        raise ModelError("The model has not been trained; call model.train() first.")
    if max_observations < 2:
        raise ModelError(f"max_observations must be at least 2, got {max_observations}.")
    posterior: Any = model.module.posterior
    if posterior is None:
        found = svi_checks(model, align, max_observations, amortization, seed)
        return Diagnosis("svi", tuple(found))
    statistics = getattr(posterior, "statistics", {})
    if "energy" in statistics or "diverging" in statistics:
        return Diagnosis("nuts", tuple(mcmc_checks(model, align)))
    return Diagnosis("approximation", tuple(approximation_checks(model)))


__all__ = ["Check", "Diagnosis", "Verdict", "diagnose"]
