"""Minified data: a model whose counts are replaced by what it has learnt of each observation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from scipy import sparse

from pyrovi.data.fields import LayerField
from pyrovi.errors import DataError, ModelError
from pyrovi.model.draws import warn_if_untrained
from pyrovi.model.latent import guide_moments
from pyrovi.model.methods import is_fitted_by_svi
from pyrovi.model.minified_fields import MINIFIED_KEY
from pyrovi.model.setup import transferred_manager
from pyrovi.module.ledger import Role
from pyrovi.module.minified import is_minified, moment_keys

if TYPE_CHECKING:
    from pyrovi.data import AnnDataManager
    from pyrovi.model.base import BaseModelClass


def minify_adata(model: BaseModelClass) -> None:
    r"""Replace the model's data by what the model has learnt of each observation.

    ``model.adata`` becomes a new AnnData without counts: with the moments of
    :math:`q(z_n \mid x_n)` and the library sizes in ``obsm``, and with ``obs``, ``var``, ``obsm``,
    ``varm`` and ``uns`` as they are. The AnnData that the model was made with is left alone.
    Queries of latent variables, types, expression and predictive draws answer as before, as does
    differential expression without means of counts (``all_stats=False``, given pseudocounts). Those
    that compare with the counts (bounds on the evidence, predictive checks, training) say that
    there are none.
    ``save(save_anndata=True)`` and ``load`` keep it so, and other observations with counts can
    still be passed as ``adata=``.

    Raises
    ------
    ModelError
        If the model has not been trained by SVI, or cannot do without counts.
    DataError
        If the data are minified already, or are no AnnData.
    """
    sites = model.module.minified_sites
    if not sites:
        raise ModelError(
            f"A {type(model).__name__} cannot do without counts: its module names no "
            "minified_sites."
        )
    if not is_fitted_by_svi(model):
        raise ModelError(
            f"minify_adata() keeps what the guide has learnt of each observation, and this "
            f"{type(model).__name__} has not been trained by SVI. Train it first."
        )
    manager = model.adata_manager
    if is_minified(manager.data_registry):
        raise DataError(f"The data of this {type(model).__name__} are minified already.")
    if not isinstance(manager.adata, AnnData):
        raise DataError(
            f"minify_adata() takes an AnnData, and the model has a {type(manager.adata).__name__}."
        )
    warn_if_untrained(model)
    small = _without_counts(manager)
    for site in sites:
        mean_key, variance_key = moment_keys(site)
        if model.sites[site].role is Role.DETERMINISTIC:
            values = model.sample_posterior(site, num_samples=1)[site].values[0]
            small.obsm[mean_key] = values
            continue
        small.obsm[mean_key], small.obsm[variance_key] = guide_moments(model, site)
    small.uns[MINIFIED_KEY] = list(sites)
    model._adata_manager = transferred_manager(type(model), small, model.registry)


def _without_counts(manager: AnnDataManager) -> AnnData:
    """The AnnData of a manager, with empty matrices in place of its registered counts."""
    adata = manager.adata
    empty = sparse.csr_matrix(adata.shape, dtype=np.float32)
    layers = {f.layer: empty for f in manager.fields if isinstance(f, LayerField) and f.layer}
    return AnnData(
        empty,
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        uns=dict(adata.uns),
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
        layers=layers,
    )
