"""Encoders: parameters of a diagonal normal distribution, and a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrovi.errors import ModelError
from pyrovi.nn.layers import FCLayers
from pyrovi.nn.linear import Linear


class Encoder(nn.Module):
    r"""Network that maps observations to a diagonal normal distribution of latent variables.

    .. math::
        h = \mathrm{FCLayers}(x), \qquad m = W_m h + b_m, \qquad
        s = \sqrt{\exp(W_v h + b_v) + \epsilon}

    The second output :math:`s` is a **standard deviation**, what Pyro's ``Normal(loc, scale)``
    expects. The network predicts a variance; its root is taken here and nowhere else.

    Parameters
    ----------
    n_input
        Number of features of an observation.
    n_output
        Number of latent variables.
    n_cat_list, n_cont, n_layers, n_hidden, dropout_rate
        As in :class:`FCLayers`.
    distribution
        ``"normal"``, or ``"ln"`` (logistic normal) whose draws are to be passed through
        :meth:`transform`.
    var_eps
        Added to the variance, :math:`\epsilon`.
    var_activation
        Function that makes the variance positive (default: the exponential).
    **kwargs
        Other options of :class:`FCLayers`.

    Raises
    ------
    ModelError
        If ``distribution`` is not one of the two.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_cat_list: Iterable[int] | None = None,
        n_cont: int = 0,
        n_layers: int = 1,
        n_hidden: int = 128,
        dropout_rate: float = 0.1,
        distribution: Literal["normal", "ln"] = "normal",
        var_eps: float = 1e-4,
        var_activation: Callable[[Tensor], Tensor] = torch.exp,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if distribution not in ("normal", "ln"):
            raise ModelError(
                f"Encoder: distribution must be 'normal' or 'ln', found {distribution!r}."
            )
        self.distribution = distribution
        self.var_eps = var_eps
        self.var_activation = var_activation
        self.layers = FCLayers(
            n_input,
            n_hidden,
            n_cat_list,
            n_cont,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=dropout_rate,
            **kwargs,
        )
        self.mean_head = Linear(n_hidden, n_output)
        self.variance_head = Linear(n_hidden, n_output)

    def forward(
        self, x: Tensor, *cat_list: Tensor, cont: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode observations.

        Parameters
        ----------
        x
            Observations of shape ``(..., n_input)``.
        *cat_list, cont
            Covariates as in :class:`FCLayers`.

        Returns
        -------
        tuple of Tensor
            Mean and standard deviation, both of shape ``(..., n_output)``.
        """
        hidden = self.layers(x, *cat_list, cont=cont)
        variance = self.var_activation(self.variance_head(hidden)) + self.var_eps
        return self.mean_head(hidden), variance.sqrt()

    def transform(self, z: Tensor) -> Tensor:
        """Map a draw of the normal to the latent space: softmax for ``"ln"``, else unchanged."""
        return z.softmax(dim=-1) if self.distribution == "ln" else z


class Classifier(nn.Module):
    """Network that maps features to the probabilities (or logits) of labels.

    Parameters
    ----------
    n_input
        Number of features.
    n_hidden
        Number of hidden features.
    n_labels
        Number of labels.
    n_layers
        Number of hidden layers; 0 is a linear classifier.
    dropout_rate
        Dropout after each hidden layer.
    logits
        Whether to return logits instead of probabilities.
    **kwargs
        Other options of :class:`FCLayers`, such as ``use_batch_norm`` or ``activation_fn``.
    """

    def __init__(
        self,
        n_input: int,
        n_hidden: int = 128,
        n_labels: int = 5,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        logits: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.logits = logits
        self.hidden: nn.Module = nn.Identity()
        if n_layers > 0:
            self.hidden = FCLayers(
                n_input,
                n_hidden,
                n_layers=n_layers,
                n_hidden=n_hidden,
                dropout_rate=dropout_rate,
                **kwargs,
            )
        self.head = Linear(n_hidden if n_layers > 0 else n_input, n_labels)

    def forward(self, x: Tensor) -> Tensor:
        """Classify ``x`` of shape ``(..., n_input)``; the result has shape ``(..., n_labels)``."""
        logits = self.head(self.hidden(x))
        return logits if self.logits else logits.softmax(dim=-1)
