"""Query mapping: a fitted reference taken to new data, of which only the new parts are trained.

Architecture surgery (scArches): the categories that the query brings (batches, covariates) get
columns, vectors and parameters of their own; everything the reference has learnt stays.

References
----------
Lotfollahi et al.: Mapping single-cell data to reference atlases by transfer learning. Nature
Biotechnology 40, 121-130 (2022).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from pyrovi._rng import stream
from pyrovi.errors import ModelError
from pyrovi.model.persistence import load_without_data
from pyrovi.model.setup import AnyData, transferred_manager
from pyrovi.nn import BatchNorm, CovariateLinear, Embedding, FCLayers
from pyrovi.nn import freezing as nn_freezing

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

Model = TypeVar("Model", bound="BaseModelClass")


@dataclass(frozen=True)
class _Freezing:
    """What the user lets train; see :func:`load_query_data`."""

    expression: bool
    decoder_first_layer: bool
    batchnorm_encoder: bool
    batchnorm_decoder: bool

    def releases(self, root: nn.Module) -> Iterator[str]:
        """Paths of the layers that are trained as a whole."""
        for path, module in root.named_modules():
            first = f"{path}.layers.0.linear"
            if isinstance(module, FCLayers) and self._released(
                path, self.expression, self.decoder_first_layer
            ):
                yield first
            if isinstance(module, BatchNorm) and not self.freezes_norm(path):
                yield path

    def freezes_norm(self, path: str) -> bool:
        """Whether a batch norm keeps its statistics, scale and shift."""
        return not self._released(path, self.batchnorm_encoder, self.batchnorm_decoder)

    @staticmethod
    def _released(path: str, encoder: bool, decoder: bool) -> bool:
        return ("encoder" in path and not encoder) or ("decoder" in path and not decoder)


def load_query_data(
    cls: type[Model],
    adata: AnyData,
    reference_model: str | Path | BaseModelClass,
    *,
    inplace_subset_query_vars: bool = False,
    unfrozen: bool = False,
    freeze_dropout: bool = False,
    freeze_expression: bool = True,
    freeze_decoder_first_layer: bool = True,
    freeze_batchnorm_encoder: bool = True,
    freeze_batchnorm_decoder: bool = False,
    device: str | torch.device = "auto",
) -> Model:
    """Model of new data that goes on from a fitted reference.

    Categories that the reference does not know are added to its registry, and what depends on them
    (columns of the layers that see covariates, embedding vectors, dispersions per batch) is
    initialised anew. Training the model moves these, and nothing of the reference but what is
    unfrozen: no optimiser, whatever its weight decay, can move a frozen weight.

    Parameters
    ----------
    adata
        The new data, with the variables of the reference in its order (see
        :meth:`prepare_query_anndata`) and the columns that the reference was set up with. Nothing
        is written into it.
    reference_model
        The reference, or the folder it was saved to.
    inplace_subset_query_vars
        Subset ``adata`` in place to the variables of the reference, in its order.
    unfrozen
        Train everything; the other options are not used then, except ``freeze_dropout``.
    freeze_dropout
        Train without dropout.
    freeze_expression
        Freeze what the first layer of each encoder makes of the expression. If not, that layer is
        trained as a whole.
    freeze_decoder_first_layer
        The same for the first layer of each decoder.
    freeze_batchnorm_encoder, freeze_batchnorm_decoder
        Freeze the statistics, scales and shifts of the batch norms.
    device
        Where to put the model.

    Returns
    -------
    BaseModelClass
        A model of the class, not trained on the query yet. Without new categories it encodes
        observations exactly as the reference does.

    Raises
    ------
    ModelError
        If the reference is of another class, or a parameter cannot be widened.
    RegistryError
        If variables are missing or in another order.
    """
    reference = _reference(cls, reference_model)
    if inplace_subset_query_vars:
        adata._inplace_subset_var(list(reference.var_names))
    manager = transferred_manager(
        cls, adata, reference.registry, extend_categories=True, allow_missing_labels=True
    )
    query = cls(manager, **copy.deepcopy(reference._init_arguments))
    with stream("init", "query"):
        widened = _take_over(query.module, reference.module)
    if freeze_dropout:
        nn_freezing.freeze_dropout(query.module)
    if not unfrozen:
        freezing = _Freezing(
            freeze_expression,
            freeze_decoder_first_layer,
            freeze_batchnorm_encoder,
            freeze_batchnorm_decoder,
        )
        _freeze(query.module, widened, freezing)
    query.to_device(device)
    return query


def _reference(
    cls: type[Model], reference_model: str | Path | BaseModelClass
) -> Model | BaseModelClass:
    reference: Any = reference_model
    if isinstance(reference_model, str | Path):
        reference = load_without_data(reference_model)
    if not isinstance(reference, cls):
        raise ModelError(
            f"The reference is a {type(reference).__name__}, not a {cls.__name__}; use "
            f"{type(reference).__name__}.load_query_data, or another reference."
        )
    return reference


# ---------------------------------------------------------------------- widening


@dataclass(frozen=True)
class _Widened:
    """A parameter that has more slices along one axis than that of the reference."""

    axis: int
    old: list[int]
    """Positions of the slices of the reference."""


def _take_over(module: nn.Module, reference: nn.Module) -> dict[str, _Widened]:
    """Give a module the weights of the reference; what is wider keeps its initialisation there.

    Returns
    -------
    dict
        The parameters (or, for an embedding, its path) that are wider.
    """
    widened: dict[str, _Widened] = {}
    rows = set(getattr(module, "row_parameters", ()))
    embeddings = [p for p, part in module.named_modules() if isinstance(part, Embedding)]
    for path in embeddings:
        old, new = reference.get_submodule(path), module.get_submodule(path)
        assert isinstance(old, Embedding)
        assert isinstance(new, Embedding)
        added = new.num_embeddings - old.num_embeddings
        parent, _, leaf = path.rpartition(".")
        vectors = old.extend(added, freeze_prev=False)
        merged = Embedding(vectors.num_embeddings, vectors.embedding_dim)
        with torch.no_grad():
            merged.trainable.copy_(vectors.weight)
        setattr(module.get_submodule(parent), leaf, merged)
        widened[path] = _Widened(0, list(range(old.num_embeddings)))
    inside = tuple(f"{path}." for path in embeddings)
    with torch.no_grad():
        for name, target in [*module.named_parameters(), *module.named_buffers()]:
            if name in rows or (inside and name.startswith(inside)):
                continue  # rows belong to the observations, which are others
            wider = _copy(name, target, module, reference)
            if wider is not None:
                widened[name] = wider
    return widened


def _copy(name: str, target: Tensor, module: nn.Module, reference: nn.Module) -> _Widened | None:
    path, _, leaf = name.rpartition(".")
    source = getattr(reference.get_submodule(path), leaf).detach().to(target.device)
    if source.shape == target.shape:
        target.copy_(source)
        return None
    layer = module.get_submodule(path)
    if isinstance(layer, CovariateLinear) and leaf == "weight":
        old = reference.get_submodule(path)
        assert isinstance(old, CovariateLinear)
        return _copy_columns(target, source, layer, old)
    different = [
        axis for axis, (n, m) in enumerate(zip(target.shape, source.shape, strict=False)) if n != m
    ]
    if target.ndim != source.ndim or len(different) != 1 or target.numel() < source.numel():
        raise ModelError(
            f"{name!r} has the shape {tuple(source.shape)} in the reference and "
            f"{tuple(target.shape)} for the query. Expected it to grow along one axis, that of the "
            "categories: this model cannot be taken to these data; train a new one."
        )
    axis, size = different[0], source.shape[different[0]]
    target.narrow(axis, 0, size).copy_(source)
    return _Widened(axis, list(range(size)))


def _copy_columns(
    target: Tensor, source: Tensor, layer: CovariateLinear, old: CovariateLinear
) -> _Widened:
    """Copy features, known categories and continuous covariates to where they are now."""
    known = list(range(layer.n_in))
    target[:, : layer.n_in] = source[:, : layer.n_in]
    at, was = layer.n_in, layer.n_in
    for n_now, n_was in zip(layer.n_cat_list, old.n_cat_list, strict=True):
        # a single category has no column: its effect is zero, and stays so
        n_known = max(n_was, 1) if n_now else 0
        target[:, at : at + n_known] = source[:, was : was + n_was] if n_was else 0.0
        known += range(at, at + n_known)
        at, was = at + n_now, was + n_was
    target[:, at:] = source[:, was:]
    return _Widened(1, known + list(range(at, target.shape[1])))


# ---------------------------------------------------------------------- freezing


def _freeze(module: nn.Module, widened: Mapping[str, _Widened], freezing: _Freezing) -> None:
    """Freeze all that the reference has learnt, apart from what is released."""
    released = tuple(f"{path}." for path in freezing.releases(module))
    rows = set(getattr(module, "row_parameters", ()))
    norms = [path for path, part in module.named_modules() if isinstance(part, BatchNorm)]
    for name, parameter in list(module.named_parameters()):
        if name in rows or (released and name.startswith(released)):
            continue
        path = name.rpartition(".")[0]
        if path in widened:  # an embedding
            continue
        if name in widened:
            nn_freezing.freeze_slices(module, name, widened[name].axis, widened[name].old)
        else:
            parameter.requires_grad_(False)
    for path, part in list(module.named_modules()):
        if isinstance(part, Embedding):
            nn_freezing.freeze_vectors(module, path, len(widened[path].old))
    for path in norms:
        if freezing.freezes_norm(path):
            nn_freezing.freeze_batch_norm(module, path)
