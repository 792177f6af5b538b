"""``model.summary``: posterior moments, intervals and convergence of every number, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrovi._rng import derive_seed
from pyrovi.errors import ModelError
from pyrovi.model.chains import in_chain, num_chains
from pyrovi.model.discrete import check_no_categories
from pyrovi.model.draws import latent_sites
from pyrovi.module.ledger import Role
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.alignment import Symmetry
from pyrovi.posterior.alignment import align as align_draws
from pyrovi.posterior.convergence import convergence_statistics
from pyrovi.posterior.scalars import scalar_columns

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from pyrovi.model.base import BaseModelClass

Interval = Literal["eti", "hdi"]


def summary(
    model: BaseModelClass,
    sites: str | Sequence[str] | None = None,
    *,
    coords: Mapping[str, Any] | None = None,
    num_samples: int | None = None,
    probability: float = 0.94,
    interval: Interval = "eti",
    align: Mapping[str, Symmetry] | None = None,
    adata: Any = None,
    indices: Any = None,
    seed: int | None = None,
) -> pd.DataFrame:
    """Summarise the posterior of sites, one row for each number.

    Parameters
    ----------
    sites
        Latent or deterministic sites; ``None`` for all global latent sites, or all latent ones of a
        model that has no global ones, but for those of categories (see
        :meth:`discrete_marginals`).
    coords
        Dimension -> label or labels to keep, e.g. ``{"var": ["CD3D"]}``.
    num_samples
        Draws, as in :meth:`sample_posterior`: of all chains or fits together, each of which gives
        the same number of them (rounded down); ``None`` for all stored ones of MCMC, else 250 of
        each fit.
    probability
        Probability of the interval.
    interval
        ``"eti"``: between two quantiles; ``"hdi"``: the shortest one.
    align
        Dimension -> ``"rotation"``, ``"permutation"`` or ``"sign"``: what the model cannot tell of
        its factors; every draw is turned to match the others (see
        :func:`~pyrovi.posterior.align`).
    adata, indices, seed
        As in :meth:`sample_posterior`.

    Returns
    -------
    pandas.DataFrame
        Indexed by names such as ``beta[var=CD3D]``: ``mean``, ``sd``, the limits of the interval,
        ``mcse_mean``, ``mcse_sd``, ``ess_bulk``, ``ess_tail`` and ``r_hat``, which are ArviZ's.
        ``r_hat`` is NaN for a single fit. Draws of a fitted guide are independent, so that their
        ``ess`` and ``mcse`` do not measure the error of the approximation; ``r_hat`` over several
        fits (``train(n_restarts=4)``) shows whether these agree.

    Raises
    ------
    ModelError
        If a site, dimension or label is unknown, or the values of a site are categories.
    """
    import pandas as pd

    if not 0 < probability < 1:
        raise ModelError(f"probability must be between 0 and 1, got {probability}.")
    if interval not in ("eti", "hdi"):
        raise ModelError(f"interval must be 'eti' or 'hdi', got {interval!r}.")
    names = _default_sites(model) if sites is None else model.sites.resolve(sites)
    check_no_categories(model, map(model.sites.__getitem__, names))
    draws = chain_draws(
        model,
        names,
        num_samples=_of_each(model, num_samples),
        align=align,
        adata=adata,
        indices=indices,
        seed=seed,
    )
    if coords:
        draws = _selected(draws, coords)
    quantities, values = scalar_columns(draws, ("chain", "draw"))
    flat = values.reshape(-1, len(quantities))
    low, high = _interval(flat, probability, interval)
    tail = (1 - probability) / 2
    labels = (
        (f"eti_{tail:.3g}", f"eti_{1 - tail:.3g}")
        if interval == "eti"
        else (f"hdi_{probability:.3g}_low", f"hdi_{probability:.3g}_high")
    )
    columns = {
        "mean": flat.mean(0),
        "sd": flat.std(0, ddof=1) if len(flat) > 1 else np.full(len(quantities), np.nan),
        labels[0]: low,
        labels[1]: high,
        **convergence_statistics(values),
    }
    return pd.DataFrame(columns, index=pd.Index(quantities, name="quantity"))


def _default_sites(model: BaseModelClass) -> list[str]:
    names = model.sites.names(Role.GLOBAL) or latent_sites(model)
    return [name for name in names if not model.sites[name].is_categorical] or names


def _of_each(model: BaseModelClass, num_samples: int | None) -> int | None:
    """Draws of each chain, of a number of draws in total.

    Raises
    ------
    ModelError
        If there are not as many, or fewer than one of each chain.
    """
    chains = num_chains(model)
    if num_samples is None or chains == 1:
        return num_samples
    if isinstance(model.module.posterior, StoredDraws):
        model.module.posterior.choose(num_samples)
    if num_samples < chains:
        raise ModelError(
            f"num_samples={num_samples} is less than one draw of each of the {chains} chains."
        )
    return num_samples // chains


def chain_draws(
    model: BaseModelClass,
    sites: str | Sequence[str] | None = None,
    *,
    num_samples: int | None = None,
    align: Mapping[str, Symmetry] | None = None,
    adata: Any = None,
    indices: Any = None,
    seed: int | None = None,
) -> xr.Dataset:
    """Posterior draws of every fit or chain, with dimensions ``chain`` and ``draw`` in front.

    Parameters
    ----------
    num_samples
        Draws of each fit or chain; ``None`` for all stored ones of MCMC, else 250.
    sites, align, adata, indices, seed
        As in :func:`summary`; the fits have noise of their own.
    """
    import xarray as xr

    if sites is None:
        sites = model.sites.names(Role.GLOBAL) or None
    parts = []
    for chain in range(num_chains(model)):
        with in_chain(model, chain):
            own = seed if chain == 0 else derive_seed("chain", chain, seed=seed)
            parts.append(
                model.sample_posterior(
                    sites, num_samples=num_samples, adata=adata, indices=indices, seed=own
                )
            )
    draws = xr.concat(parts, xr.DataArray(np.arange(len(parts)), dims="chain", name="chain"))
    draws = draws.transpose("chain", "draw", ...)
    for dim, symmetry in (align or {}).items():
        draws = aligned(draws, dim, symmetry)
    return draws


def aligned(draws: xr.Dataset, dim: str, symmetry: Symmetry) -> xr.Dataset:
    """Turn the factors along a dimension to match over draws and chains.

    Parameters
    ----------
    draws
        Dimensions ``chain`` and ``draw`` in front.
    dim
        The dimension of the factors; all sites that have it turn together.
    symmetry
        See :func:`~pyrovi.posterior.align`.

    Raises
    ------
    ModelError
        If no site has the dimension.
    """
    axes = {
        str(name): array.dims.index(dim) - 2
        for name, array in draws.data_vars.items()
        if dim in array.dims
    }
    if not axes:
        known = sorted({str(d) for d in draws.dims} - {"chain", "draw"})
        raise ModelError(
            f"align names the dimension {dim!r}, which no site has; dimensions are: "
            f"{', '.join(known) or 'none'}."
        )
    arrays: dict[str, NDArray[Any]] = {name: draws[name].to_numpy() for name in axes}
    turned = align_draws(arrays, axes, symmetry)
    return draws.assign({name: (draws[name].dims, turned[name]) for name in axes})


def _selected(draws: xr.Dataset, coords: Mapping[str, Any]) -> xr.Dataset:
    selection = {}
    for dim, labels in coords.items():
        if dim not in draws.dims:
            known = sorted({str(d) for d in draws.dims} - {"chain", "draw"})
            raise ModelError(
                f"coords names the dimension {dim!r}, which the sites do not have; theirs are: "
                f"{', '.join(known) or 'none'}."
            )
        wanted = [labels] if np.ndim(labels) == 0 else list(labels)
        known = list(draws[dim].to_numpy())
        if missing := [label for label in wanted if label not in known]:
            raise ModelError(
                f"Dimension {dim!r} has no {', '.join(map(repr, missing[:3]))}; labels are "
                f"{', '.join(map(str, known[:5]))}{', ...' if len(known) > 5 else ''}."
            )
        selection[dim] = wanted
    kept = [name for name, array in draws.data_vars.items() if set(array.dims) & set(selection)]
    return draws[kept].sel(selection)


def _interval(
    flat: NDArray[np.float64], probability: float, kind: Interval
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ordered = np.sort(flat, axis=0)
    if kind == "hdi":
        inside = int(np.floor(probability * len(ordered)))
        widths = ordered[inside:] - ordered[: len(ordered) - inside]
        first = widths.argmin(0)
        columns = np.arange(flat.shape[1])
        return ordered[first, columns], ordered[first + inside, columns]
    low, high = np.quantile(ordered, [(1 - probability) / 2, (1 + probability) / 2], axis=0)
    return low, high
