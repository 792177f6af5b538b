"""Checks of MCMC chains and of approximations made without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi.criticism.diagnose_rows import Check, graded, unavailable
from pyrovi.model.summary import chain_draws
from pyrovi.module.stored import NormalPosterior
from pyrovi.posterior.alignment import Symmetry
from pyrovi.posterior.convergence import convergence_statistics, ebfmi
from pyrovi.posterior.pareto import psis
from pyrovi.posterior.scalars import scalar_columns

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

_KHAT = ("khat", "pareto_k", "k_hat")


def mcmc_checks(model: BaseModelClass, align: Mapping[str, Symmetry] | None) -> list[Check]:
    """R-hat, effective sample sizes and what the sampler says of itself (Vehtari et al. 2021)."""
    draws = chain_draws(model, align=align)
    names, values = scalar_columns(draws, ("chain", "draw"))
    found = convergence_statistics(values)
    chains = values.shape[0]
    sd = values.reshape(-1, len(names)).std(0, ddof=1)
    longer = "Draw more (num_samples=), or reparametrise the story."
    checks = [_worst_rhat(names, found["r_hat"], chains)]
    for kind in ("bulk", "tail"):
        sizes = found[f"ess_{kind}"] / chains
        worst = int(np.nanargmin(sizes))
        checks.append(
            graded(
                f"{kind} effective sample size per chain",
                float(sizes[worst]),
                (100, 50),
                f"Too few effective draws for {'means' if kind == 'bulk' else 'intervals'}. "
                + longer,
                detail=names[worst],
                high_is_good=True,
            )
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = found["mcse_mean"] / sd
    worst = int(np.nanargmax(relative))
    checks.append(
        graded(
            "Monte-Carlo error of means / sd",
            float(relative[worst]),
            (0.1, 0.2),
            longer,
            detail=names[worst],
        )
    )
    return [*checks, *_sampler_checks(model)]


def _worst_rhat(names: list[str], values: Any, chains: int) -> Check:
    if chains < 2:
        return unavailable("R-hat of chains", "One chain has no R-hat; use num_chains=4.")
    worst = int(np.nanargmax(values))
    return graded(
        "R-hat of chains",
        float(values[worst]),
        (1.01, 1.05),
        "The chains disagree: draw more, reparametrise, or, for factors, align them (align=).",
        detail=f"{names[worst]}; {int((values > 1.01).sum())} of {len(names)} above",
    )


def _sampler_checks(model: BaseModelClass) -> list[Check]:
    posterior: Any = model.module.posterior
    stats = {name: value.cpu().numpy() for name, value in posterior.statistics.items()}
    checks = []
    if "diverging" in stats:
        share = float(stats["diverging"].mean())
        checks.append(
            graded(
                "divergent transitions",
                share,
                (0.0, 0.0),
                "The sampler missed a region of high curvature, so that draws are biased: raise "
                "target_accept, or reparametrise (e.g. non-centred).",
                detail=f"{int(stats['diverging'].sum())} of {stats['diverging'].size} draws",
            )
        )
    if "energy" in stats:
        checks.append(
            graded(
                "E-BFMI, smallest of the chains",
                float(ebfmi(stats["energy"]).min()),
                (0.3, 0.2),
                "The sampler moves slowly between levels of energy: reparametrise heavy tails and "
                "hierarchical scales.",
                high_is_good=True,
            )
        )
    if "reached_max_tree_depth" in stats:
        share = float(stats["reached_max_tree_depth"].mean())
        checks.append(
            graded(
                "draws at the largest tree depth",
                share,
                (0.01, 0.1),
                "Trajectories are cut short: raise max_tree_depth, or rescale the story.",
            )
        )
    return checks


def approximation_checks(model: BaseModelClass) -> list[Check]:
    """Pareto k-hat of the importance weights of an approximation (Laplace, Pathfinder)."""
    posterior: Any = model.module.posterior
    statistics = getattr(posterior, "statistics", {})
    for name in _KHAT:
        if name in statistics:
            khat = float(statistics[name].double().max())
            return [_approximation(khat), *_effective_draws(statistics)]
    if isinstance(posterior, NormalPosterior):
        exported = model.to_arviz(groups=["sample_stats"], num_samples=_WEIGHED_DRAWS)
        _, found = psis(exported["sample_stats"]["log_weight"].values.reshape(-1))
        return [_approximation(float(found))]
    return [
        unavailable(
            "k-hat of the approximation",
            "A point has no spread, and no weights to judge it by. Compare with method='nuts'.",
        )
    ]


_WEIGHED_DRAWS = 1000


def _approximation(khat: float) -> Check:
    return graded(
        "k-hat of the approximation",
        khat,
        (0.7, 1.0),
        "The approximation misses parts of the posterior: use method='nuts', or check it against "
        "SVI.",
    )


def _effective_draws(statistics: Mapping[str, Any]) -> list[Check]:
    if "importance_ess" not in statistics:
        return []
    distinct = statistics["num_distinct"]
    return [
        graded(
            "effective number of weighted draws",
            float(statistics["importance_ess"].min()),
            (100, 50),
            "Few of the approximation's draws carry the weight: raise num_draws_per_path or "
            "num_paths, or use method='nuts'.",
            detail=f"{int(distinct.min())} of {distinct.numel()} draws are distinct",
            high_is_good=True,
        )
    ]
