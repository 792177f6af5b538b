"""Per-observation parts of the ELBO, un-annealed, and their sums over an epoch, on the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Distribution
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO, TraceMeanField_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.closed_forms import closed_form_sites
from pyrovi.module.handlers import is_random
from pyrovi.module.ledger import Role, SiteLedger
from pyrovi.module.plates import OBS_PLATE

TracePair = tuple[poutine.Trace, poutine.Trace]
"""Trace of the model, replayed, and of the guide."""

METRICS = ("elbo", "reconstruction_loss", "kl_local", "kl_global")
"""Names of the parts; all are losses (lower is better), ``elbo`` being the negative ELBO."""


@contextmanager
def record_traces(elbo: ELBO) -> Iterator[list[TracePair]]:
    """Collect the (model, guide) traces that an ELBO makes, so that nothing is computed twice."""
    traces: list[TracePair] = []
    get_trace = elbo._get_trace

    def recording(*args: Any, **kwargs: Any) -> TracePair:
        pair = get_trace(*args, **kwargs)
        traces.append(pair)
        return pair

    elbo._get_trace = recording  # type: ignore[method-assign]
    try:
        yield traces
    finally:
        del elbo._get_trace


def run_pair(elbo: Any, module: PyroBaseModule, minibatch: Minibatch) -> list[TracePair]:
    """Traces of the model and guide, without densities where Pyro does not have to check them.

    Discrete sites that the guide sums over have all their values, in a dimension of their own.
    """
    if module.summed_by_guide:
        guides = poutine.enum(module.run_guide, first_available_dim=-1 - elbo.max_plate_nesting)
        return [_traces(module, guides, minibatch) for _ in range(elbo.num_particles)]
    if is_validation_enabled() or elbo.num_particles > 1:
        with warnings.catch_warnings():  # of an order that closed_form_sites minds
            warnings.filterwarnings("ignore", "Failed to verify mean field restriction")
            return list(elbo._get_traces(module.run_model, module.run_guide, (minibatch,), {}))
    return [_traces(module, module.run_guide, minibatch)]


def _traces(
    module: PyroBaseModule, run_guide: Callable[..., Any], minibatch: Minibatch
) -> TracePair:
    guide = poutine.trace(run_guide).get_trace(minibatch)
    model = poutine.trace(poutine.replay(module.run_model, trace=guide)).get_trace(minibatch)
    return model, guide


def elbo_parts(
    traces: list[TracePair],
    ledger: SiteLedger,
    n_obs: int,
    elbo: ELBO,
) -> dict[str, Tensor]:
    """Parts of the negative ELBO per observation, averaged over particles.

    Parameters
    ----------
    traces
        Traces; log densities that they do not have are computed.
    ledger
        Site ledger of the model.
    n_obs
        Plate size ``N``; sums over the plate are divided by it.
    elbo
        The ELBO that made the traces: its number of particles (which vectorised particles share one
        trace), and whether it takes closed-form KL terms.

    Returns
    -------
    dict
        ``elbo = reconstruction_loss + kl_local + kl_global``, 0-d tensors.
    """
    analytic = isinstance(elbo, TraceMeanField_ELBO)
    terms: dict[str, list[Tensor]] = {name: [] for name in METRICS[1:]}
    for model, guide in traces:
        expectation = _expectation_of(guide, elbo.max_plate_nesting)
        closed = closed_form_sites(model, guide) if analytic else set()
        for name, node in model.nodes.items():
            if not is_random(node):
                continue
            if node["is_observed"]:
                terms["reconstruction_loss"].append(-expectation(_log_density(node)))
                continue
            part = "kl_local" if ledger[name].is_local else "kl_global"
            for term in _kl(node, guide.nodes[name], name in closed):
                terms[part].append(expectation(term))
        for node, local in _auxiliary_sites(guide):
            terms["kl_local" if local else "kl_global"].append(expectation(_log_density(node)))
    device = next(term.device for part in terms.values() for term in part)
    scale = 1 / (elbo.num_particles * n_obs)
    parts = {
        name: sum(part, torch.zeros((), device=device)) * scale for name, part in terms.items()
    }
    return {"elbo": sum(parts.values(), torch.zeros((), device=device)), **parts}


def log_likelihood(
    traces: list[TracePair], sites: Collection[str], n_obs: int, elbo: ELBO
) -> Tensor:
    """Un-annealed log likelihood of some observed sites, per observation, mean of particles.

    Parameters
    ----------
    traces, n_obs, elbo
        As in :func:`elbo_parts`.
    sites
        Names of the sites.
    """
    total: Any = 0.0
    for model, guide in traces:
        expectation = _expectation_of(guide, elbo.max_plate_nesting)
        total = total + sum(expectation(_log_density(model.nodes[name])) for name in sites)
    result: Tensor = total / (elbo.num_particles * n_obs)
    return result


def enumerated_parts(
    traces: list[TracePair],
    ledger: SiteLedger,
    n_obs: int,
    elbo: ELBO,
    loss: Tensor,
) -> dict[str, Tensor]:
    """The same for models with enumerated sites, whose local terms do not separate.

    The sum over the enumerated values is taken inside the logarithm of the marginal likelihood, so
    everything but the KL of the global sites counts as ``reconstruction_loss``.
    """
    global_sites = set(ledger.names(Role.GLOBAL))
    kl = loss.new_zeros(())
    for model, guide in traces:
        for name in global_sites:
            for term in _kl(model.nodes[name], guide.nodes[name], analytic=False):
                kl = kl + term.sum()
        for node, local in _auxiliary_sites(guide):
            if not local:
                kl = kl + _log_density(node).sum()
    kl = kl / (elbo.num_particles * n_obs)
    total = loss.detach()
    zero = torch.zeros_like(total)
    parts = {"reconstruction_loss": total - kl, "kl_local": zero, "kl_global": kl}
    return {"elbo": total, **parts}


def reparametrised(traces: list[TracePair]) -> bool:
    """Whether gradients flow through every draw of the guide: the ELBO's is that of its terms."""
    sites: Iterator[Any] = (node for _, guide in traces for node in guide.nodes.values())
    return all(_has_no_score(node["fn"]) or _is_summed(node) for node in sites if is_random(node))


def _is_summed(node: Any) -> bool:
    """Whether a site of a guide has all its values, in a dimension of their own."""
    return (node.get("infer") or {}).get("_enumerate_dim") is not None


def _expectation_of(guide: poutine.Trace, nesting: int) -> Callable[[Tensor], Tensor]:
    """Expectation, over the values that a guide sums over, of a term of the ELBO, summed up.

    Terms without dimensions left of the plates do not depend on these values.
    """
    nodes: Iterator[Any] = iter(guide.nodes.values())
    logs = [node["fn"].log_prob(node["value"]) for node in nodes if _is_summed(node)]
    if not logs:
        return Tensor.sum
    weights = torch.stack(torch.broadcast_tensors(*logs)).sum(0).exp()
    return lambda term: (term * weights).sum() if term.dim() > nesting else term.sum()


def _has_no_score(fn: Any) -> bool:
    """Whether a site adds no score function to the gradient; a factor says so itself."""
    if not fn.has_rsample:
        return False
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).score_parts is Distribution.score_parts  # rejection samplers have their own


def surrogate_loss(traces: list[TracePair], elbo: Any) -> Tensor:
    """Negative ELBO, with the gradient that it has where draws carry none (score functions)."""
    total: Any = 0.0
    for pair in traces:
        model, guide = map(prune_subsample_sites, pair)
        model.compute_log_prob()
        guide.compute_score_parts()
        value, surrogate = elbo._differentiable_loss_particle(model, guide)
        total = total + value + surrogate - surrogate.detach()
    loss: Tensor = total / elbo.num_particles
    return loss


def _auxiliary_sites(guide: poutine.Trace) -> Iterator[tuple[Any, bool]]:
    """Sites that only a guide has, and whether they are local: parts of the density of others."""
    for node in guide.nodes.values():
        if node["type"] == "sample" and (node["infer"] or {}).get("is_auxiliary"):
            yield node, any(frame.name == OBS_PLATE for frame in node["cond_indep_stack"])


def _kl(model: Any, guide: Any, analytic: bool) -> tuple[Tensor, ...]:
    """Terms whose sum is the KL of a site, in closed form or of the draw."""
    if analytic:
        try:
            kl = kl_divergence(guide["fn"], model["fn"])
        except NotImplementedError:
            pass
        else:
            return (scale_and_mask(kl, _scale(guide), guide["mask"]),)
    return _log_density(guide), -_log_density(model)


def _log_density(node: Any) -> Tensor:
    """Log densities of a site, one of each element of its plates."""
    log_prob = node.get("unscaled_log_prob")
    if log_prob is None:
        log_prob = node["fn"].log_prob(node["value"])
    return scale_and_mask(log_prob, _scale(node), node["mask"])


def _scale(node: Any) -> Any:
    return (node["infer"] or {}).get("unannealed_scale", node["scale"])


class EpochMean:
    """Weighted mean over an epoch, kept on the device: no synchronisation per step."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._weight = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been added since the last mean."""
        return self._sums is None

    def update(self, values: Mapping[str, Tensor], weight: int) -> None:
        """Add the values (0-d tensors) of a minibatch of ``weight`` observations."""
        new = torch.stack(list(values.values())).detach()
        if new.device.type != "mps":  # which has no float64
            new = new.double()
        if self._sums is None:
            self._names, self._sums = list(values), new * weight
        else:
            self._sums.add_(new, alpha=weight)
        self._weight += weight

    def totals(self) -> tuple[list[str], list[float], float]:
        """Names, weighted sums and total weight over all ranks; every rank has to ask."""
        if self._sums is None:
            return [], [], 0.0
        packed = torch.cat([self._sums, self._sums.new_tensor([self._weight])])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(packed)
        *sums, weight = packed.tolist()
        return self._names, sums, weight

    def compute(self) -> dict[str, float]:
        """The means over all ranks; starts anew."""
        names, sums, weight = self.totals()
        self._sums, self._weight = None, 0.0
        return {name: total / weight for name, total in zip(names, sums, strict=True)}

    def restore(self, totals: tuple[list[str], list[float], float], device: torch.device) -> None:
        """Go on from :meth:`totals` (of one rank: the totals are those of all)."""
        names, sums, weight = totals
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._names, self._weight = list(names), weight
        self._sums = torch.tensor(sums, dtype=dtype, device=device) if names else None
