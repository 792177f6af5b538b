"""Stories that read the data of an observed site for more than to observe them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovi._rng import stream
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule, evaluation_mode
from pyrovi.posterior.density import log_density
from pyrovi.posterior.stories import model_trace


def refuse_own_data(
    module: PyroBaseModule,
    minibatch: Minibatch,
    values: Mapping[str, Tensor],
    keys: Mapping[str, str],
    drawn: Mapping[str, Tensor] | None = None,
) -> None:
    """Refuse to simulate from stories in which distributions change with the observed data.

    The story runs twice with the same random numbers: the second time the values of each
    observation have changed places (where there is one value each, the observations have). What
    depends on the total of an observation does not change, so a library size may be read.

    Parameters
    ----------
    module
        The pair.
    minibatch
        Real observations.
    values
        Latent site -> its value, of one draw.
    keys
        Observed site -> key of the tensor that holds its data.
    drawn
        Observed site -> a draw of it, which takes the place of data that are the same everywhere.

    Raises
    ------
    ModelError
        Naming the observed sites whose distribution changes.
    """
    plain, moved = dict(minibatch.tensors), dict(minibatch.tensors)
    for site, key in keys.items():
        tensor = minibatch[key]
        if drawn is not None and torch.equal(_moved(tensor), tensor):
            tensor = drawn[site].reshape(tensor.shape).to(tensor.dtype)
        plain[key], moved[key] = tensor, _moved(tensor)
    first, second = (
        _observed_nodes(module, minibatch.replace(tensors=tensors), values)
        for tensors in (plain, moved)
    )
    readers = [site for site in keys if not _same_draw(first[site], second[site])]
    if readers:
        raise ModelError(
            f"The distribution of the observed site {', '.join(map(repr, readers))} changes with "
            f"the observed data ({', '.join(map(repr, keys.values()))}): the story computes "
            "something from them, e.g. a lag, beside observing them. Simulated values would follow "
            "the real data and not one another. Write the distribution without its own data: a "
            "series as one multivariate site (dist.MultivariateNormal, dist.GaussianHMM, "
            "dist.TransformedDistribution), or as one site and column a step. Where an observed "
            "site is a regressor of another, use the value that its pyro.sample returns."
        )


def _moved(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(len(tensor), -1)
    order = torch.Generator().manual_seed(0)
    if flat.shape[1] == 1:
        return tensor[torch.randperm(len(flat), generator=order).to(tensor.device)]
    ranks = torch.rand(flat.shape, generator=order).argsort(1).to(tensor.device)
    return flat.gather(1, ranks).reshape(tensor.shape)


def _observed_nodes(
    module: PyroBaseModule, minibatch: Minibatch, values: Mapping[str, Tensor]
) -> Mapping[str, Any]:
    with torch.no_grad(), evaluation_mode(module), stream("own data"):
        nodes: Mapping[str, Any] = model_trace(
            module, minibatch, dict(values), predictive=True
        ).nodes
    return nodes


def _same_draw(first: Any, second: Any) -> bool:
    pairs = [(first["value"], second["value"]), (log_density(first), log_density(second))]
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True) for a, b in pairs)
