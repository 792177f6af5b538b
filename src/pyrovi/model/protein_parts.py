"""Names of proteins, their denoised values, and where they were not measured."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data import AnnDataManager
from pyrovi.data.registry import registry_state
from pyrovi.errors import MissingKeyError, ModelError

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

PROTEINS = REGISTRY_KEYS.PROTEIN_EXP_KEY


def protein_names(model: BaseModelClass) -> pd.Index:
    """Names of the proteins, in the order the model knows them."""
    return pd.Index(registry_state(model.registry, PROTEINS)["column_names"])


def protein_positions(
    model: BaseModelClass, protein_list: Sequence[str] | None
) -> NDArray[np.int64]:
    """Positions of proteins, in the order asked for.

    Raises
    ------
    MissingKeyError
        If a protein is not known.
    ModelError
        If the list is empty.
    """
    names = protein_names(model)
    if protein_list is None:
        return np.arange(len(names))
    asked = [protein_list] if isinstance(protein_list, str) else list(protein_list)
    if unknown := [name for name in asked if name not in names]:
        raise MissingKeyError(
            f"{unknown[0]!r} is no protein of this model. Its proteins: {', '.join(names)}; name "
            "some of these in protein_list."
        )
    if not asked:
        raise ModelError("protein_list is empty; pass None for all proteins.")
    return names.get_indexer(pd.Index(asked)).astype(np.int64)


def protein_expression(
    nodes: Mapping[str, Any],
    *,
    sample_mixing: bool = False,
    scale: bool = False,
    include_background: bool = False,
) -> Tensor:
    """Denoised protein of each cell, from the nodes of a model trace.

    See :func:`~pyrovi.model.proteins.get_normalized_expression` for the options.
    """
    pi, beta, alpha = (nodes[name]["value"] for name in ("pi", "beta", "alpha"))
    is_background = torch.bernoulli(pi) if sample_mixing else pi
    value = (1 - is_background) * alpha * beta
    if include_background:
        value = value + is_background * beta
    # where all are background, there is nothing to share out
    return torch.nn.functional.normalize(value, p=1, dim=-1) if scale else value


def warn_unmeasured(
    model: BaseModelClass,
    manager: AnnDataManager,
    positions: NDArray[np.int64],
    codes: Sequence[int | None],
    proteins: NDArray[np.int64],
) -> None:
    """Warn of proteins that are decoded in a batch in which they were not measured."""
    module: Any = model.module
    if not module.lacks_proteins:
        return
    own = np.asarray(manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY))[:, 0].astype(np.int64)
    trained = module.measured.cpu().numpy()
    if "panel" in model.registry["field_registries"]:
        panel = np.asarray(manager.get_from_registry("panel"))[:, 0].astype(np.int64)
        by_batch = np.zeros((module.n_batch, trained.shape[1]), dtype=bool)
        for batch, code in np.unique(np.stack([own, panel], 1), axis=0):
            by_batch[batch] |= trained[code]
        trained = by_batch
    used = np.unique(own[positions]) if list(codes) == [None] else np.asarray(codes, dtype=np.int64)
    names = registry_state(model.registry, REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"]
    for batch in used:
        lacking = protein_names(model)[proteins[~trained[batch, proteins]]]
        if not len(lacking):
            continue
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        full = [str(names[b]) for b in range(len(names)) if trained[b, proteins].all()]
        warnings.warn(
            f"{', '.join(lacking[:3])}{more} were not measured in the batch {names[batch]!s}: what "
            "is decoded for them there rests on no data. To impute them, decode in a batch that "
            f"has them: transform_batch= one of {full or 'the batches that have them'}.",
            UserWarning,
            stacklevel=3,
        )
