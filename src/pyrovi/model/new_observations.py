r"""Predictions of new observations, and of new groups: what is local to them comes from the prior.

Of an observation whose outcome is not known nothing tells about its local latents but the globals.
In the same way a group that the data have nothing of tells nothing about its effect. So both,
:math:`z`, are drawn from the prior given the posterior draws of the other latents :math:`g`:

.. math:: p(\tilde x \mid x) = \int p(\tilde x \mid z, g)\, p(z \mid g)\, p(g \mid x)\, dz\, dg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyrovi._rng import stream
from pyrovi.data import AnnDataManager
from pyrovi.dataloaders import AnnDataLoader
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.model.discrete import check_no_categories
from pyrovi.model.draws import example_on_device, resolve_num_samples, warn_if_untrained
from pyrovi.model.queries import check_size, run_labelled
from pyrovi.model.setup import transferred_manager
from pyrovi.module.base import PyroBaseModule, evaluation_mode
from pyrovi.module.ledger import Role, Site
from pyrovi.posterior.engine import Intervention
from pyrovi.posterior.globals import draw_globals
from pyrovi.posterior.reduce import ReduceSpec, Reduction
from pyrovi.posterior.stories import model_trace, prior_story, values_of
from pyrovi.posterior.vectorise import Story

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.model.base import BaseModelClass


@runtime_checkable
class Resizable(Protocol):
    """A module that can run its story with other numbers of levels for a while."""

    def with_constants(self, values: Mapping[str, int]) -> AbstractContextManager[None]:
        """Run with other values of summary statistics such as ``n_donor``."""


def predict_new(
    model: BaseModelClass,
    sites: str | Sequence[str] | None = None,
    *,
    adata: Any,
    new_levels: bool = False,
    num_samples: int | None = None,
    indices: Any = None,
    batch_size: int | None = None,
    reduce: ReduceSpec = None,
    intervention: Intervention | None = None,
    seed: int | None = None,
) -> xr.Dataset:
    """Posterior predictive draws of observations that the posterior knows nothing about.

    Parameters
    ----------
    sites
        As in :meth:`~pyrovi.model.BaseModelClass.posterior_predictive`.
    adata
        The data; what the story observes is not looked at.
    new_levels
        Whether columns of categories may hold others than the model was made with.
    num_samples, indices, batch_size, reduce, intervention, seed
        As in :meth:`~pyrovi.model.BaseModelClass.posterior_predictive`.

    Returns
    -------
    xarray.Dataset
        One variable per site.

    Raises
    ------
    ModelError
        If the story cannot be run with more categories.
    """
    names = model.sites.resolve(sites, Role.OBSERVED)
    if new_levels:
        manager = transferred_manager(type(model), adata, model.registry, extend_categories=True)
    else:
        manager = model.manager_of(adata)
    sizes = _grown(model, manager)
    count = resolve_num_samples(model, num_samples)
    warn_if_untrained(model)
    described = {name: model.sites[name] for name in names}
    positions = resolve_indices(indices, manager.n_obs)
    reduction = Reduction(reduce)
    if reduction.statistics:
        check_no_categories(model, described.values())
    if reduce is None:
        check_size(described, count, len(positions))
    module, example = model.module, example_on_device(model, manager)
    draws = draw_globals(module, example, count, seed)

    def loader(size: int) -> AnnDataLoader:
        return AnnDataLoader(manager, positions, batch_size=size, n_obs=model.n_obs_training)

    with _resized(module, sizes):
        axes = _growing_sites(model, example, draws, sizes)
        _refuse_grown(described, axes)

        def make_story(minibatch: Minibatch) -> Story:
            seen = minibatch if intervention is None else intervention(minibatch)
            return lambda values: prior_story(module, seen, names)(_extended(seen, values))

        def _extended(minibatch: Minibatch, values: dict[str, Tensor]) -> dict[str, Tensor]:
            if not axes:
                return values
            known = {name: value for name, value in values.items() if name not in axes}
            drawn = values_of(model_trace(module, minibatch, known, predictive=True), list(axes))
            whole = {name: _filled(drawn[name], values[name]) for name in axes}
            return {**known, **whole}

        return run_labelled(
            model, manager, positions, loader, make_story, draws, described,
            num_samples=count, reduction=reduction, batch_size=batch_size, seed=seed,
        )  # fmt: skip


def _grown(model: BaseModelClass, manager: AnnDataManager) -> dict[str, int]:
    """Summary statistics of the data that exceed the model's: numbers of categories."""
    before = model.summary_stats
    stats = manager.summary_stats
    grown = {k: int(n) for k, n in stats.items() if k not in ("n_obs", "n_vars")}
    return {name: n for name, n in grown.items() if name in before and n > before[name]}


def _resized(module: PyroBaseModule, sizes: Mapping[str, int]) -> AbstractContextManager[None]:
    if not sizes:
        return nullcontext()
    if not isinstance(module, Resizable):
        raise ModelError(
            f"{type(module).__name__} is built for its categories, and the data have more of them "
            f"({', '.join(f'{k}={v}' for k, v in sizes.items())}). New levels can be predicted by "
            "models of a story, pv.from_pyro(story, ...), which takes their number as an argument, "
            "and of modules with a method with_constants."
        )
    return module.with_constants(sizes)


def _growing_sites(
    model: BaseModelClass,
    example: Minibatch,
    draws: Mapping[str, Tensor],
    sizes: Mapping[str, int],
) -> dict[str, list[int]]:
    """Global sites that are larger with the new levels, and the axes they grow along."""
    if not sizes:
        return {}
    module = model.module
    improper = {name: draws[name][0] for name in model.sites.improper}
    with torch.no_grad(), evaluation_mode(module), stream("new levels"):
        try:
            trace = model_trace(module, example, improper, predictive=True)
        except (RuntimeError, ValueError, IndexError) as error:
            wanted = ", ".join(f"{name}={n}" for name, n in sizes.items())
            message = str(error).partition("\nTrace Shapes:")[0]
            raise ModelError(
                f"The story cannot be run with {wanted}, so new levels cannot be predicted "
                f"({type(error).__name__}: {message}). What has one value per level must be a "
                "plate of their number, and must not be a table of fixed size."
            ) from error
    found: dict[str, list[int]] = {}
    for name in model.sites.names(Role.GLOBAL):
        node: Any = trace.nodes[name]
        old = draws[name].shape[1:]
        new = node["value"].shape
        if new == old:
            continue
        event_dim = node["fn"].event_dim
        plates = {frame.dim - event_dim for frame in node["cond_indep_stack"]}
        same_rank = len(new) == len(old)
        axes = [a for a in range(-len(new), 0) if same_rank and new[a] != old[a]]
        if not axes or not set(axes) <= plates:
            raise ModelError(
                f"{name!r} has the shape {tuple(old)}, and {tuple(new)} with the new levels, along "
                "a dimension that is no plate: what it is for new levels depends on the others. "
                "Draw it in a plate of the levels, `with pv.plate('county', n_county):`."
            )
        found[name] = axes
    return found


def _refuse_grown(sites: Mapping[str, Site], axes: Mapping[str, Any]) -> None:
    wrong = [name for name, site in sites.items() if not site.is_local]
    if axes and wrong:
        raise ModelError(
            f"{', '.join(map(repr, wrong))} has no value per observation. With new levels ask for "
            "sites of the observations; sample_posterior() has those of the known levels."
        )


def _filled(fresh: Tensor, known: Tensor) -> Tensor:
    """Values of all levels: those that are known come first, the others are new."""
    missing = [n - m for n, m in zip(fresh.shape, known.shape, strict=True)]
    pads = [p for n in reversed(missing) for p in (0, n)]
    inside = torch.nn.functional.pad(torch.ones_like(known, dtype=torch.bool), pads)
    return torch.where(inside, torch.nn.functional.pad(known, pads), fresh)
