"""Effect handlers: small, composable, each does one thing to the sites of a model or guide."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode


def is_deterministic(msg: Any) -> bool:
    """Whether a site is a ``pyro.deterministic`` statement."""
    return bool(msg["infer"] and msg["infer"].get("_deterministic", False))


def is_random(msg: Any) -> bool:
    """Whether a site is a random variable (not a plate's subsample, not a deterministic one)."""
    return (
        msg["type"] == "sample"
        and not isinstance(msg["fn"], _Subsample)
        and not is_deterministic(msg)
    )


def is_latent(msg: Any) -> bool:
    """Whether a site is a random variable that inference has to find."""
    return is_random(msg) and not msg["is_observed"]


def is_enumerated(msg: Any) -> bool:
    """Whether a site asks to be summed out."""
    return bool(msg["infer"] and msg["infer"].get("enumerate"))


class AnnealKL(Messenger):
    """Scale the log densities of latent sites by the KL weight.

    Applied to both model and guide this weights the KL term of the ELBO and leaves the likelihood
    alone. The scale before annealing is kept in ``infer["unannealed_scale"]``, so that metrics can
    be computed without the weight (which may be zero).

    Sites that the model sums out are left alone: they are part of the likelihood. Those that the
    guide sums over are not: they have a KL term.

    Parameters
    ----------
    weight
        The KL weight.
    summed_out
        Names of the sites that the model sums out.
    warmed_up
        Names of observed sites whose likelihood is weighted alike.
    """

    def __init__(
        self,
        weight: float | Tensor,
        summed_out: Collection[str] = (),
        warmed_up: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.weight, self.summed_out, self.warmed_up = weight, summed_out, warmed_up

    def _pyro_sample(self, msg: Any) -> None:
        is_term = is_latent(msg) and msg["name"] not in self.summed_out
        if is_term or msg["name"] in self.warmed_up:
            msg["infer"] = {**(msg["infer"] or {}), "unannealed_scale": msg["scale"]}
            msg["scale"] = msg["scale"] * self.weight


class Substitute(Messenger):
    """Give latent sites the values of a draw."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and is_latent(msg):
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


class Uncondition(Messenger):
    """Sample the observed sites instead of conditioning on the data.

    Deterministic sites and ``pyro.factor`` terms keep their values: they are functions, not data.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not is_deterministic(msg) and not is_factor(msg):
            msg["is_observed"] = False
            msg["infer"] = {**(msg["infer"] or {}), "was_observed": True, "observed": msg["value"]}
            msg["value"] = None
            msg["done"] = False

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["infer"] and msg["infer"].get("was_observed"):
            msg["is_observed"] = True


class FloatingObservations(Messenger):
    """Give observed integers the floating type that log densities are computed in.

    Integers stay integers where a story indexes with them; as the value of, say, a Bernoulli site
    torch refuses them.
    """

    def _pyro_sample(self, msg: Any) -> None:
        value = msg["value"]
        if msg["is_observed"] and isinstance(value, Tensor) and not value.is_floating_point():
            msg["value"] = value.to(torch.get_default_dtype())


def is_factor(msg: Any) -> bool:
    """Whether a site is a ``pyro.factor`` statement: a term of the density without a value."""
    fn = msg["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Unit)


class VmapSampling(Messenger):
    """Draw sites in a way that ``torch.func.vmap`` can vectorise.

    Pyro's reparametrised samplers fill a new tensor in place, which ``vmap`` refuses. Within this
    handler the in-place samplers of torch are answered by their out-of-place twins, and Dirichlet
    and Beta, whose samplers are opaque autograd functions, by gamma variables. The distributions
    drawn from are exactly the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._mode = _OutOfPlaceSamplers()

    def __enter__(self) -> VmapSampling:
        self._mode.__enter__()
        return super().__enter__()

    def __exit__(self, *exc: Any) -> Any:
        result = super().__exit__(*exc)
        self._mode.__exit__(*exc)
        return result

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["value"] is not None or msg["is_observed"]:
            return
        fn = msg["fn"]
        while isinstance(fn, dist.Independent):
            fn = fn.base_dist
        if isinstance(fn, dist.Dirichlet):
            msg["value"] = _dirichlet(fn.concentration.expand(fn.batch_shape + fn.event_shape))
        elif isinstance(fn, dist.Beta):
            both = torch.stack([fn.concentration1, fn.concentration0], -1)
            msg["value"] = _dirichlet(both.expand(*fn.batch_shape, 2))[..., 0]
        if msg["value"] is not None:
            msg["done"] = True


def _dirichlet(concentration: Tensor) -> Tensor:
    # G(a) = G(a + 1) U^(1/a) in distribution; in logarithms small concentrations do not underflow.
    log_gamma = torch._standard_gamma(concentration + 1).log()
    uniform = 1 - torch.rand(
        concentration.shape, dtype=concentration.dtype, device=concentration.device
    )
    draws = (log_gamma + uniform.log() / concentration).softmax(-1)
    limits = torch.finfo(draws.dtype)
    return draws.clamp(min=limits.tiny, max=1 - limits.eps / 2)  # inside the support, as torch does


_READ_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class _OutOfPlaceSamplers(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.normal_:
            return _normal(*args, **kwargs)
        if func is Tensor.exponential_:
            return _exponential(*args, **kwargs)
        if func is Tensor.cauchy_:
            return _cauchy(*args, **kwargs)
        if func is Tensor.uniform_:
            return _uniform(*args, **kwargs)
        if func == _READ_DATA:  # refused under vmap, which detach is not
            return args[0].detach()
        if func is Tensor.clamp_:  # in place for all draws at once; torch would go draw by draw
            return args[0].copy_(torch.clamp(*args, **kwargs))
        if func is torch.binomial:  # counts of the data, one for all draws, would be resized
            count, probability, *rest = args
            return torch.binomial(count + torch.zeros_like(probability), probability, *rest)
        return func(*args, **kwargs)


def _normal(out: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return mean + std * torch.randn(out.shape, dtype=out.dtype, device=out.device)


def _uniform(out: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
    return low + (high - low) * torch.rand(out.shape, dtype=out.dtype, device=out.device)


def _exponential(out: Tensor, rate: float = 1.0, **_: Any) -> Tensor:
    return -torch.log1p(-_uniform(out)) / rate


def _cauchy(out: Tensor, median: float = 0.0, sigma: float = 1.0, **_: Any) -> Tensor:
    return median + sigma * torch.tan(torch.pi * (_uniform(out) - 0.5))
