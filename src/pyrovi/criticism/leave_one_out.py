"""Leave-one-out cross-validation of observations whose local latents are integrated out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._rng import generator, stream
from pyrovi.criticism.elpd import Elpd, difference_estimate, predicted_sites, total
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import DataError, ModelError
from pyrovi.model.draws import example_on_device, resolve_num_samples, warn_if_untrained
from pyrovi.model.marginal import marginal_log_likelihood
from pyrovi.module.ledger import Role
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.arviz import to_container, with_chain
from pyrovi.posterior.convergence import ess_mean
from pyrovi.posterior.pareto import khat_threshold, psis
from pyrovi.posterior.point_estimates import model_parameters, point_sites
from pyrovi.posterior.scalars import scalar_columns

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from pyrovi.model.base import BaseModelClass

_GUIDE_DRAWS = 500
"""Draws of a guide unless told otherwise: the weights need more than most queries."""

_CHEAP = 30
"""Draws, of the globals and of the locals, for the approximation of every observation."""

_SHOWN = 3

_NEGLIGIBLE = 1.0
"""Bias of the sum (nats) that needs no mention."""


@dataclass(frozen=True, repr=False)
class LOO(Elpd):
    r"""Result of :func:`loo`.

    Attributes
    ----------
    p_loo
        Effective number of parameters: by how much the fit to the observations themselves is
        better than the prediction of each from the others.
    inner_bias
        By how much ``elpd`` is too low, about, because the integrals over the local latents are
        noisy: it goes like ``1 / num_inner``.
    khat_threshold
        Largest reliable Pareto :math:`\hat k`.
    log_likelihood
        The marginal log-likelihood of the evaluated observations, dimensions ``draw`` and ``obs``.
    posterior
        The draws of the global latents it was evaluated with.
    """

    p_loo: float = np.nan
    inner_bias: float = 0.0
    khat_threshold: float = np.nan
    log_likelihood: xr.DataArray | None = None
    posterior: xr.Dataset | None = None

    @property
    def unusable(self) -> bool:
        """Whether the weights of more than half of the observations are unreliable.

        Then the draws are not those of the posterior, or every observation is so influential that
        no weights take it back: ``elpd`` may be wrong by any amount.
        """
        return 2 * self.n_bad > len(self.pointwise)

    def warning(self) -> list[str]:
        """That the sum is unusable, and what to do instead."""
        if not self.unusable:
            return []
        return [
            f"UNUSABLE: the weights of {self.n_bad} of {len(self.pointwise)} observations are "
            "unreliable, so that elpd may be wrong by any amount. Check the fit "
            "(pyrovi.criticism.diagnose), or refit: cross_validate(model)."
        ]

    def _more(self) -> dict[str, float]:
        return {"p_loo": self.p_loo, "inner bias": self.inner_bias}

    def notes(self) -> list[str]:
        """What to mind: also that more draws of the locals are needed."""
        found = super().notes()
        if self.inner_bias > _NEGLIGIBLE:
            found.append(f"about {self.inner_bias:.0f} nats too low: raise num_inner")
        return found

    def to_arviz(self) -> Any:
        """The marginal log-likelihood and the globals, as what ``az.loo`` and ``az.compare`` take.

        Returns
        -------
        arviz.InferenceData or xarray.DataTree
            ``az.loo`` of it gives ``elpd``, ``se`` and ``p_loo`` (of the evaluated observations, if
            subsampled). ArviZ 0.x divides by ``N`` instead of ``N - 1`` in ``se``; 1.x fits the
            Pareto shapes a little differently.
        """
        assert self.log_likelihood is not None
        assert self.posterior is not None
        name = next(iter(self.sites)) if len(self.sites) == 1 else "marginal"
        groups = {
            "posterior": with_chain(self.posterior),
            "log_likelihood": with_chain(self.log_likelihood.to_dataset(name=name)),
        }
        return to_container(groups, {"inference_library": "pyrovi", **self.settings})


def loo(
    model: BaseModelClass,
    *,
    num_samples: int | None = None,
    num_inner: int = 100,
    indices: Any = None,
    subsample: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> LOO:
    r"""Estimate how well each observation is predicted from all others (PSIS-LOO).

    The posterior of the globals without an observation is the posterior with it, weighed by
    :math:`1 / p(x_n \mid g)`; the weights are Pareto-smoothed. :math:`p(x_n \mid g)` has the local
    latents integrated out (see :meth:`marginal_log_likelihood`): given an observation's own
    latents, which the posterior has fitted to it, the weights would be useless.

    Parameters
    ----------
    model
        A fitted model.
    num_samples
        Draws of the globals; ``None``: all that are stored, or 500 of a guide.
    num_inner
        Draws of the locals for each of them.
    indices
        Training observations; ``None`` for all.
    subsample
        Evaluate a random subsample of so many observations, and estimate the sum over all of them
        with the help of a cheap approximation of each (the difference estimator).
    batch_size, seed
        As in :meth:`sample_posterior`.

    Returns
    -------
    LOO
        ``pointwise`` has ``elpd``, ``p_loo``, ``khat``, ``good`` and ``inner_bias`` of each
        observation, and ``inner_khat`` where local latents were integrated out. Where more than
        half of the observations are not ``good``, the result is ``unusable``: it says so before
        its numbers, and :func:`compare` refuses it.

    Raises
    ------
    ModelError
        If the model has parameters or global latents that are point estimates: these have seen
        every observation, and no weights take that back.
    DataError
        If observations are asked for that the model was not trained on, or the subsample is not
        smaller than their number.

    Notes
    -----
    The draws of a fitted guide stand in for the posterior of the globals. Where the guide is far
    from it, so is the result, without :math:`\hat k` showing it: refit
    (:func:`cross_validate`) in case of doubt.

    References
    ----------
    Vehtari, Gelman, Gabry: Practical Bayesian model evaluation using leave-one-out
    cross-validation and WAIC. Statistics and Computing 27, 1413-1432 (2017).

    Magnusson, Vehtari, Jonasson, Andersen: Leave-one-out cross-validation for Bayesian model
    comparison in large data. AISTATS (2020).
    """
    warn_if_untrained(model)
    refuse_point_estimates(model, seed)
    positions = _training_positions(model, indices)
    if num_samples is None and not isinstance(model.module.posterior, StoredDraws):
        num_samples = _GUIDE_DRAWS
    num_samples = resolve_num_samples(model, num_samples)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    sampled = np.arange(len(positions))
    if subsample is not None:
        sampled = _subsample(len(positions), subsample, seed)
    draws = marginal_log_likelihood(
        model,
        num_samples=num_samples,
        num_inner=num_inner,
        indices=positions[sampled],
        **options,
    )
    likelihood = draws["log_likelihood"]
    globals_ = _global_draws(model, likelihood, seed)
    pointwise, threshold = _pointwise(likelihood, draws, _relative_efficiency(model, globals_))
    values = pointwise["elpd"].to_numpy()
    approximation, subsampling_se = None, 0.0
    if subsample is None:
        elpd, se = total(values)
    else:
        approximation = _approximation(model, positions, num_samples, num_inner, options)
        elpd, subsampling_se, se = difference_estimate(values, approximation.to_numpy(), sampled)
    return LOO(
        kind="loo",
        elpd=elpd,
        se=se,
        pointwise=pointwise,
        sites=predicted_sites(model),
        n_bad=int((~pointwise["good"]).sum()),
        settings={"num_samples": num_samples, "num_inner": num_inner},
        n_obs=len(positions),
        approximation=approximation,
        subsampling_se=subsampling_se,
        p_loo=float(pointwise["p_loo"].mean() * len(positions)),
        inner_bias=float(pointwise["inner_bias"].mean() * len(positions)),
        khat_threshold=threshold,
        log_likelihood=likelihood,
        posterior=globals_,
    )


def refuse_point_estimates(model: BaseModelClass, seed: int | None = None) -> None:
    """Refuse what no leave-one-out weights exist for.

    Raises
    ------
    ModelError
        If parameters that the model uses, or global latents, are point estimates; names them.
    """
    example = example_on_device(model, None)
    with stream("points", seed=seed):
        parameters = model_parameters(model.module, example)
        points = point_sites(model.module, example, Role.GLOBAL)
    found = []
    if parameters:
        found.append(f"the parameters {_some(parameters)} of the model")
    if points:
        found.append(f"the global latents {_some(points)}, to which the guide gives a single value")
    if found:
        raise ModelError(
            f"Leave-one-out of this {type(model).__name__} would be in-sample: "
            f"{' and '.join(found)}, are point estimates. They have been fitted to every "
            "observation, and there is no posterior of them that could be weighed as if one had "
            "been left out. Use pyrovi.criticism.held_out(model) with the observations that "
            "training kept apart, or cross_validate(model), which refits; or give them priors and "
            "a guide with a spread."
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _training_positions(model: BaseModelClass, indices: Any) -> np.ndarray:
    trained = model.train_indices
    if indices is None and trained is not None:
        return np.sort(np.asarray(trained))
    positions = resolve_indices(indices, model.adata_manager.n_obs)
    if trained is not None and not np.isin(positions, trained).all():
        outside = int((~np.isin(positions, trained)).sum())
        raise DataError(
            f"{outside} of the {len(positions)} observations were not trained on, so there is "
            "nothing to leave out. Expected positions of model.train_indices; for the others use "
            "pyrovi.criticism.held_out(model, indices=...)."
        )
    if len(np.unique(positions)) < len(positions):
        raise DataError("indices names an observation twice; name each once.")
    return positions


def _subsample(n: int, size: int, seed: int | None) -> np.ndarray:
    if not 2 <= size < n:
        raise DataError(
            f"subsample must be between 2 and {n - 1} (there are {n} observations), got {size}. "
            "Leave it out to evaluate all."
        )
    chosen = generator("loo subsample", seed=seed).choice(n, size, replace=False)
    return np.sort(chosen)


def _approximation(
    model: BaseModelClass,
    positions: np.ndarray,
    num_samples: int,
    num_inner: int,
    options: dict[str, Any],
) -> pd.Series:
    """Log predictive density of every observation with few draws, its own fit included."""
    import pandas as pd

    cheap = marginal_log_likelihood(
        model,
        num_samples=min(num_samples, _CHEAP),
        num_inner=min(num_inner, _CHEAP),
        fit=False,
        indices=positions,
        **options,
    )["log_likelihood"]
    return pd.Series(log_mean_exp(cheap.values), index=pd.Index(cheap["obs"].values, name="obs"))


def _global_draws(model: BaseModelClass, likelihood: xr.DataArray, seed: int | None) -> xr.Dataset:
    """The draws of the globals that the likelihood was evaluated with."""
    if names := model.sites.names(Role.GLOBAL):
        return model.sample_posterior(names, num_samples=likelihood.sizes["draw"], seed=seed)
    return likelihood["draw"].to_dataset(name="draw")


def log_mean_exp(values: np.ndarray) -> np.ndarray:
    """Log of the mean of the exponentials over the first axis."""
    largest = values.max(0)
    result: np.ndarray = np.log(np.exp(values - largest).mean(0)) + largest
    return result


def _relative_efficiency(model: BaseModelClass, draws: xr.Dataset) -> float:
    """Effective number of draws over their number: the mean over the scalars, as ArviZ takes it."""
    posterior, num_draws = model.module.posterior, draws.sizes["draw"]
    if (
        not isinstance(posterior, StoredDraws)
        or not model.sites.names(Role.GLOBAL)
        or num_draws != posterior.num_chains * posterior.num_draws
    ):
        return 1.0  # independent draws of a guide, or some of a chain, far from each other
    _, values = scalar_columns(draws, ("draw",))
    ess = ess_mean(values.reshape(posterior.num_chains, posterior.num_draws, -1))
    ess = ess[np.isfinite(ess)]
    return float(ess.mean() / num_draws) if len(ess) else 1.0


def _pointwise(
    likelihood: xr.DataArray, draws: xr.Dataset, reff: float
) -> tuple[pd.DataFrame, float]:
    import pandas as pd

    values = likelihood.values
    weights, khat = psis(-values, reff=reff)
    elpd = log_mean_exp(weights + values) + np.log(len(values))
    threshold = khat_threshold(len(values))
    table = pd.DataFrame(
        {
            "elpd": elpd,
            "p_loo": log_mean_exp(values) - elpd,
            "khat": khat,
            "good": khat <= threshold,
        },
        index=pd.Index(likelihood["obs"].values, name="obs"),
    )
    table["inner_bias"] = 0.0
    if "khat" in draws:
        table["inner_khat"] = draws["khat"].values
        # the mean of 1 / (mean of K weights) exceeds 1 / (mean weight) by its relative variance;
        # each draw counts by its leave-one-out weight
        table["inner_bias"] = (np.exp(weights) * draws["mcse"].values ** 2).sum(0)
    return table, threshold
