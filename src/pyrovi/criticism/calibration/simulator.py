"""Observations simulated from a fitted model, and draws of its guide given what was simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovi.data import AnnDataManager
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.model.draws import posterior_globals
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.ledger import Role
from pyrovi.posterior.density import observation_density
from pyrovi.posterior.discrete import DiscreteTable, enumerates
from pyrovi.posterior.engine import ELEMENT_BUDGET, draws_at_once
from pyrovi.posterior.observed import observed_tensors, with_data
from pyrovi.posterior.own_data import refuse_own_data
from pyrovi.posterior.prior_draws import check_prior_draws
from pyrovi.posterior.stories import guide_trace, latent_values, model_trace, values_of
from pyrovi.posterior.vectorise import DrawMapper

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

LIKELIHOOD, JOINT = "log p(x | z)", "log p(x, z)"
DENSITIES = (LIKELIHOOD, JOINT)
"""Test quantities that depend on the data."""

ROUNDING = 1e-5
"""Log densities that differ by less, relative to their size, are equal: of equal discrete latents
they differ by rounding."""

_TENSOR = "_tensor "


def rank(
    truth: Tensor, draws: Tensor, rng: np.random.Generator, tolerance: float = 0.0
) -> NDArray[np.int64]:
    """Number of draws below the truth; those equal to it fall on either side at random.

    Parameters
    ----------
    truth
        Shape ``(M, ...)``.
    draws
        Shape ``(M, L, ...)``.
    rng
        Breaks ties.
    tolerance
        Difference relative to the truth (at least 1) up to which values are equal.
    """
    difference = draws.double() - truth.double()[:, None]
    margin = tolerance * truth.double().abs().clamp_min(1.0)[:, None]
    below = (difference < -margin).sum(1).cpu().numpy()
    equal = (difference.abs() <= margin).sum(1).cpu().numpy()
    return np.asarray(below + rng.integers(0, equal + 1), dtype=np.int64)


class Simulator:
    """Simulates the observations of a minibatch and draws from the guide given what was simulated.

    With global latents every observation has values of its own for them, and so is a minibatch of
    one: observations that share a draw of the globals would not have independent ranks under a
    guide whose local part averages over the globals. Without, they run together.

    Parameters
    ----------
    model, manager
        The model, and the data that the covariates are taken from.
    names
        Local sites to return.
    num_draws
        Draws ``L`` of the guide for each observation.
    """

    def __init__(
        self, model: BaseModelClass, manager: AnnDataManager, names: list[str], num_draws: int
    ) -> None:
        self.model, self.manager = model, manager
        self.module: PyroBaseModule = model.module
        self.names, self.num_draws = names, num_draws
        self.ledger = model.sites
        self.globals = self.ledger.names(Role.GLOBAL)
        self._mapper = DrawMapper(self.module)
        self._keys: dict[str, str] | None = None
        fields = model.registry["field_registries"].items()
        self._per_row = [k for k, f in fields if f["tensor"] and f["tensor"]["axis"] == "obs"]

    def batch_size(self, wanted: int) -> int:
        """Batch size that keeps what belongs to all draws of a minibatch within the budget."""
        sites = [s for s in self.ledger.values() if s.is_local or s.role is Role.GLOBAL]
        sizes = [math.prod(n for n in s.shape if isinstance(n, int)) for s in sites]
        return max(1, min(wanted, ELEMENT_BUDGET // (self.num_draws * max(1, sum(sizes)))))

    def __call__(
        self, minibatch: Minibatch, given: Mapping[str, Any] | None, seed: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Truth of shape ``(n, ...)`` and draws of shape ``(n, L, ...)``, by quantity."""
        if self._keys is None:
            check_prior_draws(self.ledger, self.globals)
            self._keys = observed_tensors(self.module, minibatch)
            first = self._global_draws(given, 1, seed) if self.globals else {}
            values = {name: first[name][0] for name in self.globals}
            refuse_own_data(self.module, minibatch, values, self._keys)
        if not self.globals:
            return self._together(minibatch)
        return self._one_by_one(minibatch, self._global_draws(given, minibatch.n, seed))

    def _together(self, minibatch: Minibatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        chunk = draws_at_once(self.module, minibatch.n)
        simulated = self._mapper(lambda values: self._simulate(minibatch, values), {}, 1)
        seen = self._with(minibatch, {k: v[0] for k, v in simulated.items()})
        draws = self._mapper(lambda v: self._infer(seen, v), {}, self.num_draws, chunk)
        truth = {name: self._rows_first(name, simulated[name][0], 0) for name in draws}
        return truth, {n: self._rows_first(n, v, 1).transpose(0, 1) for n, v in draws.items()}

    def _one_by_one(
        self, minibatch: Minibatch, globals_: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        n, count = minibatch.n, self.num_draws
        chunk = draws_at_once(self.module, 1)
        given = globals_ | {_TENSOR + key: minibatch[key][:, None] for key in self._per_row}
        simulated = self._mapper(
            lambda values: self._simulate(self._row(minibatch, values), values), given, n, chunk
        )
        assert self._keys is not None
        for site, key in self._keys.items():
            shape, dtype = given[_TENSOR + key].shape, given[_TENSOR + key].dtype
            given[_TENSOR + key] = simulated[site].reshape(shape).to(dtype)
        draws = self._mapper(
            lambda values: self._infer(self._row(minibatch, values), values),
            {name: value.repeat_interleave(count, 0) for name, value in given.items()},
            n * count,
            chunk,
        )
        truth = {name: self._rows_first(name, simulated[name], 1)[:, 0] for name in draws}
        return truth, {
            name: self._rows_first(name, v, 1)[:, 0].unflatten(0, (n, count))
            for name, v in draws.items()
        }

    def _simulate(self, minibatch: Minibatch, values: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {name: values[name] for name in self.globals}
        trace = model_trace(self.module, minibatch, given, predictive=True)
        assert self._keys is not None
        return values_of(trace, [*self.names, *self._keys]) | _densities(trace, minibatch)

    def _infer(self, minibatch: Minibatch, values: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {name: values[name] for name in self.globals}
        latents = given | latent_values(guide_trace(self.module, minibatch, given))
        if enumerates(self.module, latents):
            latents |= DiscreteTable(self.module, minibatch, latents).draw()
        trace = model_trace(self.module, minibatch, latents)
        return values_of(trace, self.names) | _densities(trace, minibatch)

    def _with(self, minibatch: Minibatch, values: Mapping[str, Tensor]) -> Minibatch:
        assert self._keys is not None
        return with_data(minibatch, values, self._keys)

    def _row(self, minibatch: Minibatch, values: Mapping[str, Tensor]) -> Minibatch:
        own = {key: values[_TENSOR + key] for key in self._per_row}
        return minibatch.replace(
            tensors={**minibatch.tensors, **own}, indices=minibatch.indices[:1]
        )

    def _rows_first(self, name: str, value: Tensor, leading: int) -> Tensor:
        """Move the axis of the observations to behind ``leading`` axes of draws."""
        axis = -1 if name in DENSITIES else self.ledger[name].obs_axis
        assert axis is not None
        return value.movedim(axis, leading)

    def _global_draws(
        self, given: Mapping[str, Any] | None, n: int, seed: int
    ) -> dict[str, Tensor]:
        draws = dict(posterior_globals(self.model, n, seed, self.manager))
        if given is None:
            return draws
        if missing := [name for name in self.globals if name not in given]:
            raise ModelError(
                f"globals_ has no value of {', '.join(missing)}; give one for each global site "
                f"({', '.join(self.globals)}), or None to draw them from the posterior."
            )
        return {
            name: torch.as_tensor(given[name], dtype=value.dtype, device=value.device)
            .reshape(value.shape[1:])
            .expand_as(value)
            for name, value in draws.items()
        }


def _densities(trace: Any, minibatch: Minibatch) -> dict[str, Tensor]:
    likelihood = observation_density(trace, minibatch, observed=True)
    prior = observation_density(trace, minibatch)
    return {LIKELIHOOD: likelihood, JOINT: likelihood + prior}
