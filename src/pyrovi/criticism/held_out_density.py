"""Log predictive density of observations that training has not seen; refits on folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovi._parallel import run_in_processes
from pyrovi._rng import derive_seed, generator
from pyrovi._settings import settings as defaults
from pyrovi.criticism.elpd import Elpd, predicted_sites, total
from pyrovi.criticism.leave_one_out import log_mean_exp
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import DataError, MissingKeyError, ModelError
from pyrovi.model.draws import resolve_num_samples
from pyrovi.model.marginal import marginal_log_likelihood
from pyrovi.model.refit import refit

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from pyrovi.model.base import BaseModelClass


def held_out(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    *,
    num_samples: int | None = None,
    num_inner: int = 200,
    batch_size: int | None = None,
    seed: int | None = None,
) -> Elpd:
    r"""Log predictive density of observations that the model was not trained on.

    .. math:: \log \frac1S \sum_s \hat p(x_n \mid g_s)

    with the local latents of each observation integrated out by importance weights. It is
    comparable between models whatever is random and what is a point estimate in them, as long as
    the observations are held out from all of it.

    Parameters
    ----------
    model
        A trained model.
    adata
        Other data; ``None`` for the model's own.
    indices
        Observations; ``None`` for all of ``adata``, or for the validation and test observations of
        the model's own data.
    num_samples
        Draws of the globals; ``None`` for 100, or all stored draws if these are fewer.
    num_inner
        Draws of the locals for each of them.
    batch_size, seed
        As in :meth:`sample_posterior`.

    Returns
    -------
    Elpd
        ``pointwise`` has ``elpd`` and ``good`` of each observation, and ``inner_khat`` where local
        latents were integrated out. Where this is above the threshold, neither the guide nor a
        normal fitted to the observation covers its posterior, and ``elpd`` is too low in tendency.

    Raises
    ------
    ModelError
        If the model has not been trained, or no observations were kept apart.
    DataError
        If training observations are asked for, be it in a copy of the model's own data: what has
        their names and values is them.

    Notes
    -----
    Validation observations that early stopping has looked at are not quite held out; a test set, or
    :func:`cross_validate`, is.
    """
    positions = _held_out_positions(model, adata, indices)
    num_samples = resolve_num_samples(model, num_samples, 100)
    draws = marginal_log_likelihood(
        model,
        num_samples=num_samples,
        num_inner=num_inner,
        adata=adata,
        indices=positions,
        batch_size=batch_size,
        seed=seed,
    )
    settings = {"num_samples": num_samples, "num_inner": num_inner}
    return _collected("held_out", model, [_density(draws)], settings)


def cross_validate(
    model: BaseModelClass,
    *,
    num_folds: int = 5,
    groups: str | Sequence[Any] | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = None,
    num_inner: int = 200,
    num_workers: int = 1,
    batch_size: int | None = None,
    seed: int | None = None,
) -> Elpd:
    """Log predictive density of each observation under a refit without its fold.

    Parameters
    ----------
    model
        A model with its data, trained or not: fresh copies of it are trained. It is left alone.
    num_folds
        Number of folds, each of which is predicted once.
    groups
        Column of ``obs``, or one label for each observation: a group is never split between folds,
        so that what is estimated is the prediction for a *new* donor, batch, ...
    train_kwargs
        Arguments of :meth:`train`, e.g. ``{"method": "nuts"}``, in place of those that the model
        was trained with, which are repeated otherwise. SVI trains a copy on all observations
        outside its fold (``train_size=1``) unless they divide them.
    num_samples, num_inner, batch_size
        As in :func:`held_out`.
    num_workers
        Processes that refit at the same time.
    seed
        Root seed of the folds, the refits and the draws.

    Returns
    -------
    Elpd
        ``pointwise`` has ``elpd``, ``fold``, ``good`` and ``inner_khat`` of each observation, in
        the order of the data.

    Raises
    ------
    DataError
        If there are more folds than observations or groups, or a group label is missing.
    MissingKeyError
        If the column does not exist.

    References
    ----------
    Vehtari, Lampinen: Bayesian model assessment and comparison using cross-validation predictive
    densities. Neural Computation 14, 2439-2468 (2002).
    """
    adata, n_obs = model.adata, model.adata_manager.n_obs
    labels = None if groups is None else _labels(adata, groups, n_obs)
    folds = make_folds(n_obs, num_folds, labels, seed=seed)
    query: dict[str, Any] = {
        "num_samples": num_samples,
        "num_inner": num_inner,
        "batch_size": batch_size,
    }

    def of_fold(fold: int) -> pd.DataFrame:
        own_seed = derive_seed("fold", fold, seed=seed)
        outside = np.flatnonzero(folds != fold)
        copy = refit(model, adata[outside].copy(), train_kwargs, own_seed)
        held = adata[np.flatnonzero(folds == fold)]
        draws = marginal_log_likelihood(copy, adata=held, seed=own_seed, **query)
        return _density(draws).assign(fold=fold)

    fork_safe = model.adata_manager.fork_safe
    parts = run_in_processes(of_fold, range(num_folds), num_workers, fork_safe=fork_safe)
    settings = {**query, "num_folds": num_folds, "grouped": groups is not None}
    # the parts come fold after fold; back to the order of the data
    order = np.argsort(np.argsort(folds, kind="stable"), kind="stable")
    return _collected("cross_validation", model, parts, settings, order)


def make_folds(
    n_obs: int, num_folds: int, groups: np.ndarray | None = None, *, seed: int | None = None
) -> np.ndarray:
    """Divide observations at random into folds of about equal size.

    Parameters
    ----------
    n_obs
        Number of observations.
    num_folds
        Number of folds.
    groups
        Label of each observation; groups stay together, the largest are dealt out first.
    seed
        Root seed.

    Returns
    -------
    numpy.ndarray
        Fold of each observation, ``0`` to ``num_folds - 1``.

    Raises
    ------
    DataError
        If there are fewer than two folds, or more than observations or groups.
    """
    codes = np.arange(n_obs) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(codes)
    if not 2 <= num_folds <= len(sizes):
        what = "observations" if groups is None else "groups"
        raise DataError(
            f"num_folds must be between 2 and the number of {what} ({len(sizes)}), got {num_folds}."
        )
    order = generator("folds", seed=seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of, filled = np.empty(len(sizes), dtype=int), np.zeros(num_folds, dtype=int)
    for group in order:
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
    folds: np.ndarray = fold_of[codes]
    return folds


def _labels(adata: Any, groups: str | Sequence[Any], n_obs: int) -> np.ndarray:
    import pandas as pd

    if isinstance(groups, str):
        if groups not in adata.obs:
            raise MissingKeyError(
                f"obs has no column {groups!r} to group by; it has: "
                f"{', '.join(map(str, adata.obs.columns)) or 'none'}."
            )
        values = adata.obs[groups]
    else:
        values = pd.Series(groups)
    if len(values) != n_obs:
        raise DataError(f"groups has {len(values)} labels, expected one for each of {n_obs}.")
    if missing := int(values.isna().sum()):
        raise DataError(
            f"{missing} observations have no group label; give each one, or leave them out."
        )
    return np.asarray(values.astype(str))


def _held_out_positions(model: BaseModelClass, adata: Any, indices: Any) -> np.ndarray | None:
    if not model.is_trained:
        raise ModelError(
            f"This {type(model).__name__} is not trained, so nothing is held out from anything. "
            "Call train() first, or cross_validate(model), which trains copies."
        )
    own = adata is None or (model._adata_manager is not None and adata is model.adata)
    if not own:
        _refuse_seen(model, adata, indices)
        return None if indices is None else np.asarray(indices)
    sets = (model.validation_indices, model.test_indices)
    apart = [np.asarray(part) for part in sets if part is not None and len(part)]
    if indices is None:
        if not apart:
            raise ModelError(
                f"Training has seen all observations. Keep some apart, {keep_apart(model)}, pass "
                "other data, or use cross_validate(model), which refits."
            )
        return np.sort(np.concatenate(apart))
    positions = resolve_indices(indices, model.adata_manager.n_obs)
    trained = () if model.train_indices is None else model.train_indices
    if seen := int(np.isin(positions, trained).sum()):
        raise DataError(
            f"{seen} of the {len(positions)} observations were trained on. Expected positions of "
            "model.validation_indices or model.test_indices; for training observations use "
            "loo(model) or cross_validate(model)."
        )
    return positions


def keep_apart(model: BaseModelClass) -> str:
    """How the method that a model was trained by keeps observations apart, in words.

    Parameters
    ----------
    model
        The model.
    """
    method = "svi" if model._training is None else model._training.method
    if method == "svi":
        return "train(train_size=0.9)"
    return f"train(method={method!r}, indices=...) with the positions of those to train on"


def _refuse_seen(model: BaseModelClass, adata: Any, indices: Any) -> None:
    """Refuse training observations in copies and subsets of the model's own data."""
    trained = model.train_indices
    if model._adata_manager is None or trained is None or not len(trained):
        return
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    names = model.adata_manager.obs_names[np.asarray(trained)]
    if not names.is_unique:
        return
    match = names.get_indexer(manager.obs_names[positions])
    common = match >= 0
    mine, theirs = np.asarray(trained)[match[common]], positions[common]
    if len(mine) and _same_values(model, mine, adata, theirs):
        raise DataError(
            f"{len(mine)} of the {len(positions)} observations were trained on: they have the "
            f"names (e.g. {str(names[match[common][0]])!r}) and the values of training "
            "observations. Expected new ones: leave adata= out to score those that were kept "
            "apart, use loo(model) or cross_validate(model), or, if they are other observations "
            "that happen to be the same, give them names of their own (obs_names)."
        )


def _same_values(model: BaseModelClass, mine: np.ndarray, adata: Any, theirs: np.ndarray) -> bool:
    """Whether all tensors agree; numbered names alone do not make observations the same."""
    size = defaults.batch_size
    loaders = (model.loader(None, mine)[2], model.loader(adata, theirs)[2])
    for one, two in zip(*(loader(size) for loader in loaders), strict=True):
        pairs = ((one[key], two[key]) for key in model.registry["field_registries"] if key in one)
        if not all(
            a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs
        ):
            return False
    return True


def _density(draws: xr.Dataset) -> pd.DataFrame:
    """Log predictive density of each observation, its own latents and the globals averaged out."""
    import pandas as pd

    table = pd.DataFrame(
        {"elpd": log_mean_exp(draws["log_likelihood"].values)},
        index=pd.Index(draws["obs"].values, name="obs"),
    )
    if "khat" not in draws:
        return table.assign(good=np.isfinite(table["elpd"]))
    khat = draws["khat"].values
    return table.assign(inner_khat=khat, good=khat <= draws.attrs["khat_threshold"])


def _collected(
    kind: str,
    model: BaseModelClass,
    parts: Sequence[pd.DataFrame],
    settings: Mapping[str, Any],
    order: np.ndarray | None = None,
) -> Elpd:
    import pandas as pd

    pointwise = pd.concat(list(parts))
    pointwise = pointwise if order is None else pointwise.iloc[order]
    elpd, se = total(pointwise["elpd"].to_numpy())
    return Elpd(
        kind=kind,
        elpd=elpd,
        se=se,
        pointwise=pointwise,
        sites=predicted_sites(model),
        n_bad=int((~pointwise["good"]).sum()),
        settings=settings,
        n_obs=len(pointwise),
    )
