"""Draws of cells, decoded as they were observed or in another batch. Functions of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._rng import generator
from pyrovi._settings import settings
from pyrovi.data import AnnDataManager
from pyrovi.data.registry import registry_state
from pyrovi.dataloaders import AnnDataLoader
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import MissingKeyError, ModelError, UnseenCategoryError
from pyrovi.model.draws import posterior_globals
from pyrovi.posterior.engine import Intervention, bounded_batch_size, stream_query
from pyrovi.posterior.importance import resampled_latents
from pyrovi.posterior.stories import (
    guide_trace,
    intervened_latents,
    latent_values,
    model_trace,
)
from pyrovi.posterior.vectorise import Story

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

Weights = Literal["uniform", "importance"]

Reader = Callable[[Mapping[str, Any]], dict[str, Tensor]]
"""Takes what a query returns from the nodes of a model trace."""

NUM_PROPOSALS = 25
"""Draws of the guide that each importance-weighted draw is chosen from."""


def batch_codes(model: BaseModelClass, transform_batch: Any) -> list[int | None]:
    """Codes of the batches to decode in; ``[None]`` for each cell's own batch.

    Parameters
    ----------
    transform_batch
        ``None``, a category of the registered batch column, or a sequence of categories.

    Raises
    ------
    UnseenCategoryError
        If a category is not registered.
    ModelError
        If the sequence is empty.
    """
    if transform_batch is None:
        return [None]
    several = isinstance(transform_batch, (list, tuple, set, np.ndarray))
    asked = list(transform_batch) if several else [transform_batch]
    if not asked:
        raise ModelError("transform_batch is empty; name a batch, or pass None for the cells' own.")
    state = registry_state(model.registry, REGISTRY_KEYS.BATCH_KEY)
    known = state["categorical_mapping"].tolist()
    if unknown := [batch for batch in asked if batch not in known]:
        raise UnseenCategoryError(
            f"{unknown[0]!r} is no batch of this model. Registered batches: "
            f"{', '.join(map(repr, known))}; name one of these."
        )
    return [known.index(batch) for batch in asked]


def single_batch(model: BaseModelClass, transform_batch: Any) -> list[int | None]:
    """As :func:`batch_codes`, for what is drawn in one batch.

    Raises
    ------
    ModelError
        If several batches are named.
    """
    codes = batch_codes(model, transform_batch)
    if len(codes) > 1:
        raise ModelError("Counts are drawn in one batch: name a single one in transform_batch.")
    return codes


def in_batch(code: int | None) -> Intervention:
    """Put cells into a batch (an intervention: the guide still sees the real one)."""

    def intervene(minibatch: Minibatch) -> Minibatch:
        if code is None:
            return minibatch
        key = REGISTRY_KEYS.BATCH_KEY
        changed = torch.full_like(minibatch[key], code)
        return minibatch.replace(tensors={**minibatch.tensors, key: changed})

    return intervene


def gene_positions(model: BaseModelClass, gene_list: Sequence[str] | None) -> NDArray[np.int64]:
    """Positions of genes among the model's variables, in the order asked for.

    Raises
    ------
    MissingKeyError
        If a gene is not known.
    ModelError
        If the list is empty.
    """
    if gene_list is None:
        return np.arange(len(model.var_names))
    if isinstance(gene_list, str):
        gene_list = [gene_list]
    positions = model.var_names.get_indexer(pd.Index(list(gene_list)))
    if (positions < 0).any():
        unknown = [gene for gene, p in zip(gene_list, positions, strict=True) if p < 0]
        raise MissingKeyError(
            f"{len(unknown)} of {len(positions)} genes in gene_list are not in the model's "
            f"var_names, e.g. {unknown[:3]}; names look like {list(model.var_names[:3])}."
        )
    if not len(positions):
        raise ModelError("gene_list is empty; pass None for all genes.")
    return positions.astype(np.int64)


def spread_draws(
    positions: NDArray[np.int64], num_draws: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Spread draws over cells as evenly as can be, in random order.

    One draw for each returned cell is a sample of the mixture of the cells' posteriors with equal
    weights; taking every cell about equally often has less variance than taking cells at random.
    """
    if num_draws < 1:
        raise ModelError(f"n_samples_overall must be at least 1, got {num_draws}.")
    each, left = divmod(num_draws, len(positions))
    extra = rng.choice(positions, size=left, replace=False)
    return rng.permutation(np.concatenate([np.repeat(positions, each), extra]))


def rows_to_draw(
    positions: NDArray[np.int64], n_samples: int, n_samples_overall: int | None, seed: int | None
) -> NDArray[np.int64]:
    """Cells to draw from: each of them, or as many as make up the draws in all.

    Raises
    ------
    ModelError
        If both numbers are given.
    """
    if n_samples_overall is None:
        return positions
    if n_samples != 1:
        raise ModelError(
            "Give either n_samples (draws of each cell) or n_samples_overall, got both."
        )
    return spread_draws(positions, n_samples_overall, generator("draws", "cells", seed=seed))


def stream_decoded(
    model: BaseModelClass,
    read: Reader,
    manager: AnnDataManager,
    positions: NDArray[np.int64],
    *,
    batches: Sequence[int | None] = (None,),
    num_samples: int = 1,
    weights: Weights = "uniform",
    predictive: bool = False,
    batch_size: int | None = None,
    seed: int | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Joint posterior draws of cells, decoded in given batches, minibatch by minibatch.

    Parameters
    ----------
    read
        Which values to take from the model trace of one draw.
    manager, positions
        The data, and which cells of them.
    batches
        Codes of the batches to decode in. The same latent draws are decoded in each of them (but
        for what follows the batch, see ``PyroBaseModule.follows_interventions``), and what is read
        is averaged.
    num_samples
        Number of draws ``S``.
    weights
        ``"uniform"``: draws of the guide. ``"importance"``: resampled towards the posterior of the
        model (:func:`~pyrovi.posterior.importance.resampled_latents`).
    predictive
        Sample the observed sites.
    batch_size, seed
        As in :meth:`sample_posterior`.

    Yields
    ------
    dict
        Name -> tensor of shape ``(S, n, ...)``.

    Raises
    ------
    ModelError
        If ``weights`` is unknown or ``num_samples`` is not positive.
    """
    if weights not in ("uniform", "importance"):
        raise ModelError(f"weights must be 'uniform' or 'importance', got {weights!r}.")
    if num_samples < 1:
        raise ModelError(f"n_samples must be at least 1, got {num_samples}.")
    module, interventions = model.module, [in_batch(code) for code in batches]

    def make_story(minibatch: Minibatch) -> Story:
        def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
            if weights == "importance":
                latents = resampled_latents(module, minibatch, values, NUM_PROPOSALS)
            else:
                latents = latent_values(guide_trace(module, minibatch, values))
            decoded = []
            for code, intervene in zip(batches, interventions, strict=True):
                seen, drawn = intervene(minibatch), latents
                if code is not None:
                    drawn = intervened_latents(module, seen, latents)
                trace = model_trace(module, seen, drawn, predictive=predictive)
                decoded.append(read(trace.nodes))
            if len(decoded) == 1:
                return decoded[0]
            return {k: torch.stack([d[k] for d in decoded]).mean(0) for k in decoded[0]}

        return story

    def loader(size: int) -> AnnDataLoader:
        return AnnDataLoader(manager, positions, batch_size=size, n_obs=model.n_obs_training)

    sites = dict(model.sites)
    held = num_samples * (NUM_PROPOSALS if weights == "importance" else 1)
    size = bounded_batch_size(sites.values(), held, batch_size or settings.batch_size)
    for _, values in stream_query(
        module,
        loader,
        make_story,
        posterior_globals(model, num_samples, seed, manager),
        sites,
        num_draws=num_samples,
        batch_size=size,
        seed=seed,
    ):
        yield values


def collect_decoded(
    model: BaseModelClass,
    read: Reader,
    manager: AnnDataManager,
    rows: NDArray[np.int64],
    *,
    average: bool,
    **options: Any,
) -> dict[str, NDArray[Any]]:
    """What :func:`stream_decoded` reads of all cells; the mean of the draws, or all of them."""
    parts: dict[str, list[NDArray[Any]]] = {}
    for values in stream_decoded(model, read, manager, rows, **options):
        for name, value in values.items():
            drawn = value.mean(0) if average else value
            parts.setdefault(name, []).append(drawn.cpu().numpy())
    return {name: np.concatenate(blocks, axis=-2) for name, blocks in parts.items()}


def read_sites(sites: Sequence[str], genes: NDArray[np.int64] | None = None) -> Reader:
    """Reader of the values of sites, at some genes."""

    def read(nodes: Mapping[str, Any]) -> dict[str, Tensor]:
        values = {name: nodes[name]["value"] for name in sites}
        if genes is None:
            return values
        return {name: at_positions(value, genes) for name, value in values.items()}

    return read


def at_positions(values: Tensor, positions: NDArray[np.int64]) -> Tensor:
    """Some features of each cell."""
    return values[..., torch.as_tensor(positions, device=values.device)]


def likelihood_of(nodes: Mapping[str, Any], site: str = REGISTRY_KEYS.X_KEY) -> Any:
    """Distribution of single counts at an observed site."""
    fn = nodes[site]["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn
