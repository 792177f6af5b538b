"""What a report is about: the model, the options, and what several sections look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyrovi._rng import generator
from pyrovi.criticism.calibration import LooPit, loo_pit
from pyrovi.criticism.diagnose_rows import Check, unavailable
from pyrovi.criticism.diagnose_svi import LOCAL_DRAWS, LOCAL_KHAT, judged_observations
from pyrovi.criticism.diagnosis import Diagnosis, diagnose
from pyrovi.criticism.elpd import observed_sites, predicted_sites
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import PyroviError
from pyrovi.model.draws import resolve_num_samples
from pyrovi.module.ledger import Role
from pyrovi.posterior.alignment import Symmetry

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from pyrovi.criticism.calibration.refits import SBC
    from pyrovi.criticism.predictive import PredictiveChecks
    from pyrovi.model.base import BaseModelClass

BUDGET = 2e8
"""Values whose density one section may evaluate: some ten seconds on one core."""

_DIAGNOSED = 200
"""Most observations that a diagnosis looks at."""

_DIAGNOSIS = 1_500
"""Evaluations of the density of each of them that it takes, about."""

_LOO_DRAWS = 500

_PRIOR_VALUES = 2_000_000
"""Values that the quantiles of the priors are found from."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Refusal:
    """Why something could not be made."""

    reason: str

    def check(self, what: str) -> Check:
        """The check that could not be made."""
        return unavailable(what, self.reason)

    @property
    def text(self) -> str:
        """The reason as a line of the report."""
        return f"Not available: {self.reason}"


def attempt(make: Callable[[], _T]) -> _T | Refusal:
    """Make something that a model may have good reason to refuse.

    Parameters
    ----------
    make
        What to do. Only :class:`~pyrovi.errors.PyroviError` is a refusal; all else is an error.
    """
    try:
        return make()
    except PyroviError as error:
        return Refusal(str(error))


@dataclass(frozen=True)
class Subject:
    """A trained model and how much of it to look at.

    Attributes
    ----------
    model
        The model.
    num_samples
        Replicated data sets of the predictive checks.
    indices
        Observations to look at, or ``None``.
    max_observations
        Most observations that predictive checks, calibration and comparison look at.
    max_rows
        Most rows of the table of the posterior.
    align
        Symmetries of factors.
    seed
        Root seed.
    bounds, checks, sbc
        What has been made already.
    sections
        Names of the sections that are made.
    """

    model: BaseModelClass
    num_samples: int
    indices: Any
    max_observations: int
    max_rows: int
    align: Mapping[str, Symmetry] | None
    seed: int | None
    bounds: pd.DataFrame | None
    checks: PredictiveChecks | None
    sbc: SBC | None
    sections: Collection[str] = ()

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """All observations that may be looked at."""
        return resolve_indices(self.indices, self.model.adata_manager.n_obs)

    def sample(self, what: str, most: int, among: Any = None) -> NDArray[np.int64]:
        """A seeded sample, in order, of the observations that may be looked at.

        Parameters
        ----------
        what
            What it is for: other purposes have other samples.
        most
            Largest size.
        among
            Positions to choose from; ``None`` for all.
        """
        pool = self.positions if among is None else np.intersect1d(self.positions, among)
        if len(pool) <= most:
            return np.asarray(pool)
        chosen = generator("report", what, seed=self.seed).choice(pool, most, replace=False)
        return np.sort(chosen)

    @cached_property
    def observed(self) -> list[str]:
        """Observed sites with a value, or a row of values, per observation."""
        sites = self.model.sites
        return [n for n in observed_sites(self.model) if len(sites[n].dims) <= 2]

    @cached_property
    def unobserved(self) -> str:
        """Why there is nothing to predict, if no site is checked."""
        if factors := self.model.sites.names(Role.FACTOR):
            return (
                f"the data enter by pyro.factor ({', '.join(factors)}), which has no predictive "
                "distribution."
            )
        return "no observed site has one value, or one row of values, per observation."

    @cached_property
    def improper(self) -> list[str]:
        """Names of latent sites with a flat prior, from which nothing can be drawn."""
        return self.model.sites.improper

    @cached_property
    def has_globals(self) -> bool:
        """Whether there are global latent sites."""
        return bool(self.model.sites.names(Role.GLOBAL))

    @cached_property
    def global_sizes(self) -> dict[str, int]:
        """Number of values of each global site."""
        sites = self.model.sites
        return {
            name: math.prod(size for size in sites[name].shape if isinstance(size, int))
            for name in sites.names(Role.GLOBAL)
        }

    @cached_property
    def prior(self) -> xr.Dataset | Refusal:
        """Draws of the global sites from the prior, if it can be drawn from."""
        names, sizes = list(self.global_sizes), self.global_sizes.values()
        draws = int(np.clip(_PRIOR_VALUES // sum(sizes), 50, 4_000))
        return attempt(lambda: self.model.sample_prior(names, num_samples=draws, seed=self.seed))

    @cached_property
    def has_locals(self) -> bool:
        """Whether there are continuous local latent sites."""
        return bool(self.model.sites.names(Role.LOCAL))

    def affordable(self, evaluations: int, most: int) -> int:
        """Number of observations whose density can be evaluated so many times, at least 20.

        Parameters
        ----------
        evaluations
            Evaluations of the density of one observation.
        most
            Largest number.
        """
        sizes = [math.prod(shape) for shape in predicted_sites(self.model).values()]
        per_observation = max(1, sum(sizes)) * evaluations
        return min(most, max(20, int(BUDGET // per_observation)))

    def draws(self, most: int) -> tuple[int, int]:
        """Draws of the globals and, for each, of the locals, where these are integrated out."""
        if not self.has_locals:
            return self.at_most(most), 1
        return (self.at_most(min(most, 200)), 50) if self.has_globals else (1, 1000)

    def at_most(self, draws: int) -> int:
        """A number of draws, or that of the stored ones if they are fewer."""
        return resolve_num_samples(self.model, None, draws)

    @cached_property
    def num_diagnosed(self) -> int:
        """Most observations that the diagnosis looks at."""
        return self.affordable(_DIAGNOSIS, min(_DIAGNOSED, self.max_observations))

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """The diagnosis of the fit."""
        most = self.num_diagnosed
        return diagnose(self.model, align=self.align, max_observations=most, seed=self.seed)

    @cached_property
    def local_fit(self) -> pd.DataFrame | None:
        """What the diagnosis knows of each observation; ``None`` if it did not judge them."""
        if not any(c.what == LOCAL_KHAT and c.value is not None for c in self.diagnosis.checks):
            return None
        rows = judged_observations(self.model, self.num_diagnosed, self.seed)
        return self.model.local_fit(indices=rows, num_inner=LOCAL_DRAWS, seed=self.seed)

    @cached_property
    def loo_pit(self) -> LooPit | Refusal:
        """Leave-one-out transforms of the first observed site."""
        if not self.observed:
            return Refusal(self.unobserved)
        draws, inner = self.draws(_LOO_DRAWS)
        most = self.affordable(draws * inner, self.max_observations)
        rows = self.sample("leave one out", most, self.model.train_indices)
        small = self.affordable(draws * 5, 128)  # replicated values fit into some hundred MiB
        return attempt(
            lambda: loo_pit(
                self.model,
                self.observed[0],
                num_samples=draws,
                num_inner=inner,
                indices=rows,
                batch_size=None if small >= 128 else small,
                seed=self.seed,
            )
        )

    @cached_property
    def global_summary(self) -> pd.DataFrame:
        """Posterior of the global sites, one row for each number; categories are none."""
        sites = self.model.sites
        names = [name for name in sites.names(Role.GLOBAL) if not sites[name].is_categorical]
        return self.model.summary(names, align=self.align, seed=self.seed)
