"""Decoders: from latent variables to the parameters of a distribution of counts or of values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrovi.errors import ModelError
from pyrovi.nn.layers import FCLayer, FCLayers
from pyrovi.nn.linear import Linear

_SMALLEST_GAIN, _LARGEST_GAIN = 1e-3, 2.0
"""Of the batch normalisation of a linear decoder that starts at given loadings."""


class CountParameters(NamedTuple):
    """What a decoder of counts returns; every tensor has shape ``(..., n_output)``."""

    scale: Tensor
    """Normalised expression: the mean without the library size."""
    r: Tensor | None
    """Logarithm of the inverse dispersion; ``None`` unless it is predicted for every cell."""
    rate: Tensor
    """Mean of the counts, the scale times the library size."""
    dropout: Tensor | None
    """Log-odds of an extra zero; ``None`` for a decoder without zero inflation."""


class DecoderSCVI(nn.Module):
    r"""Decoder of counts with a nonlinear network.

    .. math::
        h = \mathrm{FCLayers}(z), \qquad \rho = \mathrm{softmax}(W_\rho h), \qquad
        \mu = e^{l} \rho

    Hidden layers have no dropout. Heads are linear.

    Parameters
    ----------
    n_input
        Number of latent variables.
    n_output
        Number of features of an observation.
    n_cat_list, n_cont, n_layers, n_hidden, inject_covariates, use_batch_norm, use_layer_norm
        As in :class:`FCLayers`.
    scale_activation
        ``"softmax"``: the scale sums to one; ``"softplus"``: it is only positive (for use with
        given size factors).
    cell_dispersion
        Whether to predict the inverse dispersion for every cell and feature
        (``dispersion="gene-cell"``).
    zero_inflation
        Whether to predict extra zeros.
    **kwargs
        Other options of :class:`FCLayers`.

    Raises
    ------
    ModelError
        If ``scale_activation`` is not one of the two.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_cat_list: Iterable[int] | None = None,
        n_cont: int = 0,
        n_layers: int = 1,
        n_hidden: int = 128,
        inject_covariates: bool = True,
        use_batch_norm: bool = False,
        use_layer_norm: bool = False,
        scale_activation: Literal["softmax", "softplus"] = "softmax",
        cell_dispersion: bool = False,
        zero_inflation: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if scale_activation not in ("softmax", "softplus"):
            raise ModelError(
                "DecoderSCVI: scale_activation must be 'softmax' or 'softplus', "
                f"found {scale_activation!r}."
            )
        self.scale_activation = scale_activation
        self.layers = FCLayers(
            n_input,
            n_hidden,
            n_cat_list,
            n_cont,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=0.0,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            inject_covariates=inject_covariates,
            **kwargs,
        )
        self.scale_head = Linear(n_hidden, n_output)
        # Only heads that are used exist: an unused parameter would stop data-parallel training.
        self.r_head = Linear(n_hidden, n_output) if cell_dispersion else None
        self.dropout_head = Linear(n_hidden, n_output) if zero_inflation else None

    def forward(
        self, z: Tensor, library: Tensor, *cat_list: Tensor, cont: Tensor | None = None
    ) -> CountParameters:
        """Decode latent variables.

        Parameters
        ----------
        z
            Latent variables of shape ``(..., n_input)``.
        library
            Logarithm of the library size (or size factor), of shape ``(..., 1)``.
        *cat_list, cont
            Covariates as in :class:`FCLayers`.

        Returns
        -------
        CountParameters
            A named tuple ``(scale, r, rate, dropout)``.
        """
        hidden = self.layers(z, *cat_list, cont=cont)
        raw = self.scale_head(hidden)
        scale = raw.softmax(-1) if self.scale_activation == "softmax" else functional.softplus(raw)
        return CountParameters(
            scale,
            None if self.r_head is None else self.r_head(hidden),
            library.exp() * scale,
            None if self.dropout_head is None else self.dropout_head(hidden),
        )


class LinearDecoderSCVI(nn.Module):
    r"""Decoder of counts that is linear in the latent variables, with interpretable loadings.

    .. math::
        \rho = \mathrm{softmax}(\mathrm{BN}(W [z, \mathrm{onehot}(s)])), \qquad \mu = e^{l} \rho

    Parameters
    ----------
    n_input
        Number of latent variables.
    n_output
        Number of features of an observation.
    n_cat_list, n_cont, use_batch_norm, use_layer_norm, bias
        As in :class:`FCLayers`.
    zero_inflation
        Whether to predict extra zeros, by a second network of the same form.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_cat_list: Iterable[int] | None = None,
        n_cont: int = 0,
        use_batch_norm: bool = False,
        use_layer_norm: bool = False,
        bias: bool = False,
        zero_inflation: bool = True,
    ) -> None:
        super().__init__()
        n_cat_list = list(n_cat_list or ())

        def linear() -> FCLayers:
            return FCLayers(
                n_input,
                n_output,
                n_cat_list,
                n_cont,
                n_layers=1,
                dropout_rate=0.0,
                use_batch_norm=use_batch_norm,
                use_layer_norm=use_layer_norm,
                use_activation=False,
                bias=bias,
            )

        self.n_input = n_input
        self.scale_layers = linear()
        self.dropout_layers = linear() if zero_inflation else None

    def forward(
        self, z: Tensor, library: Tensor, *cat_list: Tensor, cont: Tensor | None = None
    ) -> CountParameters:
        """Decode latent variables; arguments and result as in :meth:`DecoderSCVI.forward`."""
        scale = self.scale_layers(z, *cat_list, cont=cont).softmax(-1)
        dropout = self.dropout_layers
        return CountParameters(
            scale,
            None,
            library.exp() * scale,
            None if dropout is None else dropout(z, *cat_list, cont=cont),
        )

    def loadings(self) -> Tensor:
        r"""Effect of each latent variable on each feature before the softmax, at evaluation.

        Returns
        -------
        Tensor
            Of shape ``(n_output, n_input)``: the weights, times
            :math:`\gamma / \sqrt{\text{running variance} + \epsilon}` under batch normalisation.
            Columns of covariates are left out.
        """
        layer = cast(FCLayer, self.scale_layers.layers[0])
        weight = layer.linear.weight[:, : self.n_input].detach()
        norm = layer.batch_norm
        if norm is None:
            return weight.clone()
        assert norm.running_var is not None  # pyrovi's BatchNorm always tracks it
        gain = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        return gain[:, None] * weight

    @torch.no_grad()
    def start_at(self, loadings: Tensor, offsets: Tensor) -> None:
        """Give the decoder loadings, and offsets to the categories of the first covariate.

        Effects of further covariates become zero. Batch normalisation has the mean of the offsets
        as its shift and the size of the effects as its gain; without it there are no offsets but
        differences between categories.

        Parameters
        ----------
        loadings
            Of the features that are not covariates, shape ``(n_output, n_loadings)``.
        offsets
            Shape ``(n_categories, n_output)``; one row if the covariate has no columns.
        """
        layer = cast(FCLayer, self.scale_layers.layers[0])
        weight, norm = layer.linear.weight, layer.batch_norm
        shift = offsets.mean(0)
        effects = torch.zeros_like(weight)
        effects[:, : loadings.shape[1]] = loadings.to(weight)
        if len(offsets) > 1:
            columns = slice(self.n_input, self.n_input + len(offsets))
            effects[:, columns] = (offsets - shift).T.to(weight)
        if norm is not None:
            size = effects.norm(dim=1).clamp_min(_SMALLEST_GAIN)
            effects = effects / size[:, None]
            norm.weight.copy_(size.clamp_max(_LARGEST_GAIN))
            norm.bias.copy_(shift)
            norm.reset_running_stats()
        weight.copy_(effects)


class Decoder(nn.Module):
    r"""Decoder to a diagonal normal distribution of values.

    Parameters
    ----------
    n_input
        Number of latent variables.
    n_output
        Number of features of an observation.
    n_cat_list, n_cont, n_layers, n_hidden
        As in :class:`FCLayers`.
    **kwargs
        Other options of :class:`FCLayers`; ``dropout_rate`` is 0 unless given.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_cat_list: Iterable[int] | None = None,
        n_cont: int = 0,
        n_layers: int = 1,
        n_hidden: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.layers = FCLayers(
            n_input,
            n_hidden,
            n_cat_list,
            n_cont,
            n_layers=n_layers,
            n_hidden=n_hidden,
            **{"dropout_rate": 0.0, **kwargs},
        )
        self.mean_head = Linear(n_hidden, n_output)
        self.variance_head = Linear(n_hidden, n_output)

    def forward(
        self, z: Tensor, *cat_list: Tensor, cont: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode latent variables.

        Parameters
        ----------
        z
            Latent variables of shape ``(..., n_input)``.
        *cat_list, cont
            Covariates as in :class:`FCLayers`.

        Returns
        -------
        tuple of Tensor
            Mean and **standard deviation**, both of shape ``(..., n_output)``; the network
            predicts the logarithm of the variance.
        """
        hidden = self.layers(z, *cat_list, cont=cont)
        return self.mean_head(hidden), torch.exp(0.5 * self.variance_head(hidden))
