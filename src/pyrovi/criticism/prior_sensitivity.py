"""Sensitivity of a posterior to its priors and to the likelihood, by power-scaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi.criticism.num_draws import many_draws
from pyrovi.criticism.style import NEUTRAL, OBSERVED, REPLICATED, figure
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import ModelError
from pyrovi.model.draws import example_on_device, posterior_globals
from pyrovi.model.log_prior import global_densities
from pyrovi.model.marginal import marginal_log_likelihood
from pyrovi.module.ledger import Role
from pyrovi.posterior.labels import label
from pyrovi.posterior.pareto import khat_threshold
from pyrovi.posterior.power_scaling import power_scaling_sensitivity
from pyrovi.posterior.prior_density import SHARED, prior_parents, top_level_priors
from pyrovi.posterior.prior_draws import prior_factors
from pyrovi.posterior.scalars import scalar_columns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pyrovi.data import AnnDataManager
    from pyrovi.model.base import BaseModelClass

THRESHOLD = 0.05
"""Sensitivity from which on a component matters: that of a normal posterior whose mean moves by
about 0.3 standard deviations per doubling of the power (Kallioinen et al. 2024)."""

CONFLICT = "prior-data conflict"
STRONG_PRIOR = "strong prior / weak likelihood"
NO_SPREAD = "point estimate: no spread to compare"

_MAX_ROWS = 25


@dataclass(frozen=True)
class Sensitivity:
    """How the posterior changes if priors or likelihood count a little more or less.

    Attributes
    ----------
    table
        One row for each scalar: ``prior`` and ``likelihood`` sensitivity, and ``diagnosis``
        (``"prior-data conflict"``: both matter, so they pull in different directions; ``"strong
        prior / weak likelihood"``: the prior matters and the data hardly do; or empty).
    by_prior
        One row for each scalar, one column for each scaled prior: the sensitivity to it alone.
    priors
        The sites whose priors were scaled.
    khat
        Largest Pareto shape of the importance weights of each component.
    threshold
        Sensitivity from which on a component matters.
    num_draws
        Number of posterior draws.
    """

    table: pd.DataFrame
    by_prior: pd.DataFrame
    priors: tuple[str, ...]
    khat: dict[str, float]
    threshold: float
    num_draws: int

    @property
    def passed(self) -> bool:
        """Whether no scalar has a diagnosis."""
        return bool((self.table["diagnosis"] == "").all())

    @property
    def reliable(self) -> bool:
        """Whether the importance weights are good enough for the numbers to mean something."""
        return max(self.khat.values()) <= khat_threshold(self.num_draws)

    def summary(self) -> str:
        """The findings in a few lines."""
        found = self.table[self.table["diagnosis"] != ""]
        lines = [
            f"Power-scaling of the prior of {', '.join(self.priors)} and of the likelihood: "
            f"{len(found)} of {len(self.table)} quantities need a look (threshold "
            f"{self.threshold:g})"
        ]
        for name, row in list(found.iterrows())[:10]:
            lines.append(
                f"  {name}: {row['diagnosis']} (prior {row['prior']:.3f}, likelihood "
                f"{row['likelihood']:.3f})"
            )
        if len(found) > 10:
            lines.append(f"  and {len(found) - 10} more; see .table")
        if not self.reliable:
            lines.append(
                f"  The importance weights are poor (k-hat {max(self.khat.values()):.2f}): take "
                "more draws."
            )
        return "\n".join(lines)

    def plot(self, quantities: Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
        """Prior and likelihood sensitivity of each scalar, with the threshold.

        Parameters
        ----------
        quantities
            Rows of the table; ``None`` for those that are most sensitive to the prior, at most 25.
        ax
            Axes to draw in; ``None`` makes a figure.
        """
        table = self.table if quantities is None else self.table.loc[list(quantities)]
        table = table.sort_values("prior", ascending=False).head(_MAX_ROWS)[::-1]
        if ax is None:
            with figure(7.2, 1.3 + 0.27 * len(table)) as (_, (ax,)):
                return self.plot(quantities, ax=ax)
        rows = np.arange(len(table))
        low = np.minimum(table["prior"], table["likelihood"])
        high = np.maximum(table["prior"], table["likelihood"])
        ax.hlines(rows, low, high, color="#CFCFCF", linewidth=1.4, zorder=1)
        ax.scatter(table["likelihood"], rows, color=REPLICATED, s=26, label="likelihood", zorder=2)
        ax.scatter(table["prior"], rows, color="#D55E00", s=30, marker="D", label="prior", zorder=3)
        ax.axvline(self.threshold, color=NEUTRAL, linestyle="--", linewidth=1.2)
        marked = [f"{name} *" if row["diagnosis"] else str(name) for name, row in table.iterrows()]
        ax.set_yticks(rows, marked, color=OBSERVED)
        ax.set_ylim(-0.7, len(table) - 0.3)
        ax.set(xlim=(0, None), xlabel="Sensitivity (distance per doubling of the power)")
        ax.set_title("Power-scaling sensitivity (* has a diagnosis)")
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
        return ax


def sensitivity(
    model: BaseModelClass,
    sites: str | Sequence[str] | None = None,
    *,
    priors: str | Sequence[str] | None = None,
    num_samples: int | None = None,
    num_inner: int = 100,
    delta: float = 0.01,
    threshold: float = THRESHOLD,
    indices: Any = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> Sensitivity:
    r"""Power-scaling sensitivity of the posterior of the globals to priors and likelihood.

    The posterior under :math:`p(\theta)^{\alpha} p(x \mid \theta)`, or
    :math:`p(\theta) p(x \mid \theta)^{\alpha}`, for powers next to 1 follows from the draws by
    importance weights, without a refit. How fast it moves with :math:`\alpha` shows what the
    posterior rests on.

    Only top-level priors are scaled: sites outside the observation plate whose prior depends on no
    other latent site. Scaling the prior of a group effect or of a local latent would answer another
    question (how strong the pooling is). A ``pyro.factor`` term outside the observation plate
    counts as a prior, one inside as likelihood (as the terms that a Stan program adds to its
    ``lprior`` and ``log_lik`` for the R package priorsense); of a story that observes nothing, all
    factors are the likelihood. The likelihood is that of the training observations, with local
    latents integrated out, and of what is observed outside the observation plate.

    Parameters
    ----------
    model
        A fitted model (by any method) with global latent sites.
    sites
        Global sites whose scalars are judged; ``None`` for all.
    priors
        Top-level sites, and factors of the prior, that are scaled together; ``None`` for all.
    num_samples
        Number of posterior draws; ``None``: all stored ones, or 1000 of a guide.
    num_inner
        Draws of the local latents for each, to integrate them out.
    delta
        Change of the power.
    threshold
        Sensitivity from which on a component matters.
    indices
        Observations that the posterior rests on; ``None`` for those it was trained on.
    batch_size, seed
        As in :meth:`~pyrovi.model.BaseModelClass.sample_posterior`.

    Returns
    -------
    Sensitivity

    Raises
    ------
    ModelError
        If there are no global latents, none has a spread, or a named prior is not top-level.

    Notes
    -----
    On draws of a fitted guide it is the sensitivity of the approximation: a local derivative that
    holds as far as the guide follows the posterior.

    References
    ----------
    Kallioinen, Paananen, Bürkner, Vehtari: Detecting and diagnosing prior and likelihood
    sensitivity with power-scaling. Statistics and Computing 34, 57 (2024).
    """
    import pandas as pd

    known = model.sites.names(Role.GLOBAL)
    if not known:
        raise ModelError(
            "The model has no global latent sites, so there are no priors to scale: parameters "
            "that are trained have none."
        )
    if not 0 < delta < 1:
        raise ModelError(f"delta must lie between 0 and 1, got {delta}; 0.01 is usual.")
    judged = model.sites.resolve(sites, Role.GLOBAL)
    if wrong := [name for name in judged if name not in known]:
        raise ModelError(
            f"{', '.join(map(repr, wrong))} is no global latent site; these are: "
            f"{', '.join(known)}."
        )
    manager = model.manager_of(None)
    chosen = _scaled_priors(model, manager, priors)
    num_samples = many_draws(model, num_samples)
    globals_ = posterior_globals(model, num_samples, seed, manager)
    arrays = {name: globals_[name].cpu().numpy() for name in judged}
    positions = resolve_indices(model.train_indices if indices is None else indices, manager.n_obs)
    labelled = label(
        arrays,
        {name: model.sites[name] for name in judged},
        model.coords(manager, positions),
        leading={"draw": None},
    )
    names, draws = scalar_columns(labelled)
    _check_spread(draws, judged)

    densities = global_densities(model, globals_, num_samples, manager, seed)
    log_priors = {name: densities[name].cpu().numpy() for name in chosen}
    log_likelihood = densities[SHARED].cpu().numpy()
    if any(model.sites[n].is_local for n in model.sites.names(Role.OBSERVED, Role.FACTOR)):
        marginal = marginal_log_likelihood(
            model,
            num_samples=num_samples,
            num_inner=num_inner,
            indices=positions,
            batch_size=batch_size,
            seed=seed,
        )
        log_likelihood = log_likelihood + marginal["log_likelihood"].astype(float).sum("obs").values
    components = {"prior": sum(log_priors.values()), "likelihood": log_likelihood}
    table, khat = {}, {}
    for name, component in components.items():
        table[name], khat[name] = power_scaling_sensitivity(draws, component, delta)
    by_prior = {
        name: power_scaling_sensitivity(draws, values, delta)[0]
        for name, values in log_priors.items()
    }
    frame = pd.DataFrame(table, index=pd.Index(names, name="quantity"))
    frame["diagnosis"] = diagnose(table["prior"], table["likelihood"], threshold)
    return Sensitivity(
        frame,
        pd.DataFrame(by_prior, index=frame.index),
        tuple(chosen),
        khat,
        threshold,
        num_samples,
    )


def diagnose(
    prior: NDArray[np.float64], likelihood: NDArray[np.float64], threshold: float = THRESHOLD
) -> list[str]:
    """What sensitivities to prior and likelihood mean together.

    Parameters
    ----------
    prior, likelihood
        Sensitivities, shape ``(K,)``.
    threshold
        Sensitivity from which on a component matters.
    """
    words = []
    for of_prior, of_likelihood in zip(prior, likelihood, strict=True):
        if np.isnan(of_prior) or np.isnan(of_likelihood):
            words.append(NO_SPREAD)
        elif of_prior < threshold:
            words.append("")
        else:
            words.append(CONFLICT if of_likelihood >= threshold else STRONG_PRIOR)
    return words


def _scaled_priors(
    model: BaseModelClass, manager: AnnDataManager, priors: str | Sequence[str] | None
) -> list[str]:
    parents = prior_parents(model.module, example_on_device(model, manager))
    factors = prior_factors(model.sites)
    top = [name for name, above in parents.items() if not above] + factors
    if priors is None:
        return top_level_priors(model.module, example_on_device(model, manager))
    chosen = [priors] if isinstance(priors, str) else list(priors)
    for name in chosen:
        if name in factors:
            continue
        if name not in parents:
            raise ModelError(
                f"priors names {name!r}, which is no global latent site; top-level are: "
                f"{', '.join(top)}."
            )
        if parents[name]:
            raise ModelError(
                f"The prior of {name!r} depends on {', '.join(parents[name])}: it is no top-level "
                f"prior. Scale one of: {', '.join(top)}."
            )
    if not chosen:
        raise ModelError(f"priors is empty; name some of: {', '.join(top)}, or pass None for all.")
    return chosen


def _check_spread(draws: NDArray[np.float64], judged: Sequence[str]) -> None:
    if len(draws) < 2 or not (draws.max(0) > draws.min(0)).any():
        raise ModelError(
            f"All draws of {', '.join(judged)} are equal: the posterior is a point estimate, or "
            "there is one draw, so nothing can be reweighed. Use a guide with a spread, and at "
            "least some hundred draws (num_samples)."
        )
