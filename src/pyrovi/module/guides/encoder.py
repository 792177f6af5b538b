"""The encoder of the amortised guide: from the tensors of an observation to its local latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn import functional

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.guides.distributions import draw_joint, draw_normal, full_rank_normal
from pyrovi.module.guides.inputs import EncoderInput
from pyrovi.module.guides.local_families import (
    by_plate_dimension,
    check_local_size,
    local_joint_site,
)
from pyrovi.module.guides.sites import LatentSite, Plates
from pyrovi.module.plates import current_minibatch
from pyrovi.nn.covariates import one_hot
from pyrovi.nn.layers import FCLayers
from pyrovi.nn.linear import Linear

_SMALLEST_SCALE = 1e-5

_FARTHEST = 10.0


class Standardise(nn.Module):
    """Centre and scale columns by the mean and standard deviation of all rows seen in training.

    Unlike batch normalisation, what becomes of an observation does not depend on the others of its
    minibatch, and the statistics settle: after an epoch they are those of the data.

    Parameters
    ----------
    n_features
        Number of columns.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("variance", torch.zeros(n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise ``x`` of shape ``(n, n_features)``; in training, learn from it first."""
        if self.training:
            self._learn(x.detach())
        # What does not vary in training is left alone; so is all before there are two rows.
        varies = self.variance > 1e-10 * self.mean.square() + 1e-20
        return (x - self.mean) / torch.where(varies, self.variance.sqrt(), 1.0)

    @torch.no_grad()
    def _learn(self, x: Tensor) -> None:
        # update of the moments by those of the minibatch (Chan, Golub & LeVeque 1979)
        self.count += len(x)
        weight = len(x) / self.count
        shift = x.mean(0) - self.mean
        self.mean += weight * shift
        within = (x.var(0, correction=0) - self.variance) * weight
        self.variance += within + weight * (1 - weight) * shift**2


class EncodedLocals(PyroModule):
    r"""Normal coordinates whose means and scales are functions of the observation.

    .. math::
        h = \mathrm{FCLayers}(x), \qquad m = m_0 + A\,[x / \sqrt{P}, h], \qquad
        s = \mathrm{softplus}(b + B\,[x / \sqrt{P}, h])

    with :math:`x` the :math:`P` standardised inputs, which reach the outputs directly too: a
    posterior mean that is linear in the data needs no hidden layer. :math:`m_0` is the sites'
    initial value. Inputs more than ten standard deviations out count as ten.

    Parameters
    ----------
    sites
        The local sites.
    inputs
        What the encoder reads.
    init_scale
        Standard deviation of every coordinate to start from.
    covariance
        ``"diagonal"``, or ``"full"``: all covariances within an observation.
    n_hidden, n_layers
        Size and number of the hidden layers.
    """

    def __init__(
        self,
        sites: Sequence[LatentSite],
        inputs: Sequence[EncoderInput],
        init_scale: float,
        covariance: Literal["diagonal", "full"],
        n_hidden: int,
        n_layers: int,
    ) -> None:
        super().__init__()
        self.inputs, self.covariance = tuple(inputs), covariance
        self.groups = by_plate_dimension(sites)
        ordered = [site for _, group in self.groups for site in group]
        n_latent, n_in = sum(s.size for s in ordered), sum(i.n_features for i in inputs)
        self.standardise: Any = Standardise(n_in)
        self.hidden: Any = FCLayers(
            n_in,
            n_hidden,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=0.0,
            use_batch_norm=False,
        )
        start = torch.cat([site.initial.reshape(-1) for site in ordered])
        self.loc_head: Any = Linear(n_in + n_hidden, n_latent)
        self.scale_head: Any = Linear(n_in + n_hidden, n_latent)
        self.lower_heads: Any = nn.ModuleList()
        if covariance == "full":
            sizes = [check_local_size(group) for _, group in self.groups]
            self.lower_heads.extend(Linear(n_in + n_hidden, k * (k - 1) // 2) for k in sizes)
        with torch.no_grad():
            self.loc_head.bias.copy_(start)
            self.scale_head.weight.zero_()
            self.scale_head.bias.fill_(math.log(math.expm1(init_scale)))
            for parameter in self.lower_heads.parameters():
                parameter.zero_()
        self.to(start.dtype)

    def forward(self, plates: Plates) -> None:
        """Draw the sites of the minibatch."""
        minibatch = current_minibatch()
        x = self.standardise(torch.cat([_columns(i, minibatch) for i in self.inputs], -1))
        x = x.clamp(-_FARTHEST, _FARTHEST)
        # An optimiser moves every weight by about its learning rate: in these units all inputs
        # together move an output by the root of their number, and many cannot run away with it.
        direct = x / math.sqrt(x.shape[-1])
        features = torch.cat([direct, self.hidden(x)], -1)
        loc = self.loc_head(features)
        scale = functional.softplus(self.scale_head(features)) + _SMALLEST_SCALE
        start = 0
        for position, (dim, group) in enumerate(self.groups):
            sizes = [site.size for site in group]
            part = slice(start, start + sum(sizes))
            start = part.stop
            if self.covariance == "full":
                fn = self._joint(position, dim, features, loc[:, part], scale[:, part])
                draw_joint(local_joint_site(dim), group, plates, fn)
                continue
            means, scales = loc[:, part].split(sizes, -1), scale[:, part].split(sizes, -1)
            for site, mean, sd in zip(group, means, scales, strict=True):
                with plates(site.frames):
                    draw_normal(site, site.shaped(mean), site.shaped(sd))

    def _joint(
        self, position: int, dim: int, features: Tensor, loc: Tensor, scale: Tensor
    ) -> dist.Distribution:
        n, size = loc.shape
        rows, columns = torch.tril_indices(size, size, -1, device=loc.device)
        places = rows * size + columns
        entries = self.lower_heads[position](features)
        flat = entries.new_zeros(n, size * size).index_copy(-1, places, entries)
        inner = (1,) * (-dim - 1)  # plates between that of the observations and the event
        return full_rank_normal(
            loc.reshape(n, *inner, size),
            scale.reshape(n, *inner, size),
            flat.reshape(n, *inner, size, size),
        )


def _columns(read: EncoderInput, minibatch: Minibatch) -> Tensor:
    tensor = minibatch[read.name]
    if tensor.shape[:1] != (minibatch.n,):
        raise ModelError(
            f"The encoder of the guide 'amortized' reads {read.name!r}, which has no row per "
            f"observation (shape {tuple(tensor.shape)}). Name its inputs with encoder_inputs=[...]."
        )
    if read.kind == "categorical":
        return one_hot(tensor.reshape(minibatch.n, 1), read.n_features, torch.get_default_dtype())
    flat = tensor.reshape(minibatch.n, -1).to(torch.get_default_dtype())
    return flat.log1p() if read.kind == "counts" else flat
