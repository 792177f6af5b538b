"""Count thinning: one part of every count is fitted and encoded, the other part is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from pyrovi._rng import derive_seed, stream
from pyrovi._settings import settings
from pyrovi.criticism.elpd import Elpd, observed_sites, total
from pyrovi.criticism.leave_one_out import log_mean_exp
from pyrovi.criticism.thinned_counts import check_fraction, held_out_log_prob, thin_counts
from pyrovi.data.fields.layer import carried_total
from pyrovi.errors import DataError, ModelError
from pyrovi.model.draws import posterior_globals, resolve_num_samples
from pyrovi.model.refit import refit
from pyrovi.module.base import evaluation_mode
from pyrovi.module.ledger import Role
from pyrovi.posterior.discrete import DiscreteTable, enumerates
from pyrovi.posterior.engine import bounded_batch_size, draws_at_once
from pyrovi.posterior.pareto import khat_threshold, psis
from pyrovi.posterior.stories import guide_trace, latent_values, model_trace
from pyrovi.posterior.vectorise import DrawMapper

if TYPE_CHECKING:
    from pyrovi.dataloaders.minibatch import Minibatch
    from pyrovi.model.base import BaseModelClass
    from pyrovi.posterior.vectorise import Story

_PLACES = ("X", "layers", "obsm")


def thinning(
    model: BaseModelClass,
    *,
    fraction: float = 0.5,
    site: str | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> Elpd:
    r"""Cross-validate a model of counts by splitting every count, not the observations.

    Each count is divided at random, :math:`x^{(1)} \sim \mathrm{Binomial}(x, \epsilon)` and
    :math:`x^{(2)} = x - x^{(1)}`. A fresh copy of the model is trained on the first part, and the
    second is predicted given the first: unlike all ways that leave observations out, this judges
    the posterior of the *local* latents. See :func:`thinned_density` for the prediction.

    Parameters
    ----------
    model
        A model with its data, trained or not; it is left alone.
    fraction
        Share :math:`\epsilon` of the counts that is fitted.
    site
        Observed site of the counts, which has the name of their registry key; ``None``: the only
        one.
    train_kwargs
        Arguments of :meth:`train`, e.g. ``{"method": "nuts"}``, in place of those that the model
        was trained with, which are repeated otherwise. SVI trains on all observations
        (``train_size=1``) unless they divide them.
    num_samples
        Joint draws of the latents; ``None`` for 250, or all stored draws if these are fewer.
    batch_size
        Largest number of observations at a time.
    seed
        Root seed of the split, the training and the draws.

    Returns
    -------
    Elpd
        As of :func:`thinned_density`.

    Raises
    ------
    ModelError
        If the likelihood of the site is not Poisson, negative binomial or zero-inflated negative
        binomial, or its counts are in no matrix of the data.
    DataError
        If the values are no counts, or the fraction is not between 0 and 1.

    Notes
    -----
    Fields that are computed from the counts when they are registered (totals) follow the first
    part; totals that simulated data carry are multiplied by the fraction. A size factor that the
    user has put into ``obs`` is taken as it is: the model then learns the scale of the first part
    on top of it.

    References
    ----------
    Batson, Royer, Webber: Molecular cross-validation for single-cell RNA-seq. bioRxiv 786269
    (2019).

    Neufeld, Gao, Popp, Battle, Witten: Inference after latent variable estimation for single-cell
    RNA sequencing data. Biostatistics 25, 270-287 (2024).
    """
    check_fraction(fraction)
    site = _count_site(model, site)
    where = _place(model, site)
    adata = model.adata.copy()
    counts = adata.X if where[0] == "X" else getattr(adata, where[0])[where[1]]
    kept, held = thin_counts(counts, fraction, seed=seed)
    if where[0] == "X":
        adata.X = kept
    else:
        getattr(adata, where[0])[where[1]] = kept
    carried = carried_total(None if where[0] == "X" else where[1])
    if where[0] != "obsm" and carried in adata.obs:
        adata.obs[carried] = adata.obs[carried] * fraction
    own_seed = derive_seed("thinning", seed=seed)
    copy = refit(model, adata, train_kwargs, own_seed)
    return thinned_density(
        copy,
        held,
        fraction=fraction,
        site=site,
        num_samples=num_samples,
        batch_size=batch_size,
        seed=own_seed,
    )


def thinned_density(
    model: BaseModelClass,
    held: Any,
    *,
    fraction: float = 0.5,
    site: str | None = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> Elpd:
    r"""Log predictive density of the second part of counts under a model of the first part.

    For each observation, :math:`\log \frac1S \sum_s p(x^{(2)}_n \mid x^{(1)}_n, z_{sn}, g_s)` with
    joint draws of the guide given the first part. With :math:`c = (1 - \epsilon) / \epsilon`, and
    :math:`\mu` the mean of the *first* part, the second is exactly

    - Poisson: :math:`\mathrm{Poisson}(c \mu)`; the parts are independent.
    - negative binomial, taken as a Poisson with a gamma distributed rate (inverse dispersion
      :math:`\theta`): the rate's posterior given the first part makes it negative binomial with
      inverse dispersion :math:`\theta + x^{(1)}` and mean
      :math:`c \mu (\theta + x^{(1)}) / (\theta + \mu)`. The parts are *not* independent.
    - zero-inflated negative binomial: the same, with the posterior probability of the extra zero,
      which is 0 where the first part is not zero.

    Parameters
    ----------
    model
        A model that was trained on the first part, its own data.
    held
        The second part, a dense or sparse matrix in the order of the model's data.
    fraction
        Share :math:`\epsilon` of the first part.
    site, num_samples, batch_size, seed
        As in :func:`thinning`.

    Returns
    -------
    Elpd
        ``pointwise`` has ``elpd`` of each observation, and ``khat`` and ``good``: whether so many
        draws are enough for the average over them.

    Raises
    ------
    ModelError
        If the likelihood is another one: what its second part is given the first is not known.
    DataError
        If the matrix does not have the shape of the data.
    """
    import pandas as pd

    check_fraction(fraction)
    num_samples = resolve_num_samples(model, num_samples, 250)
    site = _count_site(model, site)
    manager, positions, loader = model.loader()
    n_vars = int(np.prod(observed_sites(model)[site]))
    if held.shape != (len(positions), n_vars):
        raise DataError(
            f"held has shape {held.shape}, expected that of the data of {site!r}: "
            f"{(len(positions), n_vars)}."
        )
    module, device, mapper = model.module, model.device, DrawMapper(model.module)
    globals_ = posterior_globals(model, num_samples, seed, manager)
    size = bounded_batch_size([model.sites[site]], num_samples, batch_size or settings.batch_size)
    parts, start = [], 0
    for position, minibatch in enumerate(loader(size)):
        batch = minibatch.to(device)
        rows = held[start : start + batch.n]
        start += batch.n
        dense = rows.toarray() if sparse.issparse(rows) else np.asarray(rows)
        values = torch.as_tensor(dense, dtype=torch.get_default_dtype(), device=device)
        story = _score(module, batch, site, values, (1 - fraction) / fraction)
        with evaluation_mode(module), stream("draws", "thinning", position, seed=seed):
            draws = mapper(story, globals_, num_samples, draws_at_once(module, batch.n))
        parts.append(draws["log_prob"].double().cpu().numpy())
    log_prob = np.concatenate(parts, 1)
    _, khat = psis(log_prob)
    pointwise = pd.DataFrame(
        {
            "elpd": log_mean_exp(log_prob),
            "khat": khat,
            "good": khat <= khat_threshold(num_samples),
        },
        index=pd.Index(np.asarray(manager.obs_names[positions]), name="obs"),
    )
    elpd, se = total(pointwise["elpd"].to_numpy())
    return Elpd(
        kind="thinning",
        elpd=elpd,
        se=se,
        pointwise=pointwise,
        sites={site: observed_sites(model)[site]},
        n_bad=int((~pointwise["good"]).sum()),
        settings={"num_samples": num_samples, "fraction": fraction},
        n_obs=len(pointwise),
    )


def _score(module: Any, minibatch: Minibatch, site: str, held: Tensor, ratio: float) -> Story:
    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents = latent_values(guide_trace(module, minibatch, values))
        if enumerates(module, latents):
            latents |= DiscreteTable(module, minibatch, latents).draw()
        node = model_trace(module, minibatch, latents).nodes[site]
        return {"log_prob": held_out_log_prob(node, held, ratio, minibatch.n)}

    return story


def _count_site(model: BaseModelClass, site: str | None) -> str:
    observed = list(observed_sites(model))
    if site is None and len(observed) != 1:
        raise ModelError(
            f"The model has {len(observed)} observed sites with a value per observation "
            f"({', '.join(observed) or 'none'}); name the one whose counts to split: site=..."
        )
    name = observed[0] if site is None else site
    if name not in observed or model.sites[name].role is not Role.OBSERVED:
        raise ModelError(
            f"{name!r} is no observed site with a value per observation; those are: "
            f"{', '.join(observed) or 'none'}."
        )
    return name


def _place(model: BaseModelClass, site: str) -> tuple[str, str]:
    """Attribute and key of the matrix that a site's counts are registered from."""
    entry = model.registry["field_registries"].get(site)
    where = {} if entry is None else entry["data_registry"]
    if where.get("attr_name") not in _PLACES or where.get("mod_key") is not None:
        raise ModelError(
            f"The counts of {site!r} cannot be replaced by a part of them: the site has to have "
            f"the name of the field that holds them, and the field has to be in "
            f"{', '.join(_PLACES)} of an AnnData. Split them yourself (thin_counts), train a model "
            "on the first part, and score the second with thinned_density(model, held)."
        )
    return where["attr_name"], str(where.get("attr_key"))
