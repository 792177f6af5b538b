"""Chains: the fits a model holds. Restarts of SVI, or the chains of MCMC, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


def num_chains(model: BaseModelClass) -> int:
    """Number of fits: restarts of SVI, chains of MCMC, otherwise one."""
    if model.module.posterior is not None:
        return int(getattr(model.module.posterior, "num_chains", 1))
    return max(1, len(model._restarts))


@contextmanager
def in_chain(model: BaseModelClass, chain: int) -> Iterator[None]:
    """Let queries see one of the fits only; what the model holds returns on exit.

    Parameters
    ----------
    model
        The model.
    chain
        Position of the fit, from 0.
    """
    posterior: Any = model.module.posterior
    if posterior is not None:
        with posterior.only_chain(chain) if num_chains(model) > 1 else nullcontext():
            yield
        return
    if not model._restarts:
        yield
        return
    before = {name: value.detach().clone() for name, value in model.module.state_dict().items()}
    try:
        _load(model, model._restarts[chain])
        yield
    finally:
        _load(model, before)


def _load(model: BaseModelClass, state: dict[str, torch.Tensor]) -> None:
    model.module.load_state_dict(state)
