"""Simulation-based calibration with refits: of any latent, under any method of inference."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._parallel import run_in_processes
from pyrovi._settings import settings
from pyrovi.criticism.calibration.one_refit import Refit, run_refit
from pyrovi.criticism.calibration.result import SMALLEST_SAMPLE, Calibration, holm
from pyrovi.criticism.calibration.store import SimulationStore, fingerprint
from pyrovi.criticism.calibration.symmetry import symmetry_test
from pyrovi.errors import ModelError, TrainingError
from pyrovi.model.draws import example_on_device, latent_sites
from pyrovi.model.refit import effective_method, inference_name, refit_options
from pyrovi.module.ledger import Role
from pyrovi.posterior.point_estimates import model_parameters

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass

MAX_FAILED = 0.05
"""Largest fraction of failed fits: what fails is not a random part of the simulations."""


@dataclass(frozen=True, repr=False)
class SBC(Calibration):
    """Result of :func:`sbc`.

    Attributes
    ----------
    failures
        Simulation and error of the fits that failed; they have no ranks.
    ess
        Smallest effective sample size of the judged scalars in each simulation; the number of
        draws for the independent draws of a guide.
    requested
        Number of simulations asked for.
    inference
        The inference that was judged: method and options of ``train``.
    """

    failures: pd.DataFrame | None = None
    ess: pd.Series | None = None
    requested: int = 0
    inference: str = ""

    @cached_property
    def symmetry(self) -> pd.DataFrame:
        """Whether the truth lies as often above as below the draws (VSBC), for each quantity.

        ``p_value`` and ``adjusted`` of the test of symmetry; ``bias`` of the mean position from
        1/2; ``direction``: ``"low"`` if the draws tend to lie below the truth, ``"high"`` if above,
        empty if there is no evidence. A variational fit that is too narrow but symmetric has
        useful means.
        """
        import pandas as pd

        pit = self.pit
        p_values = np.array([symmetry_test(pit[:, k], seed=0) for k in range(pit.shape[1])])
        table = pd.DataFrame(
            {"p_value": p_values, "adjusted": holm(p_values), "bias": pit.mean(0) - 0.5},
            index=pd.Index(self.values.columns, name="quantity"),
        )
        skewed = table["adjusted"] < 1 - self.probability
        side = np.where(table["bias"] > 0, "low", "high")
        table["direction"] = np.where(skewed, side, "")
        return table.sort_values("p_value", kind="stable")

    @property
    def passed(self) -> bool | None:
        """Whether every quantity passes, and no more than 5 % of the fits have failed.

        ``None``: nothing fails, and there are fewer than 20 simulations: too few to judge.
        """
        enough = len(self.values) >= SMALLEST_SAMPLE
        return False if enough and self._failed_share() > MAX_FAILED else super().passed

    def summary(self) -> str:
        """The verdict in a few lines."""
        lines = [super().summary(), f"  of train({self.inference})"]
        skewed = self.symmetry[self.symmetry["direction"] != ""]
        for name, row in list(skewed.iterrows())[:8]:
            lines.append(f"  {name}: biased {row['direction']} on average (VSBC)")
        if self.failures is not None and len(self.failures):
            lines.append(
                f"  {len(self.failures)} fits failed ({self._failed_share():.0%}), e.g. "
                f"{self.failures['error'].iloc[0]}"
            )
        assert self.ess is not None
        assert self.num_draws is not None
        if (few := int((self.ess < 0.8 * self.num_draws).sum())) > 0:
            lines.append(
                f"  {few} fits have fewer effective draws than the {self.num_draws} ranked among "
                f"(smallest: {self.ess.min():.0f}): run longer chains, or lower num_draws"
            )
        if len(self.values) < self.requested:
            lines.append(f"  {len(self.values)} of {self.requested} simulations are done")
        return "\n".join(lines)

    def _failed_share(self) -> float:
        failed = 0 if self.failures is None else len(self.failures)
        return failed / (failed + len(self.values))


def sbc(
    model: BaseModelClass,
    num_simulations: int = 100,
    *,
    train_kwargs: Mapping[str, Any] | None = None,
    sites: str | Sequence[str] | None = None,
    observations: Sequence[int] = (),
    num_draws: int = 99,
    path: str | Path | None = None,
    num_workers: int = 1,
    max_time: float | None = None,
    probability: float = 0.95,
    seed: int | None = None,
) -> SBC:
    """Simulation-based calibration by refits.

    Each simulation draws the latents from the prior and data given them, fits a fresh copy of the
    model to these data, and ranks the truth among posterior draws. The ranks are uniform if the
    inference is right, whatever the model. For variational fits, which rarely are in width, the
    result also tells whether they are biased, and to which side (VSBC, Yao et al. 2018).

    Parameters
    ----------
    model
        The model; it need not be trained, and is left as it is. Its data give the covariates, and
        its training the method of inference (``inference`` of the result).
    num_simulations
        Number of simulations. More can be added to a file later. Fewer than 20 cannot tell
        whether an inference is right (of 20, the band rejects one whose standard deviations are
        half of the right ones in three of four runs; of 30, in nine of ten): ``passed`` is
        ``None`` then, unless something fails.
    train_kwargs
        Arguments of :meth:`train` for every fit, e.g. ``{"method": "nuts", "num_samples": 500}``.
        They replace those that the model was trained with, which are repeated otherwise: what is
        judged is the inference that the model holds. An untrained model is trained as its guide
        asks for. SVI trains on all observations unless they divide them.
    sites
        Sites whose scalars are ranked; ``None`` for all global latent ones.
    observations
        Positions of observations whose local latents are ranked too.
    num_draws
        Number of draws that the truth is ranked among. The draws of MCMC are thinned to so many,
        evenly: they should be about independent then, so chains have to have a larger effective
        sample size (``ess`` of the result).
    path
        File that keeps every finished simulation (JSON lines). A run that was stopped goes on from
        there when called with the same arguments; fits that failed are tried again.
    num_workers
        Number of fits at a time, in processes of their own. The results do not depend on it.
    max_time
        Seconds after which no further simulation is begun.
    probability
        Probability that a calibrated inference passes.
    seed
        Root seed; every simulation derives its own from it and its number.

    Returns
    -------
    SBC
        Besides the scalars two quantities that depend on the data are ranked: the log-likelihood
        and the log joint density. They reveal a posterior that ignores data, whose ranks of the
        latents are uniform.

    Raises
    ------
    ModelError
        If the model has nothing to rank, its data cannot be simulated, or its fits have no or too
        few draws.
    SaveLoadError
        If the file belongs to another model or configuration.
    TrainingError
        If every fit fails, or ``train_kwargs`` are wrong: then nothing is recorded.

    Warns
    -----
    UserWarning
        If the model has trained parameters without a prior: the data are simulated with their
        present values, but every refit estimates them anew, so that the ranks need not be uniform.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari, Gelman: Validating Bayesian inference algorithms with
    simulation-based calibration. arXiv:1804.06788 (2018).

    Yao, Vehtari, Simpson, Gelman: Yes, but did it work? Evaluating variational inference. ICML
    (2018).

    Modrák et al.: Simulation-based calibration checking for Bayesian computation: the choice of
    test quantities shapes sensitivity. Bayesian Analysis 20, 461-488 (2025).
    """
    import pandas as pd

    judged = _judged(model, sites, observations)
    _check_numbers(num_simulations, num_draws, num_workers)
    _warn_of_parameters(model)
    root = settings.seed if seed is None else int(seed)
    training = refit_options(model, train_kwargs)
    if effective_method(model, training) == "map":
        raise ModelError(
            "method='map' finds a point: there are no draws to rank the truth among. Expected a "
            "method with draws: 'nuts', 'laplace', 'pathfinder' or 'svi'."
        )
    refit = Refit(model, judged, tuple(map(int, observations)), num_draws, training, root)
    store = SimulationStore(path, _configuration(model, refit))
    waiting = [i for i in range(num_simulations) if "ranks" not in store.records.get(i, {})]
    deadline = None if max_time is None else time.time() + max_time
    run_in_processes(
        partial(run_refit, refit, deadline=deadline),
        waiting,
        num_workers,
        on_result=lambda _, record: None if record is None else store.add(record),
        fork_safe=model.adata_manager.fork_safe,
    )
    records = [store.records[i] for i in sorted(store.records) if i < num_simulations]
    done = [record for record in records if "ranks" in record]
    failures = pd.DataFrame(
        [(r["simulation"], r["error"]) for r in records if "error" in r],
        columns=["simulation", "error"],
    )
    if not done:
        raise TrainingError(
            f"None of the {len(records)} simulations has a fit. "
            + (
                f"The first failed with: {failures['error'].iloc[0]}"
                if len(failures)
                else f"max_time={max_time} passed before one was begun."
            )
        )
    index = pd.Index([record["simulation"] for record in done], name="simulation")
    return SBC(
        "Simulation-based calibration",
        pd.DataFrame([record["ranks"] for record in done], index=index),
        num_draws,
        None,
        probability,
        failures,
        pd.Series([record["ess"] for record in done], index=index, name="ess"),
        num_simulations,
        inference_name(model, training),
    )


def _judged(
    model: BaseModelClass, sites: str | Sequence[str] | None, observations: Sequence[int]
) -> list[str]:
    names = model.sites.resolve(sites, Role.GLOBAL)
    if sites is None and len(observations):
        names += [name for name in latent_sites(model) if model.sites[name].is_local]
    if not names:
        raise ModelError(
            "The model has no global latents to rank. Name observations whose local latents are to "
            "be ranked (observations=[0, 1, ...]), or use encoder_sbc(), which needs no refits."
        )
    for name in names:
        site = model.sites[name]
        if not site.is_latent and site.role is not Role.DETERMINISTIC:
            raise ModelError(
                f"{name!r} is {site.role}: only latent and deterministic sites have posterior "
                "draws to rank among."
            )
        if site.is_local and not len(observations):
            raise ModelError(
                f"{name!r} has one value per observation; say of which: observations=[0, 1, ...]."
            )
    n_obs = model.adata_manager.n_obs
    if wrong := [i for i in observations if not 0 <= i < n_obs]:
        raise ModelError(f"observations names {wrong[0]}; there are {n_obs}, from 0.")
    return names


def _check_numbers(num_simulations: int, num_draws: int, num_workers: int) -> None:
    for name, number, least in (
        ("num_simulations", num_simulations, 1),
        ("num_draws", num_draws, 1),
        ("num_workers", num_workers, 1),
    ):
        if number < least:
            raise ModelError(f"{name} must be at least {least}, got {number}.")


def _warn_of_parameters(model: BaseModelClass) -> None:
    names = model_parameters(model.module, example_on_device(model, None))
    if names:
        warnings.warn(
            f"The model has trained parameters without a prior ({', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}). Data are simulated with their present values "
            "and every refit estimates them anew: the ranks of a right inference need not be "
            "uniform. Give them priors (pyro.sample), or freeze them.",
            stacklevel=3,
        )


def _configuration(model: BaseModelClass, refit: Refit) -> dict[str, Any]:
    registry = {k: v for k, v in model.registry.items() if k != "uuid"}
    return {
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "sites": fingerprint(repr(model.sites)),
        "story": fingerprint([model._init_arguments, type(model.module)]),
        "data": fingerprint(registry),
        "judged": refit.sites,
        "observations": list(refit.observations),
        "num_draws": refit.num_draws,
        "train_kwargs": fingerprint(refit.train_kwargs),
        "seed": refit.seed,
    }
