"""Probability integral transforms: where the data lie among what the model predicts for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovi._rng import generator
from pyrovi.criticism.replicated import observed_site, stream_replicated
from pyrovi.criticism.statistics import draw_chunks
from pyrovi.model.draws import resolve_num_samples
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.ecdf import EcdfBands, ecdf_bands

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from pyrovi.model.base import BaseModelClass

BINS = 100
"""Bins of the histograms of variables; their edges are the points of distribution functions."""

_BAND = 0.95

OBSERVATION_BINS = 10
"""Bins of the histograms of observations."""


@dataclass(frozen=True)
class PredictivePIT:
    """Randomised probability integral transforms of the data, counted in bins.

    Attributes
    ----------
    site
        The observed site.
    by_variable
        Dataset with, for each variable, the ``histogram`` over observations (dimension ``bin``, 100
        bins of equal width), and ``mean`` and ``variance`` of the transforms (1/2 and 1/12 if they
        are uniform).
    by_observation
        Dataset with the ``histogram`` (10 bins) over the variables of each observation, and their
        ``mean``.
    num_observations, num_samples
        Number of observations and of draws.
    """

    site: str
    by_variable: xr.Dataset
    by_observation: xr.Dataset
    num_observations: int
    num_samples: int

    @property
    def ecdf(self) -> np.ndarray:
        """Empirical distribution function of each variable at the inner edges, ``(d, 99)``."""
        counts = self.by_variable["histogram"].to_numpy()
        return np.asarray(counts.cumsum(-1)[:, :-1] / self.num_observations)

    def bands(self, probability: float = 0.95) -> EcdfBands:
        """Simultaneous band of the distribution function of one variable."""
        return ecdf_bands(self.num_observations, probability, points=BINS)

    def table(self, probability: float = 0.95) -> pd.DataFrame:
        """How far each variable is from uniform, the farthest first.

        Parameters
        ----------
        probability
            Probability that a variable that is predicted well lies in the band.

        Returns
        -------
        pandas.DataFrame
            One row per variable: ``inside`` the band or not, the largest ``deviation`` of the
            distribution function, ``bias`` (mean minus 1/2: positive where the model predicts too
            low) and ``dispersion`` (variance over 1/12, minus 1: positive, a U-shape, where its
            predictions are too narrow; negative where they are too wide).
        """
        import pandas as pd

        bands, ecdf = self.bands(probability), self.ecdf
        dim = str(self.by_variable["mean"].dims[0])
        names = self.by_variable[dim].to_numpy() if dim in self.by_variable.coords else None
        frame = pd.DataFrame(
            {
                "inside": [bands.contains(row) for row in ecdf],
                "deviation": np.abs(ecdf - bands.points).max(-1),
                "bias": self.by_variable["mean"].to_numpy() - 0.5,
                "dispersion": 12 * self.by_variable["variance"].to_numpy() - 1,
            },
            index=pd.RangeIndex(len(ecdf)) if names is None else names,
        )
        return frame.rename_axis(dim).sort_values("deviation", ascending=False, kind="stable")

    @property
    def passed(self) -> bool:
        """Whether as many variables lie inside their 95 % band as by chance do.

        The same data served to fit the model, unless held-out ones were asked for: a pass says
        less than one of :func:`loo_pit`, and transforms that are too narrow are usual.
        """
        count = self.by_variable["mean"].size
        return bool(self.summary(_BAND)["inside"] >= expected_inside(_BAND, count))

    def summary(self, probability: float = 0.95) -> pd.Series:
        """Fraction of variables inside their band, and the averages of the table."""
        table = self.table(probability)
        return table.mean().rename(self.site)

    def plot(self) -> Figure:
        """Histogram and distribution functions; see :func:`plot_pit`."""
        from pyrovi.criticism.pit_plot import plot_pit

        return plot_pit(self)


def expected_inside(probability: float, count: int) -> float:
    """Smallest usual share of variables in bands of that probability: less two standard errors.

    Parameters
    ----------
    probability
        Content of the band of one variable.
    count
        Number of variables.
    """
    return float(probability - 2 * np.sqrt(probability * (1 - probability) / count))


def predictive_pit(
    model: BaseModelClass,
    site: str | None = None,
    *,
    num_samples: int | None = None,
    prior: bool = False,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> PredictivePIT:
    """Probability integral transforms of the data under the predictive distribution.

    The transform of an observed value is its rank among ``S`` replicated values: with ``a`` of them
    smaller and ``b`` equal, ``u = (a + v (b + 1)) / (S + 1)`` with ``v`` uniform on (0, 1). If data
    and replications come from the same distribution, ``u`` is exactly uniform for counts as for
    continuous values, and for any number of draws.

    Parameters
    ----------
    model, site, prior, adata, indices, batch_size, seed
        As in :func:`posterior_predictive_checks`.
    num_samples
        Number of draws ``S``; ``None`` for 200, or all stored draws if these are fewer. The
        resolution of a single transform is ``1 / (S + 1)``.

    Returns
    -------
    PredictivePIT

    Raises
    ------
    ModelError
        If the site is not observed, or is not a table with one row per observation.

    Notes
    -----
    Transforms of the data that the model was fitted to are less spread than uniform ones, most
    where an observation has latents of its own: look at held-out observations too
    (``indices=model.validation_indices``); but an amortised guide sees those as well.
    Observations are independent given the global sites; the variables of one observation share its
    latents, so the band is that of one variable, not of all values together.

    References
    ----------
    Czado, Gneiting, Held: Predictive model assessment for count data. Biometrics 65, 1254-1261
    (2009).
    """
    import xarray as xr

    checked = observed_site(model, site)
    if num_samples is None:
        num_samples = 200 if prior else resolve_num_samples(model, None, 200)
    manager, positions, batches = stream_replicated(
        model,
        checked,
        num_samples,
        prior=prior,
        adata=adata,
        indices=indices,
        batch_size=batch_size,
        seed=seed,
    )
    histogram = sums = squares = np.zeros(())
    rows: list[np.ndarray] = []
    means: list[np.ndarray] = []
    for position, (_, replicated, observed) in enumerate(batches):
        noise = generator("pit", position, seed=seed).random(tuple(observed.shape[1:]))
        transforms = randomised_ranks(replicated, observed[0], noise)
        histogram = histogram + _histograms(transforms.T, BINS)
        sums, squares = sums + transforms.sum(0), squares + np.square(transforms - 0.5).sum(0)
        rows.append(_histograms(transforms, OBSERVATION_BINS))
        means.append(transforms.mean(1))
    n = len(positions)
    mean = sums / n
    variance = (squares - n * np.square(mean - 0.5)) / max(1, n - 1)
    variable = (checked.dims[1] if len(checked.dims) > 1 else None) or checked.name
    coords = model.coords(manager, positions)

    def labelled(dim: str, values: dict[str, Any]) -> xr.Dataset:
        names = coords(dim)
        return xr.Dataset(
            values, coords={} if names is None else {dim: [str(name) for name in names]}
        )

    by_variable = {
        "histogram": ((variable, "bin"), histogram.astype(np.int64)),
        "mean": ((variable,), mean),
        "variance": ((variable,), variance),
    }
    by_observation = {
        "histogram": ((OBS_PLATE, "bin"), np.concatenate(rows).astype(np.int64)),
        "mean": ((OBS_PLATE,), np.concatenate(means)),
    }
    return PredictivePIT(
        checked.name,
        labelled(variable, by_variable),
        labelled(OBS_PLATE, by_observation),
        n,
        num_samples,
    )


def randomised_ranks(replicated: Tensor, observed: Tensor, noise: np.ndarray) -> np.ndarray:
    """Randomised probability integral transforms, shape ``(n, d)``.

    Parameters
    ----------
    replicated
        Draws, shape ``(S, n, d)``.
    observed
        Data, shape ``(n, d)``.
    noise
        Uniform values, shape ``(n, d)``.
    """
    below = torch.zeros(observed.shape, dtype=torch.int64, device=observed.device)
    equal = torch.zeros_like(below)
    for part in draw_chunks(replicated):
        below += (part < observed).sum(0)
        equal += (part == observed).sum(0)
    ranks = below.cpu().numpy() + noise * (equal.cpu().numpy() + 1.0)
    return np.asarray(ranks / (len(replicated) + 1))


def _histograms(values: np.ndarray, bins: int) -> np.ndarray:
    """Histogram of each row over [0, 1)."""
    cells = np.minimum((values * bins).astype(np.int64), bins - 1)
    cells = cells + bins * np.arange(len(values))[:, None]
    return np.bincount(cells.ravel(), minlength=bins * len(values)).reshape(-1, bins)
