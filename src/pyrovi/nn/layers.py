"""Fully connected layers into which covariates are injected."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from pyrovi.errors import ModelError
from pyrovi.nn.covariates import code_columns
from pyrovi.nn.linear import Linear, linear

BATCH_NORM_MOMENTUM = 0.01
BATCH_NORM_EPS = 0.001


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the last dimension, pooling all leading dimensions.

    A training batch that holds one observation has no variance: it is normalised with the running
    statistics, which it leaves unchanged (:class:`torch.nn.BatchNorm1d` raises instead).

    Parameters
    ----------
    n_features
        Size of the last dimension.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features, momentum=BATCH_NORM_MOMENTUM, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``(..., n_features)``."""
        flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        if self.training and len(flat) == 1:
            result = functional.batch_norm(
                flat, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        else:
            result = super().forward(flat)
        return result if x.ndim == 2 else result.reshape(x.shape)


class CovariateLinear(nn.Module):
    """A linear layer of the concatenation of features, one-hot and continuous covariates.

    The concatenation is never built: columns of the weight that belong to a category are looked up,
    and covariates broadcast over leading dimensions of the features that they lack. Initialisation
    is that of :class:`torch.nn.Linear` with ``n_in`` plus all covariate columns as its inputs.

    Parameters
    ----------
    n_in
        Number of features.
    n_out
        Number of outputs.
    n_cat_list
        Number of categories of each categorical covariate; one with a single category (or none)
        is skipped.
    n_cont
        Number of continuous covariates.
    bias
        Whether there is a bias.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_cat_list: Iterable[int] | None = None,
        n_cont: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.n_in = n_in
        self.n_cat_list = [n if n > 1 else 0 for n in n_cat_list or ()]
        self.n_cont = n_cont
        whole = Linear(n_in + sum(self.n_cat_list) + n_cont, n_out, bias=bias)
        # order of the columns: features, categories in the order of n_cat_list, continuous
        self.weight = whole.weight
        self.bias = whole.bias

    def forward(self, x: Tensor, *cat_list: Tensor, cont: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Parameters
        ----------
        x
            Features of shape ``(..., n_in)``.
        *cat_list
            For each categorical covariate integer codes of shape ``(..., 1)``, or weights of its
            categories (a floating tensor of shape ``(..., n_cat)``, such as probabilities).
        cont
            Continuous covariates of shape ``(..., n_cont)``.

        Returns
        -------
        Tensor
            Of shape ``(..., n_out)``.

        Raises
        ------
        ModelError
            If the number of covariates is not the declared one.
        DataError
            If a code is out of range.
        """
        self._check(cat_list, cont)
        if sum(self.n_cat_list) + self.n_cont == 0:
            return linear(x, self.weight, self.bias)
        result = linear(x, self.weight[:, : self.n_in], self.bias)
        start = self.n_in
        for position, (n_cat, cat) in enumerate(zip(self.n_cat_list, cat_list, strict=True)):
            if n_cat == 0:
                continue
            columns = self.weight[:, start : start + n_cat]
            start += n_cat
            if cat.is_floating_point():
                result = result + functional.linear(cat, columns)
            else:
                result = result + code_columns(f"number {position}", cat, columns)
        if cont is not None and self.n_cont:
            result = result + functional.linear(cont, self.weight[:, start:])
        return result

    def _check(self, cat_list: tuple[Tensor, ...], cont: Tensor | None) -> None:
        if len(cat_list) != len(self.n_cat_list):
            raise ModelError(
                f"Expected {len(self.n_cat_list)} categorical covariates (one for each entry of "
                f"n_cat_list), found {len(cat_list)}."
            )
        found = 0 if cont is None else cont.shape[-1]
        if found != self.n_cont:
            raise ModelError(f"Expected {self.n_cont} continuous covariates, found {found}.")


class FCLayer(nn.Module):
    """One layer: linear, batch norm, layer norm, activation, dropout (all but the first optional).

    Parameters
    ----------
    linear
        The linear layer, which takes the covariates.
    batch_norm, layer_norm, activation, dropout
        What follows it, in this order; ``None`` leaves a step out.
    """

    def __init__(
        self,
        linear: CovariateLinear,
        batch_norm: BatchNorm | None = None,
        layer_norm: nn.Module | None = None,
        activation: nn.Module | None = None,
        dropout: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.batch_norm = batch_norm
        self.layer_norm = layer_norm
        self.activation = activation
        self.dropout = dropout

    def forward(self, x: Tensor, *cat_list: Tensor, cont: Tensor | None = None) -> Tensor:
        """Apply the layer; arguments as in :class:`CovariateLinear`."""
        x = self.linear(x, *cat_list, cont=cont)
        for step in (self.batch_norm, self.layer_norm, self.activation, self.dropout):
            if step is not None:
                x = step(x)
        return x


class FCLayers(nn.Module):
    """A stack of fully connected layers with covariates injected into each of them.

    Parameters
    ----------
    n_in, n_out
        Number of input and output features.
    n_cat_list
        Number of categories of each categorical covariate; one with a single category is accepted
        and ignored.
    n_cont
        Number of continuous covariates.
    n_layers
        Number of layers.
    n_hidden
        Number of features between layers.
    dropout_rate
        Dropout after each layer; no dropout layer is built for 0.
    use_batch_norm
        Whether to normalise over observations (momentum 0.01, eps 0.001).
    use_layer_norm
        Whether to normalise over features (without learned scale and shift).
    use_activation
        Whether to apply ``activation_fn``.
    bias
        Whether the linear layers have a bias.
    inject_covariates
        Whether every layer sees the covariates, or the first one only.
    activation_fn
        Module class of the activation.

    Raises
    ------
    ModelError
        If ``n_layers`` is below 1, or ``dropout_rate`` not in [0, 1).
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_cat_list: Iterable[int] | None = None,
        n_cont: int = 0,
        n_layers: int = 1,
        n_hidden: int = 128,
        dropout_rate: float = 0.1,
        use_batch_norm: bool = True,
        use_layer_norm: bool = False,
        use_activation: bool = True,
        bias: bool = True,
        inject_covariates: bool = True,
        activation_fn: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        if n_layers < 1:
            raise ModelError(f"FCLayers: n_layers must be at least 1, found {n_layers}.")
        if not 0 <= dropout_rate < 1:
            raise ModelError(f"dropout_rate must be at least 0 and below 1, got {dropout_rate!r}.")
        n_cat_list = list(n_cat_list or ())
        sizes = [n_in] + [n_hidden] * (n_layers - 1) + [n_out]
        self.inject_covariates = inject_covariates
        self.layers = nn.ModuleList()
        for number, (size_in, size_out) in enumerate(pairwise(sizes)):
            sees_covariates = inject_covariates or number == 0
            self.layers.append(
                FCLayer(
                    CovariateLinear(
                        size_in,
                        size_out,
                        n_cat_list if sees_covariates else None,
                        n_cont if sees_covariates else 0,
                        bias,
                    ),
                    BatchNorm(size_out) if use_batch_norm else None,
                    nn.LayerNorm(size_out, elementwise_affine=False) if use_layer_norm else None,
                    activation_fn() if use_activation else None,
                    nn.Dropout(dropout_rate) if dropout_rate > 0 else None,
                )
            )

    def forward(self, x: Tensor, *cat_list: Tensor, cont: Tensor | None = None) -> Tensor:
        """Apply the layers.

        Parameters
        ----------
        x
            Features of shape ``(..., n_in)``, with any number of leading dimensions.
        *cat_list
            For each categorical covariate integer codes of shape ``(..., 1)``, or weights of its
            categories (a floating tensor of shape ``(..., n_cat)``); they broadcast over leading
            dimensions of ``x``.
        cont
            Continuous covariates of shape ``(..., n_cont)``, which broadcast likewise.

        Returns
        -------
        Tensor
            Of shape ``(..., n_out)``.

        Raises
        ------
        ModelError
            If the number of covariates is not the declared one.
        DataError
            If a code is out of range.
        """
        for number, layer in enumerate(self.layers):
            if self.inject_covariates or number == 0:
                x = layer(x, *cat_list, cont=cont)
            else:
                x = layer(x)
        return x
