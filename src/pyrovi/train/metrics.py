"""Per-observation parts of the ELBO, un-annealed, summed on the device over an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovi.module.ledger import SiteLedger
from pyrovi.module.plates import OBS_PLATE

METRICS = ("elbo", "reconstruction_loss", "kl_local", "kl_global")
"""Names of the parts; all are losses (lower is better), ``elbo`` being the negative ELBO."""


@contextmanager
def record_traces(elbo: ELBO) -> Iterator[list[tuple[poutine.Trace, poutine.Trace]]]:
    """Collect the (model, guide) traces that an ELBO makes, so that nothing is computed twice."""
    traces: list[tuple[poutine.Trace, poutine.Trace]] = []
    get_trace = elbo._get_trace

    def recording(*args: Any, **kwargs: Any) -> tuple[poutine.Trace, poutine.Trace]:
        pair = get_trace(*args, **kwargs)
        traces.append(pair)
        return pair

    elbo._get_trace = recording
    try:
        yield traces
    finally:
        del elbo._get_trace


@torch.no_grad()
def elbo_parts(
    traces: list[tuple[poutine.Trace, poutine.Trace]],
    ledger: SiteLedger,
    n_obs: int,
    *,
    analytic_kl: bool,
) -> dict[str, Tensor]:
    """Parts of the negative ELBO per observation, averaged over particles.

    Parameters
    ----------
    traces
        Recorded traces with their log densities.
    ledger
        Site ledger of the model.
    n_obs
        Plate size ``N``; sums over the plate are divided by it.
    analytic_kl
        Use the closed form of the KL where there is one, as ``TraceMeanField_ELBO`` does.

    Returns
    -------
    dict
        ``elbo = reconstruction_loss + kl_local + kl_global``, 0-d tensors.
    """
    device = next(
        (n["value"].device for n in traces[0][0].nodes.values() if n["type"] == "sample"), None
    )
    parts = {name: torch.zeros((), device=device) for name in METRICS[1:]}
    for model, guide in traces:
        for name, node in model.nodes.items():
            if node["type"] != "sample" or name == OBS_PLATE:
                continue
            if node["is_observed"]:
                parts["reconstruction_loss"] -= _log_density(node)
                continue
            part = "kl_local" if ledger[name].is_local else "kl_global"
            parts[part] += _kl(node, guide.nodes.get(name), analytic_kl)
        for name, node in guide.nodes.items():
            if node["type"] == "sample" and node["infer"].get("is_auxiliary"):
                parts["kl_global"] += _log_density(node)
    parts = {name: value / (len(traces) * n_obs) for name, value in parts.items()}
    return {"elbo": torch.stack(list(parts.values())).sum(), **parts}


def _kl(model: Any, guide: Any, analytic: bool) -> Tensor:
    if guide is None:  # enumerated in the model: its log density is part of the marginal likelihood
        return -_log_density(model)
    if analytic:
        try:
            kl = kl_divergence(guide["fn"], model["fn"])
        except NotImplementedError:
            pass
        else:
            return scale_and_mask(kl, _scale(guide), guide["mask"]).sum()
    return _log_density(guide) - _log_density(model)


def _log_density(node: Any) -> Tensor:
    log_prob = node.get("unscaled_log_prob")
    if log_prob is None:
        log_prob = node["fn"].log_prob(node["value"])
    return scale_and_mask(log_prob, _scale(node), node["mask"]).sum()


def _scale(node: Any) -> Any:
    return (node["infer"] or {}).get("unannealed_scale", node["scale"])


def uses_analytic_kl(elbo: ELBO) -> bool:
    """Whether an ELBO takes closed-form KL terms."""
    return isinstance(elbo, TraceMeanField_ELBO)


class EpochMean:
    """Weighted mean over an epoch, kept on the device: no synchronisation per step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight = 0.0

    def update(self, values: dict[str, Tensor], weight: int) -> None:
        """Add the values of a minibatch of ``weight`` observations."""
        for name, value in values.items():
            value = value.detach() * weight
            if value.device.type != "mps":  # which has no float64
                value = value.double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._weight += weight

    def compute(self) -> dict[str, float]:
        """The means (over all ranks), and start anew."""
        if not self._sums:
            return {}
        names = list(self._sums)
        packed = torch.stack([self._sums[n] for n in names])
        packed = torch.cat([packed, packed.new_tensor([self._weight])])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(packed)
        *sums, weight = packed.tolist()
        self._sums, self._weight = {}, 0.0
        return {name: total / weight for name, total in zip(names, sums, strict=True)}
