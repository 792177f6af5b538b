"""Supports of a guide's distributions: what it draws has to be possible in the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyrovi.errors import ModelError

if TYPE_CHECKING:
    from pyrovi.module.ledger import Site

_PROBES = torch.tensor([-1e3, -2.5, -1.0, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 7.0, 1e3])
"""Numbers that tell the usual supports of single numbers apart."""

_FAMILIES = (
    (constraints.positive, "LogNormal or Gamma"),
    (constraints.nonnegative, "LogNormal or Gamma"),
    (constraints.unit_interval, "Beta, or a normal variable through SigmoidTransform"),
    (constraints.simplex, "Dirichlet"),
)


def check_support(site: Site, node: Any) -> None:
    """Refuse a guide that can draw values which the model gives no density.

    Parameters
    ----------
    site
        The site of the model.
    node
        The same site in a trace of the guide.

    Raises
    ------
    ModelError
        Naming a value that the guide can draw and the model excludes.
    """
    support = site.support
    if support is None or site.support_varies:
        return
    value = node["value"]
    impossible = None
    if not bool(support.check(value).all()):
        impossible = f"has drawn {_short(value)}"
    elif not isinstance(_base(node["fn"]), (dist.Delta, dist.TransformedDistribution)):
        inner, drawn = _inner(support), _inner(node["fn"].support)
        if inner.event_dim == 0 and drawn.event_dim == 0 and not _varied(inner, drawn):
            outside = drawn.check(_PROBES) & ~inner.check(_PROBES)
            if outside.any():
                impossible = f"can draw {_PROBES[outside][0].item():g}"
    if impossible:
        raise ModelError(
            f"The guide draws {site.name!r} from {type(_base(node['fn'])).__name__}, which "
            f"{impossible}; in the model its support is {_inner(support)}. Expected a distribution "
            f"with the same support{_suggestion(_inner(support))}, or a normal variable that "
            "dist.TransformedDistribution(..., torch.distributions.biject_to(support)) maps into "
            "it."
        )


def _inner(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _varied(*supports: Any) -> bool:
    """Whether bounds are tensors of several numbers: single numbers cannot be checked by them."""
    parts = [part for support in supports for part in getattr(support, "__dict__", {}).values()]
    return any(isinstance(part, torch.Tensor) and part.numel() > 1 for part in parts)


def _suggestion(support: Any) -> str:
    found = [names for kind, names in _FAMILIES if str(kind) == str(support)]
    return f" ({found[0]})" if found else ""


def _base(fn: Any) -> Any:
    """The distribution inside; transforms stay, as what they can draw is not known in general."""
    while hasattr(fn, "base_dist") and not isinstance(fn, dist.TransformedDistribution):
        fn = fn.base_dist
    return fn


def _short(value: Any) -> str:
    return f"{value.item():.4g}" if value.numel() == 1 else f"values of shape {tuple(value.shape)}"
