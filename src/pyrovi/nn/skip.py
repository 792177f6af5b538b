"""A network whose outputs see its input again, beside what its hidden layers make of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrovi.nn.layers import CovariateLinear, FCLayers


class SkipNetwork(nn.Module):
    r"""Hidden layers with a skip connection from the input to linear heads.

    .. math::
        h = \mathrm{FCLayers}(z, s), \qquad f_k(z, s) = W_k [h, z, s] + b_k

    Parameters
    ----------
    n_input
        Number of features.
    n_outputs
        Number of outputs of each head.
    n_cat_list, n_cont
        Covariates :math:`s`, as in :class:`FCLayers`; the heads see them as well.
    n_hidden
        Width of the hidden layers.
    **kwargs
        Other options of :class:`FCLayers`.
    """

    def __init__(
        self,
        n_input: int,
        n_outputs: Sequence[int],
        n_cat_list: Iterable[int] | None = None,
        n_cont: int = 0,
        n_hidden: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        n_cat_list = list(n_cat_list or ())
        self.layers = FCLayers(n_input, n_hidden, n_cat_list, n_cont, n_hidden=n_hidden, **kwargs)
        self.heads = nn.ModuleList(
            CovariateLinear(n_hidden + n_input, n, n_cat_list, n_cont) for n in n_outputs
        )

    def forward(
        self, z: Tensor, *cat_list: Tensor, cont: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Apply the network.

        Parameters
        ----------
        z
            Features of shape ``(..., n_input)``.
        *cat_list, cont
            Covariates as in :class:`FCLayers`.

        Returns
        -------
        tuple of Tensor
            One of each head, of shape ``(..., n_outputs[k])``.
        """
        hidden = self.layers(z, *cat_list, cont=cont)
        both = torch.cat([hidden, z], -1)
        return tuple(head(both, *cat_list, cont=cont) for head in self.heads)
