"""Plates: the minibatch in scope and the observation plate made from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pyro

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError

OBS_PLATE = "obs"
"""Name of the observation plate, and of its dimension in every labelled result."""

_Scope = tuple[Minibatch, dict[int, "ObsPlate"], dict[tuple[str, int, int | None], pyro.plate]]
"""A minibatch, and the plates that have been opened in this run: those of the observations by
dimension, the others by name, size and dimension."""

_IN_SCOPE: ContextVar[_Scope | None] = ContextVar("pyrovi_minibatch", default=None)


@contextmanager
def minibatch_scope(minibatch: Minibatch) -> Iterator[None]:
    """Make a minibatch the one that :func:`obs_plate` reads."""
    token = _IN_SCOPE.set((minibatch, {}, {}))
    try:
        yield
    finally:
        _IN_SCOPE.reset(token)


def _scope() -> _Scope:
    scope = _IN_SCOPE.get()
    if scope is None:
        raise ModelError(
            "There is no minibatch in scope: obs_plate() can only be opened, and a guide by name "
            "can only run, inside a model or guide that pyrovi runs. To run one by hand, wrap "
            "the call in `with pyrovi.module.minibatch_scope(minibatch):`"
        )
    return scope


def current_minibatch() -> Minibatch:
    """The minibatch in scope.

    Raises
    ------
    ModelError
        If there is none.
    """
    return _scope()[0]


class ObsPlate(pyro.plate):
    """Plate over the observations of the minibatch in scope.

    ``pyro.plate("obs", size=N, subsample=indices)`` with one difference: parameters and
    ``pyro.subsample`` values that have one row per *registered* observation are always indexed by
    the observations of the minibatch. Pyro's plate compares that number of rows with ``N``, which
    is the number of *training* observations, and skips the indexing when the minibatch is full,
    which would pair shuffled observations with the rows of others.
    """

    def _postprocess_message(self, msg: Any) -> None:
        if msg["type"] not in ("param", "subsample") or self.dim is None:
            return
        event_dim = msg["kwargs"].get("event_dim")
        if event_dim is None:
            return
        value, dim = msg["value"], self.dim - event_dim
        if value.dim() < -dim or value.shape[dim] == 1:
            return
        msg["value"] = value.index_select(dim, self._indices)


def obs_plate(dim: int = -1) -> ObsPlate:
    """Open the observation plate: size, subsample and scale come from the minibatch in scope.

    Parameters
    ----------
    dim
        Batch dimension of the plate, negative.

    Returns
    -------
    ObsPlate
        Context manager. Log densities of sites inside are scaled by ``N / n``, where ``N`` is the
        number of training observations and ``n`` the size of the minibatch.

    Raises
    ------
    ModelError
        If no minibatch is in scope, if ``dim`` is not negative, or if the guide has opened another
        plate of this name.
    """
    if not isinstance(dim, int) or dim >= 0:
        raise ModelError(
            f"obs_plate({dim!r}): expected a batch dimension, counted from the right: -1, -2, ... "
            "The number of observations is not given to it: size and indices come from the "
            "minibatch."
        )
    minibatch, plates, _ = _scope()
    if dim in plates:  # a story may open the plate as often as it likes
        return plates[dim]
    indices = minibatch.indices
    opened = ObsPlate(
        OBS_PLATE, size=minibatch.n_obs, subsample=indices, dim=dim, device=str(indices.device)
    )
    if opened._indices is not indices:
        # The plate's indices are a Pyro site: a guide's replace those of the model.
        raise ModelError(
            f"The guide opens a plate of its own named {OBS_PLATE!r}, with indices other than "
            "those of the minibatch, so observations would be paired with the wrong rows. Use "
            "`with pv.obs_plate():` in the guide; an automatic guide inside "
            "another guide needs `create_plates=lambda *_, **__: pv.obs_plate()`."
        )
    plates[dim] = opened
    return opened


def plate(name: str, size: int, dim: int | None = None) -> pyro.plate:
    """A plate over ``size`` independent copies; ``name`` is its dimension in labelled results.

    Parameters
    ----------
    name
        Name of the plate. ``"var"`` and the other dimensions known to the registry take the data's
        own names as coordinates.
    size
        Number of copies.
    dim
        Batch dimension, negative; ``None`` lets Pyro choose.

    Raises
    ------
    ModelError
        If the name is that of the observation plate.
    """
    if name == OBS_PLATE:
        raise ModelError(
            f"The plate name {OBS_PLATE!r} belongs to the observations: use obs_plate() instead."
        )
    scope = _IN_SCOPE.get()
    if scope is None:
        return pyro.plate(name, size, dim=dim)
    # the same plate again: a story may open it as often as it likes
    key = (name, size, dim)
    if key not in scope[2]:
        scope[2][key] = pyro.plate(name, size, dim=dim)
    return scope[2][key]
