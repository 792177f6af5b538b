"""Posteriors that stand in the place of a guide: stored draws, and a normal approximation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import biject_to

from pyrovi.errors import ModelError
from pyrovi.module.ledger import SiteLedger
from pyrovi.module.local_proposal import LocalProposal, match, whiten
from pyrovi.module.plates import current_minibatch, obs_plate

DRAW = "_draw"
"""Auxiliary site: which of the stored draws it is. It makes globals and locals joint."""

ROWS = "_stored_rows"
"""Tensor of a minibatch: row of each observation in the stored local draws, -1 for none."""

_AUXILIARY: Any = {"is_auxiliary": True}


@dataclass(frozen=True)
class _Proposal:
    """What was matched to the draws of some rows: many draws are weighed by it."""

    rows: Tensor
    proposal: LocalProposal
    shapes: dict[str, tuple[tuple[int, ...], int]]


class StoredDraws(PyroModule):
    """Draws of all latent sites, e.g. of MCMC: a posterior that is asked by number.

    Parameters
    ----------
    values
        Site -> draws of shape ``(chain, draw, *shape)``; all with the same number of both.
    obs_axes
        Local site -> axis of the observations in its values, counted from the right.
    obs_names
        Names of the observations that local draws belong to, in their order.
    statistics
        Name -> what is known of each draw, of shape ``(chain, draw)``, or of all of them.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        obs_axes: Mapping[str, int] | None = None,
        obs_names: Sequence[str] = (),
        statistics: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.names = tuple(values)
        self.obs_axes = dict(obs_axes or {})
        self.obs_names = tuple(obs_names)
        for position, value in enumerate(values.values()):
            self.register_buffer(f"value_{position}", value.contiguous())
        for name, statistic in (statistics or {}).items():
            self.register_buffer(f"statistic_{name}", statistic.contiguous())
        self.statistic_names = tuple(statistics or {})
        shape = next(iter(values.values())).shape[:2] if values else torch.Size((1, 1))
        self.num_chains, self.num_draws = int(shape[0]), int(shape[1])
        self._chain: int | None = None
        self._ledger: SiteLedger | None = None
        self._globals: Tensor | None = None
        self._proposal: _Proposal | None = None

    def value(self, name: str) -> Tensor:
        """Draws of a site, of shape ``(chain, draw, *shape)``."""
        value: Tensor = self.get_buffer(f"value_{self.names.index(name)}")
        return value

    @property
    def statistics(self) -> dict[str, Tensor]:
        """What is known of the draws."""
        return {name: self.get_buffer(f"statistic_{name}") for name in self.statistic_names}

    @property
    def num_available(self) -> int:
        """Number of draws that queries choose from: of all chains, or of the one in use."""
        return self.num_draws * (self.num_chains if self._chain is None else 1)

    @contextmanager
    def only_chain(self, chain: int) -> Iterator[None]:
        """Let queries see the draws of one chain."""
        before, self._chain = self._chain, range(self.num_chains)[chain]
        try:
            yield
        finally:
            self._chain = before

    @contextmanager
    def proposing(self, ledger: SiteLedger) -> Iterator[None]:
        """Draw locals anew, from a density that importance weights can be taken of.

        For each observation a normal in unconstrained space, matched to its stored draws: given
        the globals if they are few enough, see :mod:`pyrovi.module.local_proposal`, and 20 % wider.
        """
        self._ledger = ledger
        try:
            yield
        finally:
            self._ledger = None

    # ------------------------------------------------------------------ choosing

    def choose(self, num_samples: int | None) -> Tensor:
        """Numbers of draws, evenly spread over those available, none of them twice.

        Parameters
        ----------
        num_samples
            How many; ``None`` for all. A single stored draw (a point estimate) may be asked for as
            often as one likes.

        Raises
        ------
        ModelError
            If there are not as many.
        """
        available = self.num_available
        wanted = available if num_samples is None else num_samples
        if wanted > available > 1:
            raise ModelError(
                f"{wanted} draws were asked for and {available} are stored "
                f"({self.num_chains if self._chain is None else 1} chain(s) of {self.num_draws}). "
                "Ask for at most as many (num_samples=None for all), or train with more "
                "(num_samples=, num_draws=)."
            )
        device = self.value(self.names[0]).device if self.names else None
        offset = 0 if self._chain is None else self._chain * self.num_draws
        return offset + torch.arange(wanted, device=device) * available // wanted

    def globals_of(self, draws: Tensor) -> dict[str, Tensor]:
        """Values of the global sites of some draws, by number, and the numbers."""
        chosen = {n: self._flat(n)[draws] for n in self.names if n not in self.obs_axes}
        return {**chosen, DRAW: draws}

    def forward(self) -> None:
        """Draw every site; given the number of the draw (as the value of its site), look it up."""
        offset = 0 if self._chain is None else self._chain * self.num_draws
        any_of = dist.Categorical(logits=torch.zeros(self.num_available))
        draw = pyro.sample(DRAW, any_of, infer=_AUXILIARY)
        if self._chain is not None:
            draw = offset + draw % self.num_draws
        for name in self.names:
            if name not in self.obs_axes:
                _point(name, self._flat(name)[draw])
        if not self.obs_axes:
            return
        rows = self._rows()
        if self._ledger is not None:
            self._propose(draw, rows, self._ledger)
            return
        for name, axis in self.obs_axes.items():
            value = self._flat(name)
            moved = value.movedim(axis, 1)[draw, rows]
            _point(name, moved.movedim(0, axis))

    def _flat(self, name: str) -> Tensor:
        return self.value(name).flatten(0, 1)

    def _rows(self) -> Tensor:
        minibatch = current_minibatch()
        if ROWS not in minibatch:
            raise ModelError(
                f"The local draws of {', '.join(self.obs_axes)} belong to observations by name, "
                "which this minibatch does not have. Use the queries of the model, or the "
                "minibatches of model.loader()."
            )
        rows = minibatch[ROWS]
        if bool((rows < 0).any()):
            unknown = int((rows < 0).sum())
            raise ModelError(
                f"There are no draws of {', '.join(map(repr, self.obs_axes))} for {unknown} of "
                f"these {len(rows)} observations: the model was fitted to "
                f"{len(self.obs_names)} observations ({', '.join(self.obs_names[:3])}, ...). "
                "Ask for those (indices=model.train_indices), or for global sites only. To predict "
                "new observations, leave what the story observes out of the data (a DataFrame or "
                "dict); their latents given outcomes take method='svi' and an amortised guide."
            )
        return rows

    # ------------------------------------------------------------------ proposals

    def _propose(self, draw: Tensor, rows: Tensor, ledger: SiteLedger) -> None:
        transforms = {name: biject_to(ledger[name].support) for name in self.obs_axes}
        proposal, shapes = self._matched(rows, transforms, ledger)
        with obs_plate():
            drawn = pyro.sample("_local", proposal.given(draw), infer=_AUXILIARY)
            start, density = 0, torch.zeros(len(rows), dtype=drawn.dtype, device=drawn.device)
            values = {}
            for name, (shape, axis) in shapes.items():
                stop = start + math.prod(shape)
                u = drawn[:, start:stop].reshape((len(rows), *shape)).movedim(0, axis)
                start = stop
                transform = transforms[name]
                values[name] = transform(u)
                log_det = transform.log_abs_det_jacobian(u, values[name])
                moved = log_det.movedim(axis + transform.domain.event_dim, 0)
                density = density - moved.reshape(len(rows), -1).sum(-1)
            jacobian = dist.Delta(torch.zeros_like(density), log_density=density)
            pyro.sample("_jacobian", jacobian, infer=_AUXILIARY)
        for name, value in values.items():
            _point(name, value)

    def _matched(
        self, rows: Tensor, transforms: Mapping[str, Any], ledger: SiteLedger
    ) -> tuple[LocalProposal, dict[str, tuple[tuple[int, ...], int]]]:
        """Proposals of a minibatch, and the shape and axis of each site in them."""
        if self._proposal is not None and self._proposal.rows is rows:
            return self._proposal.proposal, self._proposal.shapes
        parts, shapes = [], {}
        for name, axis in self.obs_axes.items():
            transform = transforms[name]
            u = transform.inv(self._flat(name).index_select(axis, rows))
            axis += transform.domain.event_dim - transform.codomain.event_dim
            moved = u.movedim(axis, 1)
            shapes[name] = (tuple(moved.shape[2:]), axis)
            parts.append(moved.flatten(2) if moved.dim() > 2 else moved[..., None])
        if self._globals is None:
            self._globals = whiten(self._unconstrained_globals(ledger))
        proposal = match(self._globals, torch.cat(parts, -1))
        self._proposal = _Proposal(rows, proposal, shapes)
        return proposal, shapes

    def _unconstrained_globals(self, ledger: SiteLedger) -> Tensor:
        """All draws, ``(S, p)``."""
        count = self.num_chains * self.num_draws
        parts = [
            biject_to(ledger[name].support).inv(self._flat(name)).reshape(count, -1)
            for name in self.names
            if name not in self.obs_axes
        ]
        like = self.value(self.names[0])
        return torch.cat(parts, -1) if parts else torch.zeros(count, 0).to(like)


def _point(name: str, value: Tensor) -> None:
    pyro.sample(name, dist.Delta(value, event_dim=value.dim()))


class NormalPosterior(PyroModule):
    """A normal distribution of all global sites together, in unconstrained space.

    Parameters
    ----------
    loc
        Mode, ``(dim,)``.
    scale_tril
        Cholesky factor of the covariance, ``(dim, dim)``.
    sites
        Site -> support and shape of the unconstrained value, in the order of the coordinates.
    """

    num_chains = 1

    def __init__(
        self, loc: Tensor, scale_tril: Tensor, sites: Mapping[str, tuple[Any, Sequence[int]]]
    ) -> None:
        super().__init__()
        self.register_buffer("loc", loc.contiguous())
        self.register_buffer("scale_tril", scale_tril.contiguous())
        self.names = tuple(sites)
        self.shapes = {name: tuple(shape) for name, (_, shape) in sites.items()}
        self._transforms = {name: biject_to(support) for name, (support, _) in sites.items()}

    def forward(self) -> None:
        """Draw every site, with the density of its value."""
        normal = dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril)
        drawn = pyro.sample("_unconstrained", normal, infer=_AUXILIARY)
        start = 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            u = drawn[start:stop].reshape(shape)
            start = stop
            transform = self._transforms[name]
            value = transform(u)
            density = -transform.log_abs_det_jacobian(u, value).sum()
            pyro.sample(name, dist.Delta(value, log_density=density, event_dim=value.dim()))
