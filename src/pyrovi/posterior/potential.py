r"""The potential: minus the log joint density of a model, over all its latents, unconstrained.

.. math:: U(u) = -\log p(x, T(u)) - \log |\det T'(u)|

where :math:`T` maps real numbers into the supports of the latent sites. Enumerated sites are summed
out exactly. It is what MCMC, Laplace's approximation, Pathfinder and optimisers work on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovi._rng import derive_seed, generator
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import NoStartError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.handlers import Substitute, is_latent, is_random
from pyrovi.module.ledger import Role
from pyrovi.posterior.precision import in_precision, module_in_precision
from pyrovi.posterior.unconstrained import StartAtZero, refuse_sites

ATTEMPTS = 100
"""Initial points to try before giving up."""


class Potential:
    """Minus the log joint density of a model in unconstrained space.

    All observations of the minibatch count once, as if they were all the data there are: the
    plate's ``N / n`` is not applied. The model's parameters are constants: the values that the
    module has now, copied, in the given precision.

    Parameters
    ----------
    module
        A materialised pair; it is copied and not changed.
    minibatch
        The observations (all of them, or a subset on purpose).
    dtype
        Floating-point type of parameters, data and result. Energies are sums over all data: in
        single precision their differences, which MCMC accepts or rejects by, would be noise.
    jacobian
        Whether the density is that of the unconstrained variables (what samplers need), or that of
        the constrained ones evaluated there (whose mode optimisers usually are asked for).

    Attributes
    ----------
    names
        The latent sites, globals and locals, without enumerated ones; in the order of the story.
    shapes
        Site -> shape of a value.
    unconstrained_shapes
        Site -> shape of the unconstrained value.
    transforms
        Site -> bijection from real numbers into the support.
    dim
        Number of unconstrained coordinates of all sites together.

    Raises
    ------
    ModelError
        If a latent site is discrete and not enumerated in parallel, its support varies with other
        sites, or there is no bijection into its support.
    """

    def __init__(
        self,
        module: PyroBaseModule,
        minibatch: Minibatch,
        *,
        dtype: torch.dtype = torch.float64,
        jacobian: bool = True,
    ) -> None:
        refuse_sites(module)
        self.dtype, self.jacobian = dtype, jacobian
        self._module = module_in_precision(module, dtype)
        tensors = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in minibatch.to(module.device).tensors.items()
        }
        self._minibatch = minibatch.to(module.device).replace(tensors=tensors, n_obs=minibatch.n)
        self._nesting = module.ledger.max_plate_nesting
        self._evaluator: TraceEinsumEvaluator | None = None
        self._enumerates = bool(module.ledger.names(Role.ENUMERATED))
        start = StartAtZero(module.device)
        with in_precision(dtype), torch.no_grad():
            prototype: Any = poutine.trace(self._run(start)).get_trace(self._minibatch)
        self.names = list(start.unconstrained)
        self.transforms: dict[str, Any] = start.transforms
        nodes = prototype.nodes
        self.shapes = {name: tuple(nodes[name]["value"].shape) for name in self.names}
        self.unconstrained_shapes = {n: tuple(u.shape) for n, u in start.unconstrained.items()}
        self.dim = sum(math.prod(shape) for shape in self.unconstrained_shapes.values())
        if self._enumerates:
            self._evaluator = TraceEinsumEvaluator(prototype, True, self._nesting)

    @property
    def device(self) -> torch.device:
        """Device of the data and of the unconstrained values."""
        return self._minibatch.indices.device

    # ------------------------------------------------------------------ density

    def __call__(self, unconstrained: Mapping[str, Tensor]) -> Tensor:
        """The potential at a point.

        Parameters
        ----------
        unconstrained
            Site -> unconstrained value, for all sites.

        Returns
        -------
        Tensor
            A scalar, differentiable, also under ``torch.func``.
        """
        values, total = {}, torch.zeros((), dtype=self.dtype, device=self.device)
        with in_precision(self.dtype):
            for name, transform in self.transforms.items():
                u = unconstrained[name]
                values[name] = transform(u)
                if self.jacobian:
                    total = total + transform.log_abs_det_jacobian(u, values[name]).sum()
            return -(total + self._log_joint(values))

    def at(self, vector: Tensor) -> Tensor:
        """The potential at a flat vector of shape ``(dim,)``."""
        return self(self.unflatten(vector))

    def log_joint(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log joint density of the data and of constrained values of all latent sites; a scalar."""
        with in_precision(self.dtype):
            return self._log_joint(values)

    def _log_joint(self, values: Mapping[str, Tensor]) -> Tensor:
        if self._evaluator is not None:
            given = Substitute(values)
            trace = poutine.trace(self._run(given)).get_trace(self._minibatch)
            return self._evaluator.log_prob(trace)
        with _LogJoint(values) as density:
            self._module.run_model(self._minibatch)
        return density.total(self.dtype, self.device)

    def trainable(self) -> list[str]:
        """Names of the module's parameters that the density depends on, and that stay constant."""
        parameters = dict(self._module.named_parameters())
        if not parameters:
            return []
        point = self.unflatten(torch.zeros(self.dim, dtype=self.dtype, device=self.device))
        try:
            for parameter in parameters.values():
                parameter.requires_grad_(parameter.is_floating_point())
            with torch.enable_grad():
                value = self(point)
            if not value.requires_grad:
                return []
            found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        finally:
            self._module.requires_grad_(False)
        return [n for n, gradient in zip(parameters, found, strict=True) if gradient is not None]

    def _run(self, handler: Messenger) -> Any:
        def run(minibatch: Minibatch) -> Any:
            with handler:
                return self._module.run_model(minibatch)

        if not self._enumerates:
            return run
        return poutine.enum(run, first_available_dim=-1 - self._nesting)

    # ------------------------------------------------------------------ coordinates

    def constrain(self, unconstrained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values in the supports; further leading dimensions (draws) are kept."""
        with in_precision(self.dtype):
            return {name: self.transforms[name](u) for name, u in unconstrained.items()}

    def unconstrain(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Unconstrained coordinates of values; further leading dimensions (draws) are kept."""
        with in_precision(self.dtype):
            return {n: self.transforms[n].inv(v.to(self.dtype)) for n, v in values.items()}

    def flatten(self, unconstrained: Mapping[str, Tensor]) -> Tensor:
        """One vector, of shape ``(..., dim)``, of the unconstrained values of all sites."""
        parts = []
        for name in self.names:
            shape = self.unconstrained_shapes[name]
            u = unconstrained[name].to(self.dtype)
            parts.append(u.reshape((*u.shape[: u.dim() - len(shape)], math.prod(shape))))
        if not parts:
            return torch.zeros(0, dtype=self.dtype, device=self.device)
        return torch.cat(parts, -1)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Site -> unconstrained value of shape ``(..., *shape)``: what :meth:`flatten` undoes."""
        unconstrained, start = {}, 0
        for name in self.names:
            shape = self.unconstrained_shapes[name]
            stop = start + math.prod(shape)
            unconstrained[name] = vector[..., start:stop].reshape((*vector.shape[:-1], *shape))
            start = stop
        return unconstrained

    def initial(self, seed: int | None = None, radius: float = 2.0) -> dict[str, Tensor]:
        """A random point of finite density and gradient: uniform in a cube around 0, as in Stan.

        Parameters
        ----------
        seed
            Root seed; ``None`` for ``settings.seed``.
        radius
            Half the side of the cube, in unconstrained coordinates.

        Raises
        ------
        NoStartError
            If 100 points have been tried in vain.
        """
        random = generator("initial", seed=derive_seed("potential", seed=seed))
        for _ in range(ATTEMPTS):
            point = torch.as_tensor(random.uniform(-radius, radius, self.dim))
            point = point.to(self.device, self.dtype).requires_grad_()
            try:
                with torch.enable_grad():
                    value = self.at(point)
                    gradient = torch.autograd.grad(value, point)[0] if self.dim else point
            except (ValueError, RuntimeError):  # a story or a factorisation that refuses the point
                continue
            if bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all()):
                return self.unflatten(point.detach())
        raise NoStartError(
            f"No point of finite density was found among {ATTEMPTS} random ones (uniform between "
            f"{-radius:g} and {radius:g} in unconstrained coordinates of {', '.join(self.names)}). "
            "Usually the data are impossible under the model (counts that are no integers, values "
            "outside of a support), a log density is NaN, or the scale of the data is far from 1: "
            "standardise them, start from a fitted guide (init='guide'), or give a smaller radius."
        )


class _LogJoint(Messenger):
    """Give the latent sites their values and add up the log densities of all sites."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.terms: list[Tensor] = []

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and is_latent(msg):
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_random(msg):
            density = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
            self.terms.append(scale_and_mask(density, msg["scale"], msg["mask"]).sum())

    def total(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Sum of the terms."""
        total = torch.zeros((), dtype=dtype, device=device)
        for term in self.terms:
            total = total + term
        return total
