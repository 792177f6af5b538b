"""Which KL terms of a pair of traces may be taken in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.poutine import Trace

from pyrovi.module.handlers import is_latent


def closed_form_sites(model: Trace, guide: Trace) -> set[str]:
    r"""Latent sites whose KL term the closed form is an unbiased estimate of.

    Given what a guide has drawn before a site, :math:`\mathrm{KL}(q(a) \,\|\, p(a))` is the
    expectation of :math:`\log q(a) - \log p(a)` over the site's own draw only if nothing in
    :math:`p(a)` depends on that draw: no site that the model draws before ``a`` may be one that the
    guide draws after it. Order stands for dependence, as traces do not tell it.

    Parameters
    ----------
    model, guide
        Traces.
    """
    nodes: Mapping[str, Any] = guide.nodes
    position = {name: i for i, name in enumerate(nodes) if is_latent(nodes[name])}
    found, last = set(), -1
    nodes = model.nodes
    for name in (name for name in nodes if name in position and is_latent(nodes[name])):
        if position[name] > last:
            found.add(name)
        last = max(last, position[name])
    return found
