"""Whether the observed data are possible under the model at all, before they are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import pyro.distributions as dist
import scipy.sparse as sp
import torch
from pyro import poutine
from torch.distributions import constraints

from pyrovi._rng import stream
from pyrovi.dataloaders import AnnTorchDataset
from pyrovi.errors import DataError, ModelError, PyroviError
from pyrovi.module.base import evaluation_mode
from pyrovi.module.handlers import Substitute
from pyrovi.module.hints import hint
from pyrovi.module.ledger import Role
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.stories import latent_values

if TYPE_CHECKING:
    from pyrovi.data import AnnDataManager
    from pyrovi.model.base import BaseModelClass

MAX_OBS = 10_000
"""Largest number of observations that are looked at; of more, some are chosen evenly."""

_FIXED = {
    str(kind): name
    for kind, name in (
        (constraints.nonnegative_integer, "0, 1, 2, ..."),
        (constraints.positive_integer, "1, 2, 3, ..."),
        (constraints.boolean, "0 or 1"),
        (constraints.nonnegative, "numbers that are not negative"),
        (constraints.positive, "positive numbers"),
        (constraints.unit_interval, "numbers between 0 and 1"),
    )
}
"""Supports that no parameter moves, and what they are called."""


def check_possible(model: BaseModelClass) -> None:
    """Refuse data that the distribution of an observed site gives no density.

    This takes a part of an epoch, and is done again only when the data have changed.

    Parameters
    ----------
    model
        A model with data.

    Raises
    ------
    DataError
        Naming the site, the first such value and its observation.
    ModelError
        If the model fails on its data, although it ran on made-up ones.
    """
    manager = model.adata_manager
    seen = _digest(manager)
    if not model.sites.names(Role.OBSERVED) or model._checked_data == seen:
        return
    n_obs = int(manager.n_obs)
    chosen = np.unique(np.linspace(0, n_obs - 1, min(n_obs, MAX_OBS)).astype(int))
    before = model.module.posterior
    model.module.use_posterior(None)  # stored draws may be of some observations only
    try:
        _check_rows(model, chosen)
    finally:
        model.module.use_posterior(before)
    model._checked_data = seen


def _digest(manager: AnnDataManager) -> tuple[Any, ...]:
    """Numbers that change with the values of the registered data, at the cost of a look at each."""
    found: list[Any] = [manager]
    for name, container in AnnTorchDataset(manager).data.items():
        values = container.data if sp.issparse(container) else container
        if isinstance(values, np.ndarray) and values.size:
            total = values.sum(dtype=np.float64)
            found += [name, values.shape, float(total), float(values.min()), float(values.max())]
    return tuple(found)


def _check_rows(model: BaseModelClass, chosen: np.ndarray) -> None:
    manager, positions, loader = model.loader(None, chosen)
    done = 0
    with torch.no_grad(), stream("check"), evaluation_mode(model.module):
        for minibatch in loader(min(len(positions), 1024)):
            names = manager.adata.obs_names[positions[done : done + minibatch.n]]
            for name, node in _nodes(model, minibatch.to(model.device)).items():
                if node["type"] == "sample" and node["is_observed"]:
                    _check_site(name, node, names)
            done += minibatch.n


def _nodes(model: BaseModelClass, minibatch: Any) -> dict[str, Any]:
    try:
        with pyro.validation_enabled(False):
            latents = latent_values(poutine.trace(model.module.run_guide).get_trace(minibatch))
            with Substitute(latents):
                trace: Any = poutine.trace(model.module.run_model).get_trace(minibatch)
    except PyroviError:
        raise
    except (IndexError, RuntimeError, ValueError) as error:
        message = str(error).partition("\nTrace Shapes:")[0]
        raise ModelError(
            f"The model fails on its data, although it ran on made-up observations: "
            f"{type(error).__name__}: {message}\n{hint(message, minibatch.tensors)}".rstrip()
        ) from error
    return dict(trace.nodes)


def _check_site(name: str, node: Any, obs_names: Any) -> None:
    fn = node["fn"]
    if node["mask"] is not None:
        return
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    if isinstance(fn, (dist.MaskedDistribution, dist.Delta, dist.Unit)):
        return
    try:
        support = fn.support
    except NotImplementedError:
        return  # a distribution of the user's own that does not tell
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    expected = _FIXED.get(str(support))
    bounds = [getattr(support, bound, None) for bound in ("lower_bound", "upper_bound")]
    if expected is None and all(isinstance(bound, int) for bound in bounds):
        expected = f"{bounds[0]}, ..., {bounds[1]}"
    if expected is None:
        return
    possible = support.check(node["value"])
    if possible.all():
        return
    where = (~possible).nonzero()[0].tolist()
    value = node["value"][tuple(where)].item()
    whose = f"at {tuple(where)}"
    dims = [f.dim for f in node["cond_indep_stack"] if f.name == OBS_PLATE]
    if dims:
        axis = dims[0] - node["fn"].event_dim
        whose = f"for observation {obs_names[where[axis]]!r}"
    raise DataError(
        f"Site {name!r} observes {value:g} {whose}, which its distribution {type(fn).__name__} "
        f"cannot produce: it draws {expected}. Check that the field is the right piece of the data "
        "(raw counts, not logarithms or normalised values; codes that begin at 0), or use a "
        "distribution of such values."
    )
