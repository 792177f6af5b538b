"""PPCA and factor analysis (Tipping & Bishop 1999; Roweis & Ghahramani 1999)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._rng import generator
from pyrovi._settings import settings
from pyrovi.data import AnnDataManager
from pyrovi.data.containers import preview
from pyrovi.data.fields import LayerField
from pyrovi.dataloaders import AnnDataLoader
from pyrovi.errors import DataError
from pyrovi.model import latent
from pyrovi.model.base import BaseModelClass
from pyrovi.model.components import common_factors, principal_components
from pyrovi.model.loadings import factor_names, loadings_frame
from pyrovi.model.training import train_with_defaults
from pyrovi.module.factor_analysis import FactorAnalysisModule, Noise

Floats = NDArray[np.float64]

AT_ONCE = 5 * 10**7
"""Values of a matrix up to which all observations are one minibatch, and are looked at to start."""

_STEPS, _STEPS_NEAR = 4_000, 1_000
"""Steps of training by minibatches, from random loadings and from the components. Many
observations at once need fewer, as the ELBO tells."""


class FactorAnalysis(BaseModelClass):
    r"""Linear factors of real-valued data, with noise of each variable's own variance.

    The generative story and its symbols are those of
    :class:`~pyrovi.module.factor_analysis.FactorAnalysisModule`. :math:`W`, :math:`\mu` and
    :math:`\psi` are estimated by maximum likelihood; the posterior of the factors given these is
    exact, so :meth:`get_elbo` is the log marginal likelihood itself.

    Parameters
    ----------
    adata
        Data that were set up with :meth:`setup_anndata`.
    n_latent
        Number of factors.

    Raises
    ------
    DataError
        If a variable is constant: the likelihood then has no maximum.
    ModelError
        If there are not fewer factors than variables.

    Notes
    -----
    After training the factors are those of the principal axes of :math:`W W^\top`: the columns of
    :math:`W` are orthogonal and ordered by the variance they explain. Another rotation has the same
    likelihood; ``align={"factor": "rotation"}`` of :meth:`summary` compares fits regardless of it.

    References
    ----------
    Roweis & Ghahramani (1999), *A unifying review of linear Gaussian models*, Neural Computation
    11. Bishop (2006), *Pattern recognition and machine learning*, chapter 12. The iteration that
    training starts with: Barber (2012), *Bayesian reasoning and machine learning*, section 21.2.

    Examples
    --------
    >>> FactorAnalysis.setup_anndata(adata, layer="log1p")
    >>> model = FactorAnalysis(adata, n_latent=10)
    >>> model.train()
    >>> model.get_loadings()["Z_0"].nlargest(20)
    """

    noise: ClassVar[Noise] = "diagonal"

    def __init__(
        self,
        adata: AnnData | Mapping[str, Any] | None = None,
        n_latent: int = 10,
    ) -> None:
        super().__init__(adata)  # type: ignore[arg-type]
        centre = scale = None
        if self._adata_manager is not None:
            mean, variance = _moments(self._adata_manager, None)
            self._check_variances(variance)
            centre, scale = torch.as_tensor(mean), torch.as_tensor(variance).sqrt()
        self.module = FactorAnalysisModule(
            self.summary_stats.n_vars, n_latent, noise=self.noise, centre=centre, scale=scale
        )

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls, adata: AnnData, layer: str | None = None
    ) -> None:
        """Declare which parts of an AnnData the model uses.

        Parameters
        ----------
        adata
            The data; only an id is written, to ``adata.uns``.
        layer
            Layer with real values, e.g. log-normalised expression; ``None`` for ``X``. The model
            has an offset of each variable; scaling the variables is up to the user.

        Raises
        ------
        DataError, MissingKeyError
            If values are missing or infinite, or there is no such layer.
        """
        cls.register(adata, [LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False)], locals())

    # ------------------------------------------------------------------ training

    def train(self, max_epochs: int | None = None, **options: Any) -> None:
        """Fit the model; see :meth:`BaseModelClass.train` for all options.

        Unless options say otherwise: all observations are trained on, at once if they are few, and
        training starts at the maximum of the likelihood as it follows from a decomposition of the
        training observations (``start="components"``; of a sample of these if they are many), with
        no KL warm-up, until the ELBO does not improve (minibatches: for a fixed number of steps of
        falling size, with averaging). Restarts (``n_restarts``) begin at random loadings instead.
        ``plan_kwargs`` are merged into these defaults.

        Parameters
        ----------
        max_epochs
            Most epochs; ``None``: as many as the defaults say.
        options
            Further options; ``start=None`` begins at random loadings.
        """
        if options.get("method", "svi") != "svi":
            super().train(max_epochs, **options)
            return
        given = options if max_epochs is None else {"max_epochs": max_epochs, **options}
        train_with_defaults(self, given, self._training_defaults(options))
        self._use_principal_axes()

    def _training_defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        n_obs, n_vars = self.adata_manager.n_obs, self.summary_stats.n_vars
        start = "components" if options.get("n_restarts", 1) == 1 else None
        near = options.get("start", start) is not None
        size = options.get("batch_size", None if n_obs * n_vars <= AT_ONCE else settings.batch_size)
        size = settings.batch_size if size == "default" else size
        # the first steps are those of Adam in units of the data's standard deviations
        plan: dict[str, Any] = {"lr": 1e-3 if near else 0.02, "eps": 1e-4, "weight_decay": 0.0}
        plan |= {"n_epochs_kl_warmup": 0}
        defaults: dict[str, Any] = {"batch_size": size, "start": start, "plan_kwargs": plan}
        held_out = {"train_size", "datasplitter_kwargs"} & options.keys()
        if not held_out and options.get("early_stopping") is not True:
            defaults["train_size"] = 1.0
        if size is None:
            return defaults | {"max_epochs": _STEPS, "early_stopping": "elbo"}
        plan["lr_decay"] = 0.01
        steps = _STEPS_NEAR if near else _STEPS
        return defaults | {"max_epochs": math.ceil(steps * size / n_obs), "averaging": True}

    def start_at_components(self, indices: NDArray[np.int64]) -> None:
        """Put the parameters at the maximum of the likelihood of observations, or near it.

        Parameters
        ----------
        indices
            Positions of the observations; of more than fit into memory in dense form, a sample.

        Raises
        ------
        DataError
            If these observations are fewer than the factors, or a variable is constant in them.
        """
        module: Any = self.module
        mean, variance = _moments(self.adata_manager, indices)
        self._check_variances(variance)
        most = max(AT_ONCE // len(mean), 1_000)
        if len(indices) > most:
            indices = np.sort(generator("start").choice(indices, most, replace=False))
        if len(indices) <= module.n_latent:
            raise DataError(
                f"{len(indices)} training observations cannot tell {module.n_latent} factors. "
                "Expected more observations than factors: lower n_latent."
            )
        centred = np.concatenate([x - mean for x in _values(self.adata_manager, indices)])
        solve = principal_components if self.noise == "isotropic" else common_factors
        W, psi = solve(centred, variance, module.n_latent)
        like = module.standard_W
        module.set_values(*(torch.as_tensor(value).to(like) for value in (W, mean, psi)))

    starts: ClassVar[Mapping[str, Any]] = {"components": start_at_components}

    def _check_variances(self, variance: Floats) -> None:
        constant = variance == 0 if self.noise == "diagonal" else np.full(1, not variance.any())
        if constant.any():
            names = preview(self.var_names[constant] if len(constant) > 1 else self.var_names)
            raise DataError(
                f"{int(constant.sum()) if len(constant) > 1 else 'All'} variables are constant "
                f"({names}), so the likelihood grows without bound as their noise vanishes. Leave "
                "them out: adata[:, adata.X.var(0) > 0]."
            )

    def _use_principal_axes(self) -> None:
        """Rotate the factors of the model and of each of its restarts."""
        module: Any = self.module
        own = {name: value.clone() for name, value in module.state_dict().items()}
        for state in self._restarts:
            module.load_state_dict(state)
            module.use_principal_axes()
            state["standard_W"] = module.standard_W.detach().cpu().clone()
        module.load_state_dict(own)
        module.use_principal_axes()

    # ------------------------------------------------------------------ results

    def get_loadings(self) -> pd.DataFrame:
        """Loadings ``W``: variables in rows, factors ``Z_0``, ``Z_1``, ... in columns.

        In the units of the data. After training the columns are orthogonal, and the first explains
        the most variance; its largest entry is positive.
        """
        return loadings_frame(self, self._values()[0])

    def get_explained_variance(self) -> pd.DataFrame:
        """Variance that each factor explains.

        Returns
        -------
        pandas.DataFrame
            A row per factor: ``variance``, summed over the variables, and its ``share`` of the
            variance of the model, that of the noise included.
        """
        W, _, psi = self._values()
        variance = W.double().square().sum(0)
        share = variance / (variance.sum() + psi.double().sum())
        table = {"variance": variance.cpu().numpy(), "share": share.cpu().numpy()}
        return pd.DataFrame(table, index=factor_names(len(variance)))

    def _values(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        module: Any = self.module
        with torch.no_grad():
            values: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = module.values()
        return values

    get_latent_representation = latent.get_latent_representation


class PPCA(FactorAnalysis):
    r"""Probabilistic principal component analysis: factors and noise of one variance.

    As :class:`FactorAnalysis`, with :math:`\Psi = \sigma^2 I`. The maximum of the likelihood is
    known: the columns of :math:`W` are the first principal axes, of squared lengths
    :math:`\lambda_i - \sigma^2`, and :math:`\sigma^2` is the mean of the other eigenvalues of the
    covariance.

    Parameters
    ----------
    adata
        Data that were set up with :meth:`setup_anndata`.
    n_latent
        Number of factors.

    Raises
    ------
    DataError
        If all variables are constant.
    ModelError
        If there are not fewer factors than variables.

    References
    ----------
    Tipping & Bishop (1999), *Probabilistic principal component analysis*, Journal of the Royal
    Statistical Society B 61, 611-622.

    Examples
    --------
    >>> PPCA.setup_anndata(adata, layer="log1p")
    >>> model = PPCA(adata, n_latent=10)
    >>> model.train()
    >>> model.get_explained_variance()
    """

    noise: ClassVar[Noise] = "isotropic"


def _values(manager: AnnDataManager, indices: Any) -> Any:
    """Rows in dense form, some at a time."""
    for minibatch in AnnDataLoader(manager, indices, batch_size=1024):
        yield minibatch[REGISTRY_KEYS.X_KEY].double().numpy()


def _moments(manager: AnnDataManager, indices: Any) -> tuple[Floats, Floats]:
    """Mean and variance of each variable."""
    total: Any = 0.0
    squares: Any = 0.0
    n, origin = 0, None
    for x in _values(manager, indices):
        origin = x.mean(0) if origin is None else origin  # near the mean, so that no digits cancel
        x = x - origin
        total, squares, n = total + x.sum(0), squares + (x**2).sum(0), n + len(x)
    mean = total / n
    return origin + mean, np.maximum(squares / n - mean**2, 0.0)
