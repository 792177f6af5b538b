"""Freezing parts of a network: some columns of a weight, batch norms, whole parameters.

A frozen part is no parameter any more but a buffer, so no optimiser can move it, whatever its
weight decay or momentum. What is frozen can be described as JSON and applied to another network of
the same architecture: that is how it survives saving.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from pyrovi.errors import ModelError
from pyrovi.nn.covariates import Embedding
from pyrovi.nn.layers import BatchNorm

_KINDS = ("slices", "vectors", "batch_norms", "dropouts", "parameters")


class _PartlyFrozen(nn.Module):
    """Puts a tensor together from its frozen and its trainable slices along one axis."""

    frozen: Tensor
    trainable: Tensor
    order: Tensor

    def __init__(self, whole: Tensor, axis: int, frozen: Sequence[int]) -> None:
        super().__init__()
        size = whole.shape[axis]
        is_frozen = torch.zeros(size, dtype=torch.bool, device=whole.device)
        is_frozen[list(frozen)] = True
        positions = torch.cat([is_frozen.nonzero()[:, 0], (~is_frozen).nonzero()[:, 0]])
        self.axis, self.positions = axis, sorted(frozen)
        self.register_buffer("frozen", whole.detach()[_slices(axis, is_frozen)].clone())
        # these follow from the description of what is frozen
        self.register_buffer("trainable", (~is_frozen).nonzero()[:, 0], persistent=False)
        self.register_buffer("order", positions.argsort(), persistent=False)

    def forward(self, trainable: Tensor) -> Tensor:
        return torch.cat([self.frozen, trainable], self.axis).index_select(self.axis, self.order)

    def right_inverse(self, whole: Tensor) -> Tensor:
        return whole.detach().index_select(self.axis, self.trainable).clone()


def _slices(axis: int, which: Tensor) -> tuple[Any, ...]:
    return (*[slice(None)] * axis, which)


class FrozenBatchNorm(BatchNorm):
    """Batch normalisation by running statistics, in training too, which leaves them as they are."""

    @classmethod
    def of(cls, norm: BatchNorm) -> Self:
        """Frozen copy of a batch norm."""
        frozen = cls(norm.num_features).to(norm.weight.device)
        frozen.load_state_dict(norm.state_dict())
        frozen.requires_grad_(False)
        return frozen.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``(..., n_features)``."""
        flat = x.reshape(-1, x.shape[-1])
        result = functional.batch_norm(
            flat, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
        return result.reshape(x.shape)


def freeze_slices(root: nn.Module, name: str, axis: int, frozen: Sequence[int]) -> None:
    """Freeze some slices of a parameter; the others go on being trained.

    The attribute still gives the whole tensor; in ``state_dict`` it is in two parts.

    Parameters
    ----------
    root
        The network.
    name
        Name of the parameter, as in ``root.named_parameters()``.
    axis
        Axis along which slices are counted.
    frozen
        Positions of the slices to freeze.
    """
    path, _, leaf = name.rpartition(".")
    owner = root.get_submodule(path)
    whole = getattr(owner, leaf)
    training = owner.training
    parametrize.register_parametrization(owner, leaf, _PartlyFrozen(whole, axis, frozen))
    owner.train(training)


def freeze_batch_norm(root: nn.Module, name: str) -> None:
    """Freeze the scale, shift and running statistics of a batch norm; ``name`` is its path."""
    norm = root.get_submodule(name)
    if not isinstance(norm, BatchNorm):
        raise ModelError(f"{name!r} is a {type(norm).__name__}, no batch norm of pyrovi.")
    _replace(root, name, FrozenBatchNorm.of(norm))


def freeze_vectors(root: nn.Module, name: str, n_frozen: int) -> None:
    """Freeze the first ``n_frozen`` vectors of an :class:`Embedding`; ``name`` is its path."""
    embedding = root.get_submodule(name)
    if not isinstance(embedding, Embedding):
        raise ModelError(f"{name!r} is a {type(embedding).__name__}, no embedding of pyrovi.")
    vectors = embedding.weight.detach()
    frozen = Embedding(len(vectors), embedding.embedding_dim, n_frozen).to(vectors.device)
    frozen.frozen.copy_(vectors[:n_frozen])
    with torch.no_grad():
        frozen.trainable.copy_(vectors[n_frozen:])
    _replace(root, name, frozen.train(embedding.training))


def freeze_dropout(root: nn.Module) -> None:
    """Set the rate of all dropout layers to zero."""
    for module in root.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(path), leaf, module)


def describe_freezing(root: nn.Module) -> dict[str, Any]:
    """What is frozen in a network, as JSON; an empty dictionary if nothing is.

    Returns
    -------
    dict
        ``slices`` (parameter -> axis and positions), ``vectors`` (embedding -> number),
        ``batch_norms`` and ``dropouts`` (paths), ``parameters`` (names).
    """
    description: dict[str, Any] = {kind: [] for kind in _KINDS} | {"slices": {}, "vectors": {}}
    for path, module in root.named_modules():
        if parametrize.is_parametrized(module):
            chains: Any = module.parametrizations
            for leaf, chain in chains.items():
                if isinstance(part := chain[0], _PartlyFrozen):
                    name = f"{path}.{leaf}" if path else leaf
                    description["slices"][name] = {"axis": part.axis, "frozen": part.positions}
        if isinstance(module, Embedding) and len(module.frozen):
            description["vectors"][path] = len(module.frozen)
        if isinstance(module, FrozenBatchNorm):
            description["batch_norms"].append(path)
        if isinstance(module, nn.Dropout) and module.p == 0:
            description["dropouts"].append(path)
    norms = tuple(f"{path}." for path in description["batch_norms"])
    description["parameters"] = [
        name
        for name, parameter in root.named_parameters()
        if not parameter.requires_grad and not (norms and name.startswith(norms))
    ]
    return {kind: value for kind, value in description.items() if value}


def apply_freezing(root: nn.Module, description: Mapping[str, Any]) -> None:
    """Freeze in a network what :func:`describe_freezing` has found in another.

    Raises
    ------
    ModelError
        If the network has no part of a given name.
    """
    try:
        for name, part in description.get("slices", {}).items():
            freeze_slices(root, name, part["axis"], part["frozen"])
        for name, n_frozen in description.get("vectors", {}).items():
            freeze_vectors(root, name, n_frozen)
        for name in description.get("batch_norms", ()):
            freeze_batch_norm(root, name)
        for name in description.get("dropouts", ()):
            root.get_submodule(name).p = 0.0  # type: ignore[assignment]
        for name in description.get("parameters", ()):
            root.get_parameter(name).requires_grad_(False)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ModelError(
            f"The description of what is frozen does not fit the network: {error}. Expected the "
            "description of a network with the same architecture."
        ) from error
