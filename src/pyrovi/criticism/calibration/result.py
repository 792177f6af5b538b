"""What a check of calibration found: values that should be uniform, and whether they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi.errors import ModelError
from pyrovi.posterior.ecdf import uniformity

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ALL = "all"
"""Name of the stratum that holds every value."""

SMALLEST_SAMPLE = 20
"""Fewer values are not judged: the bands hold nearly anything. With 20, posteriors of half the
right standard deviation are rejected in three of four cases, with 10 in one of four."""


SMALLEST_P = 1e-12
"""Smaller p-values are rounding: they are one minus a probability."""


_VERDICTS = {
    True: "passes",
    False: "FAILS",
    None: f"too few to judge, expected at least {SMALLEST_SAMPLE}",
}


@dataclass(frozen=True, repr=False)
class Calibration:
    """Ranks or probability integral transforms, which are uniform if what made them is right.

    Attributes
    ----------
    what
        What was checked.
    values
        One row for each simulation (or observation), one column for each quantity: ranks
        ``0, ..., num_draws`` of the truth among the draws, or transforms in [0, 1].
    num_draws
        Number of draws ``L`` that the truth was ranked among; ``None`` for transforms.
    strata
        Group of each row, tested on its own too; ``None`` for no groups.
    probability
        Probability that all quantities of a calibrated model pass together.

    Notes
    -----
    Each quantity is tested by the simultaneous band of its distribution function (Säilynoja et al.
    2022). The p-values are adjusted for their number by Holm's method, so that a calibrated model
    passes with the probability asked for, however many quantities there are.
    """

    what: str
    values: pd.DataFrame
    num_draws: int | None
    strata: pd.Series | None = None
    probability: float = 0.95

    def __post_init__(self) -> None:
        if self.values.empty:
            raise ModelError(
                f"{self.what}: there is nothing to judge ({len(self.values)} rows, "
                f"{self.values.shape[1]} quantities)."
            )

    @property
    def pit(self) -> NDArray[np.float64]:
        """Values on the scale from 0 to 1, shape ``(rows, quantities)``; ranks at mid-step."""
        values = self.values.to_numpy(dtype=np.float64)
        return values if self.num_draws is None else (values + 0.5) / (self.num_draws + 1)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row for each quantity (and stratum), the worst first.

        ``p_value`` of the test of uniformity; ``adjusted`` for their number; ``bias``, the mean of
        the values minus 1/2: positive where the truth lies above the draws; ``spread``, their
        standard deviation relative to a uniform one: above 1 where the draws lie too close
        together; ``verdict`` (``"passes"``, ``"fails"``, or ``"too few"`` below 20 values), and in
        ``reading`` what a failure means.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        pit = self.pit
        for column, name in enumerate(self.values.columns):
            for stratum, kept in self._strata():
                tested = uniformity(
                    self.values[name].to_numpy()[kept],
                    num_ranks=None if self.num_draws is None else self.num_draws + 1,
                )
                rows.append(
                    {
                        "quantity": name,
                        "stratum": stratum,
                        "n": int(kept.sum()),
                        "p_value": max(tested.p_value, SMALLEST_P),
                        **self._moments(pit[kept, column]),
                    }
                )
        table = pd.DataFrame(rows)
        table.insert(4, "adjusted", holm(table["p_value"].to_numpy()))
        failed = table["adjusted"] < 1 - self.probability
        unrejected = np.where(table["n"] < SMALLEST_SAMPLE, "too few", "passes")
        table["verdict"] = np.where(failed, "fails", unrejected)
        columns = (table[name].to_numpy() for name in ("bias", "spread", "n"))
        table["reading"] = [
            self._reading(float(bias), float(spread), int(n)) if fails else ""
            for bias, spread, n, fails in zip(*columns, failed, strict=True)
        ]
        table = table.sort_values("p_value", kind="stable").set_index("quantity")
        return table if self.strata is not None else table.drop(columns="stratum")

    @property
    def passed(self) -> bool | None:
        """Whether every quantity passes; ``None`` if none fails and there are too few values."""
        if (self.table["verdict"] == "fails").any():
            return False
        return None if len(self.values) < SMALLEST_SAMPLE else True

    def summary(self) -> str:
        """The verdict in a few lines."""
        failed = self.table[self.table["verdict"] == "fails"]
        kind = "ranks" if self.num_draws is not None else "values"
        lines = [
            f"{self.what}: {_VERDICTS[self.passed]} "
            f"({len(self.values)} {kind} of {self.values.shape[1]} quantities, "
            f"{self.probability:.0%} band over all)"
        ]
        for name, row in list(failed.iterrows())[:8]:
            group = f" in {row['stratum']}" if row.get("stratum", ALL) != ALL else ""
            lines.append(f"  {name}{group}: {row['reading']} (adjusted p = {row['adjusted']:.2g})")
        if len(failed) > 8:
            lines.append(f"  and {len(failed) - 8} more; see .table")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        shown = self.table.head(8).to_html(float_format="{:.3g}".format)
        return f"<pre>{escape(self.summary())}</pre>{shown}"

    def plot(self, quantities: Sequence[str] | None = None, *, max_quantities: int = 6) -> Figure:
        """Difference of each distribution function from the uniform one, and histograms.

        Parameters
        ----------
        quantities
            Columns of ``values``; ``None`` for those with the smallest p-values.
        max_quantities
            How many to show if none are named.
        """
        from pyrovi.criticism.calibration.plots import plot_calibration

        return plot_calibration(self, quantities, max_quantities=max_quantities)

    def _strata(self) -> list[tuple[str, NDArray[np.bool_]]]:
        found = [(ALL, np.ones(len(self.values), dtype=bool))]
        if self.strata is not None:
            labels = self.strata.astype(str).to_numpy()
            for label in sorted(set(labels)):
                kept = labels == label
                if kept.sum() >= SMALLEST_SAMPLE:
                    found.append((label, kept))
        return found

    def _moments(self, pit: NDArray[np.float64]) -> dict[str, float]:
        variance = 1 / 12
        if self.num_draws is not None:
            variance *= 1 - 1 / (self.num_draws + 1) ** 2
        spread = float(np.sqrt(np.mean((pit - 0.5) ** 2) / variance))
        return {"bias": float(pit.mean() - 0.5), "spread": spread}

    def _reading(self, bias: float, spread: float, n: int) -> str:
        """The plainer of two deviations: of the mean, or of the width."""
        subject = "draws" if self.num_draws is not None else "predictions"
        of_mean = bias * np.sqrt(12 * n)
        of_width = (spread**2 - 1) / 12 * np.sqrt(180 * n)
        if max(abs(of_mean), abs(of_width)) < 2:
            return f"{subject} of another shape"
        # values at one end are far from 1/2 too, but not spread about their own mean
        one_sided = spread**2 - 12 * bias**2 <= 1 < spread**2
        if abs(of_mean) >= abs(of_width) or one_sided:
            return f"{subject} too {'low' if bias > 0 else 'high'}"
        return f"{subject} too {'narrow' if spread > 1 else 'wide'}"


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust p-values for their number.

    Parameters
    ----------
    p_values
        Shape ``(K,)``; they may depend on one another.

    Returns
    -------
    numpy.ndarray
        Adjusted ones: rejecting those below a level errs at all with at most that probability.

    References
    ----------
    Holm: A simple sequentially rejective multiple test procedure. Scandinavian Journal of
    Statistics 6, 65-70 (1979).
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    result = np.empty(len(p_values))
    result[order] = adjusted
    return result
