"""The site ledger of a module, made from prototype traces of its model and guide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
from pyro.poutine import Trace
from pyro.poutine.subsample_messenger import _Subsample

from pyrovi.errors import ModelError
from pyrovi.module.handlers import is_deterministic, is_factor, is_latent, is_random
from pyrovi.module.ledger import Role, Site, SiteLedger
from pyrovi.module.plates import OBS_PLATE
from pyrovi.module.sites import (
    check_enumerable,
    check_outside_plate,
    check_same_sites,
    is_categorical,
    is_improper,
    support_varies,
)
from pyrovi.module.supports import check_support

if TYPE_CHECKING:
    pass


def build_ledger(
    first: Trace,
    second: Trace,
    site_dims: Mapping[str, Sequence[str]] | None = None,
    draws: Sequence[Trace] = (),
) -> SiteLedger:
    """Classify the sites of a model from prototype traces.

    Two of the traces are of minibatches of different size: the axis of a value whose length changes
    is the axis of the observations. No naming convention or declaration is needed.

    Parameters
    ----------
    first, second
        Model traces of minibatches of different size.
    site_dims
        Site -> names of its rightmost dimensions that are not plates.
    draws
        Two more traces, of one minibatch, whose latent sites have different values: a support that
        differs between them depends on other sites.

    Raises
    ------
    ModelError
        If a site has one value per observation, or a log density that depends on how many there
        are, but does not stand in the observation plate, if a plate other than the observation
        plate is subsampled, or if ``site_dims`` does not fit.
    """
    check_same_sites(first, [second, *draws])
    site_dims = dict(site_dims or {})
    sites = []
    nodes: Mapping[str, Any] = first.nodes
    for name, node in nodes.items():
        if node["type"] != "sample" or isinstance(node["fn"], _Subsample):
            continue
        _refuse_foreign_subsampling(name, node)
        if is_latent(node) and (node["infer"] or {}).get("enumerate"):
            check_enumerable(name, node)
        obs_axis = _changing_axis(name, node["value"], second.nodes[name]["value"])
        in_obs_plate = any(frame.name == OBS_PLATE for frame in node["cond_indep_stack"])
        if not in_obs_plate:
            check_outside_plate(name, node, second.nodes[name], obs_axis)
        varies = support_varies([d.nodes[name]["fn"] for d in draws if name in d.nodes])
        sites.append(_make_site(name, node, obs_axis, site_dims.pop(name, None), varies))
    if site_dims:
        known = ", ".join(site.name for site in sites)
        raise ModelError(
            f"site_dims names {', '.join(map(repr, site_dims))}, which the model has no site for; "
            f"its sites are: {known}"
        )
    return SiteLedger(sites)


def _refuse_foreign_subsampling(name: str, node: Any) -> None:
    for frame in node["cond_indep_stack"]:
        if frame.name != OBS_PLATE and frame.full_size not in (None, -1, frame.size):
            raise ModelError(
                f"Site {name!r} stands in the subsampled plate {frame.name!r} ({frame.size} of "
                f"{frame.full_size}). A guide that cannot see its indices would pair observations "
                "with the wrong rows without an error. Use obs_plate() for the observations; other "
                "plates must be whole."
            )


def _changing_axis(name: str, first: Any, second: Any) -> int | None:
    if first.dim() != second.dim():
        raise ModelError(
            f"Site {name!r} changes its number of dimensions with the minibatch size "
            f"({tuple(first.shape)} against {tuple(second.shape)}); keep it fixed, e.g. by not "
            "squeezing."
        )
    changed = [
        axis - first.dim()
        for axis, (a, b) in enumerate(zip(first.shape, second.shape, strict=True))
        if a != b
    ]
    if len(changed) > 1:
        raise ModelError(
            f"Site {name!r} has more than one axis of the minibatch's size: shape "
            f"{tuple(first.shape)} for {first.shape[changed[0]]} observations. Usually an event "
            "dimension was not declared (`.to_event(1)`, or `event_dim=1` for pyro.deterministic)."
        )
    return changed[0] if changed else None


def _make_site(
    name: str, node: Any, obs_axis: int | None, names: Sequence[str] | None, varies: bool
) -> Site:
    shape = tuple(node["value"].shape)
    frames = {frame.dim: frame for frame in node["cond_indep_stack"] if frame.dim is not None}
    if is_deterministic(node):
        event_dim = _deterministic_event_dim(shape, node["fn"].event_dim, frames, obs_axis)
    else:
        event_dim = node["fn"].event_dim
    n_batch = len(shape) - event_dim
    dims: list[str | None] = []
    free: list[int] = []
    for axis, size in enumerate(shape):
        frame = frames.get(axis - n_batch) if axis < n_batch else None
        if obs_axis is not None and axis == len(shape) + obs_axis:
            dims.append(OBS_PLATE)
        elif frame is not None and frame.name != OBS_PLATE and size == frame.size:
            dims.append(frame.name)
        elif axis < n_batch and size == 1:
            dims.append(None)
        else:
            free.append(axis)
            dims.append("")
    names = names or (node["infer"] or {}).get("event_dims")
    if names is None:
        names = [f"{name}_dim_{i}" for i in range(len(free))]
    names = _without_plates(names, dims)
    if len(names) != len(free):
        raise ModelError(
            f"site_dims gives {len(names)} name(s) ({', '.join(names)}) for site {name!r}, which "
            f"has {len(free)} dimension(s) that are not plates (value shape {shape})."
        )
    for axis, dim_name in zip(free, names, strict=True):
        dims[axis] = dim_name
    return Site(
        name=name,
        role=_role(node, obs_axis),
        plates=tuple(frames[d].name for d in sorted(frames)),
        shape=tuple(OBS_PLATE if d == OBS_PLATE else n for d, n in zip(dims, shape, strict=True)),
        dims=tuple(dims),
        event_dim=event_dim,
        support=None if is_deterministic(node) else getattr(node["fn"], "support", None),
        support_varies=varies and is_latent(node),
        is_improper=is_latent(node) and is_improper(node["fn"]),
        is_categorical=is_categorical(node),
    )


def _without_plates(names: Sequence[str], dims: Sequence[str | None]) -> Sequence[str]:
    """The names of the dimensions that are not plates, where the plates were named again."""
    kept = [d for d in dims if d is not None]
    if len(names) == len(kept) and all(d in ("", n) for n, d in zip(names, kept, strict=True)):
        return [n for n, d in zip(names, kept, strict=True) if d == ""]
    return names


def _deterministic_event_dim(
    shape: tuple[int, ...], declared: int, frames: Mapping[int, Any], obs_axis: int | None
) -> int:
    """Event dimensions of a deterministic site.

    ``pyro.deterministic`` without ``event_dim`` declares all dimensions as event. Inside plates
    that is rarely meant: if the leftmost dimensions have the sizes of the plates, they are
    the plates.
    """
    if declared < len(shape) or not frames:
        return declared
    depth = -min(frames)
    event_dim = len(shape) - depth
    if obs_axis is not None:
        obs_dim = next(d for d, frame in frames.items() if frame.name == OBS_PLATE)
        return obs_dim - obs_axis
    fits = event_dim >= 0 and all(shape[d - event_dim] == f.size for d, f in frames.items())
    return event_dim if fits else declared


def _role(node: Any, obs_axis: int | None) -> Role:
    if is_deterministic(node):
        return Role.DETERMINISTIC
    if is_factor(node):
        return Role.FACTOR
    if node["is_observed"]:
        return Role.OBSERVED
    if (node["infer"] or {}).get("enumerate"):
        return Role.ENUMERATED
    return Role.LOCAL if obs_axis is not None else Role.GLOBAL


def check_guide(model: SiteLedger, guide: Trace) -> None:
    """Check that a guide draws exactly the latent sites of its model.

    Raises
    ------
    ModelError
        Naming the sites that are missing or unknown.
    """
    nodes: Mapping[str, Any] = guide.nodes
    drawn = {
        name: node
        for name, node in nodes.items()
        if is_random(node) and not node["infer"].get("is_auxiliary")
    }
    needed = set(model.names(Role.GLOBAL, Role.LOCAL))
    optional = set(model.names(Role.ENUMERATED))
    if missing := sorted(needed - set(drawn)):
        raise ModelError(
            f"The guide does not draw {', '.join(map(repr, missing))}, which the model leaves "
            "latent. Add a pyro.sample statement of the same name to the guide (or observe it)."
        )
    if unknown := sorted(set(drawn) - needed - optional):
        raise ModelError(
            f"The guide draws {', '.join(map(repr, unknown))}, which the model has no latent site "
            f"for (latent sites: {', '.join(sorted(needed | optional)) or 'none'}). Rename it, or "
            'mark it with infer={"is_auxiliary": True}.'
        )
    for name, node in drawn.items():
        site = model[name]
        in_obs_plate = any(f.name == OBS_PLATE for f in node["cond_indep_stack"])
        if site.is_local and not in_obs_plate:
            raise ModelError(
                f"The guide draws the local site {name!r} outside the observation plate. Draw it "
                "inside `with pv.obs_plate():` in the guide too."
            )
        if node["fn"].event_dim != site.event_dim and not isinstance(node["fn"], dist.Delta):
            raise ModelError(
                f"Site {name!r} has {site.event_dim} event dimension(s) in the model and "
                f"{node['fn'].event_dim} in the guide; make both the same with .to_event()."
            )
        check_support(site, node)
