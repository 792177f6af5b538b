"""Denoised RNA and protein of cells, and the parameters of their counts. Functions of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse
from torch import Tensor

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.model.decoding import (
    Weights,
    at_positions,
    batch_codes,
    collect_decoded,
    gene_positions,
    likelihood_of,
    rows_to_draw,
    single_batch,
)
from pyrovi.model.denoised import (
    check_size,
    predictive_counts,
)
from pyrovi.model.expression import (
    check_library_size,
    of_library_size,
)
from pyrovi.model.protein_parts import (
    PROTEINS,
    protein_expression,
    protein_names,
    protein_positions,
    warn_unmeasured,
)

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

Expression = np.ndarray | pd.DataFrame


def get_normalized_expression(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    n_samples_overall: int | None = None,
    transform_batch: Any = None,
    gene_list: Sequence[str] | None = None,
    protein_list: Sequence[str] | None = None,
    library_size: float | Literal["latent"] = 1,
    n_samples: int = 1,
    sample_protein_mixing: bool = False,
    scale_protein: bool = False,
    include_protein_background: bool = False,
    weights: Weights = "uniform",
    batch_size: int | None = None,
    return_mean: bool = True,
    return_numpy: bool | None = None,
    *,
    seed: int | None = None,
) -> tuple[Expression, Expression]:
    r"""Denoised RNA and protein of each cell, from posterior draws.

    RNA is :math:`\rho_{ng}`; protein is the foreground, :math:`(1 - \pi_{nt}) \alpha_{nt}
    \beta_{nt}`.

    Parameters
    ----------
    adata, indices
        Cells; ``None`` for all of the model's own.
    n_samples_overall
        Draw this many times in all, spread evenly over the cells in random order.
    transform_batch
        Batch to decode in: ``None`` for the one of each cell, a category of the registered batch
        column, or a list of categories, over which the expression is averaged. The latent variables
        :math:`z` and :math:`l` are inferred from the cell as it was observed; the networks see the
        other batch, and the background :math:`\beta` is drawn in it. Proteins that were not
        measured in the batch of a cell are imputed by naming a batch in which they were.
    gene_list, protein_list
        Genes and proteins, in the order wanted; ``None`` for all.
    library_size
        Number that the expression of a cell sums to over all genes, or ``"latent"`` for the
        library size of the cell.
    n_samples
        Number of draws of each cell.
    sample_protein_mixing
        Draw whether a protein is background, instead of taking the probability.
    scale_protein
        Let the proteins of a cell sum to 1.
    include_protein_background
        Add the background, :math:`\pi_{nt} \beta_{nt}`.
    weights
        ``"uniform"``, draws of the guide, or ``"importance"``, see
        :meth:`SCVI.get_normalized_expression`.
    batch_size
        Largest number of cells at a time.
    return_mean
        Return the mean of the draws.
    return_numpy
        Return arrays. ``None`` does so where the result has no row per cell.
    seed
        Root seed; ``None`` for ``settings.seed``.

    Returns
    -------
    tuple
        RNA and protein: data frames of cells by genes and by proteins, or arrays with the shapes
        that :meth:`SCVI.get_normalized_expression` describes.

    Raises
    ------
    UnseenCategoryError, MissingKeyError
        If a batch, a gene or a protein is not known.
    ModelError
        If an option has no meaning.

    Warns
    -----
    UserWarning
        If proteins are decoded in a batch in which they were not measured: no data tell about them.
    """
    check_library_size(library_size)
    genes, proteins = gene_positions(model, gene_list), protein_positions(model, protein_list)
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    rows = rows_to_draw(positions, n_samples, n_samples_overall, seed)
    codes = batch_codes(model, transform_batch)
    warn_unmeasured(model, manager, positions, codes, proteins)
    rna_site = "mu" if library_size == "latent" else "rho"

    def read(nodes: Mapping[str, Any]) -> dict[str, Tensor]:
        expressed = protein_expression(
            nodes,
            sample_mixing=sample_protein_mixing,
            scale=scale_protein,
            include_background=include_protein_background,
        )
        return {
            "rna": at_positions(nodes[rna_site]["value"], genes),
            "protein": at_positions(expressed, proteins),
        }

    average = return_mean or n_samples == 1
    found = collect_decoded(
        model, read, manager, rows, average=average, batches=codes, num_samples=n_samples,
        weights=weights, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    rna = of_library_size(found["rna"], library_size)
    if return_numpy or n_samples_overall is not None or not average:
        return rna, found["protein"]
    index = manager.obs_names[positions]
    return (
        pd.DataFrame(rna, index=index, columns=model.var_names[genes]),
        pd.DataFrame(found["protein"], index=index, columns=protein_names(model)[proteins]),
    )


def get_protein_foreground_probability(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    transform_batch: Any = None,
    protein_list: Sequence[str] | None = None,
    n_samples: int = 1,
    batch_size: int | None = None,
    return_mean: bool = True,
    return_numpy: bool | None = None,
    *,
    seed: int | None = None,
) -> Expression:
    r"""Probability :math:`1 - \pi_{nt}` that the counts of a protein are foreground.

    Parameters
    ----------
    adata, indices, transform_batch, protein_list, n_samples, batch_size, return_mean, return_numpy
        As in :meth:`get_normalized_expression`.
    seed
        Root seed; ``None`` for ``settings.seed``.

    Returns
    -------
    pandas.DataFrame or numpy.ndarray
        Cells by proteins; ``(n_samples, cells, proteins)`` without ``return_mean`` for more than
        one draw.
    """

    def read(nodes: Mapping[str, Any]) -> Tensor:
        return 1 - nodes["pi"]["value"]

    return _of_proteins(
        model, read, adata, indices, transform_batch, protein_list, n_samples, batch_size,
        return_mean, return_numpy, seed,
    )  # fmt: skip


def get_protein_background_mean(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    *,
    transform_batch: Any = None,
    protein_list: Sequence[str] | None = None,
    n_samples: int = 25,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Posterior mean of the background :math:`\beta_{nt}` of each protein in each cell.

    Parameters
    ----------
    adata, indices, batch_size, transform_batch, protein_list, seed
        As in :meth:`get_normalized_expression`.
    n_samples
        Number of draws that the mean is taken of.

    Returns
    -------
    pandas.DataFrame
        Cells by proteins.
    """
    result = _of_proteins(
        model, lambda nodes: nodes["beta"]["value"], adata, indices, transform_batch, protein_list,
        n_samples, batch_size, True, False, seed,
    )  # fmt: skip
    assert isinstance(result, pd.DataFrame)
    return result


def get_likelihood_parameters(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    n_samples: int = 1,
    give_mean: bool = False,
    batch_size: int | None = None,
    *,
    seed: int | None = None,
) -> dict[str, np.ndarray]:
    r"""Parameters of the likelihood of each count, from posterior draws.

    Parameters
    ----------
    adata, indices, n_samples, batch_size, seed
        As in :meth:`get_normalized_expression`.
    give_mean
        Return the mean of the draws.

    Returns
    -------
    dict
        Of genes: ``mean`` (:math:`\mu`), ``dispersions`` (:math:`\theta`), and ``dropout``
        (probability of an extra zero) where there is zero inflation. Of proteins:
        ``protein_background_mean`` (:math:`\beta`), ``protein_foreground_mean``
        (:math:`\alpha \beta`), ``protein_dispersions`` (:math:`\phi`) and
        ``protein_background_probability`` (:math:`\pi`). Each of shape ``(cells, features)``, or
        ``(n_samples, cells, features)`` for several draws.
    """
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    return collect_decoded(
        model, _read_parameters, manager, positions, average=give_mean or n_samples == 1,
        num_samples=n_samples, batch_size=batch_size, seed=seed,
    )  # fmt: skip


def posterior_predictive_sample(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    n_samples: int = 1,
    gene_list: Sequence[str] | None = None,
    protein_list: Sequence[str] | None = None,
    batch_size: int | None = None,
    *,
    transform_batch: Any = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Counts of each cell drawn from the posterior predictive distribution.

    Parameters
    ----------
    adata, indices, gene_list, protein_list, batch_size, seed
        As in :meth:`get_normalized_expression`.
    n_samples
        Number of draws.
    transform_batch
        Batch to decode all cells in; ``None`` for their own.

    Returns
    -------
    dict
        ``"rna"``: for one draw a sparse matrix of cells by genes, for several an array of
        ``(cells, genes, n_samples)``; ``"protein"``: arrays, likewise.

    Raises
    ------
    ModelError
        If the arrays would be too large, or several batches are named.
    """
    codes = single_batch(model, transform_batch)
    genes, proteins = gene_positions(model, gene_list), protein_positions(model, protein_list)
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    warn_unmeasured(model, manager, positions, codes, proteins)
    if n_samples > 1:
        n_features = len(genes) + len(proteins)
        check_size(n_samples * len(positions) * n_features, "n_samples, gene_list or indices")

    def read(nodes: Mapping[str, Any]) -> dict[str, Tensor]:
        x, y = nodes[REGISTRY_KEYS.X_KEY]["value"], nodes[PROTEINS]["value"]
        return {"rna": at_positions(x, genes), "protein": at_positions(y, proteins)}

    found = predictive_counts(
        model, read, manager, positions, n_samples, batches=codes, batch_size=batch_size, seed=seed
    )
    if sparse.issparse(found["protein"]):
        found["protein"] = found["protein"].toarray()
    return found


def _of_proteins(
    model: BaseModelClass,
    value: Any,
    adata: Any,
    indices: Any,
    transform_batch: Any,
    protein_list: Sequence[str] | None,
    n_samples: int,
    batch_size: int | None,
    return_mean: bool,
    return_numpy: bool | None,
    seed: int | None,
) -> Expression:
    """One quantity of each protein and cell."""
    proteins = protein_positions(model, protein_list)
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    codes = batch_codes(model, transform_batch)
    warn_unmeasured(model, manager, positions, codes, proteins)
    average = return_mean or n_samples == 1
    found = collect_decoded(
        model, lambda nodes: {"value": at_positions(value(nodes), proteins)}, manager, positions,
        average=average, batches=codes, num_samples=n_samples, batch_size=batch_size, seed=seed,
    )["value"]  # fmt: skip
    if return_numpy or not average:
        return found
    columns = protein_names(model)[proteins]
    return pd.DataFrame(found, index=manager.obs_names[positions], columns=columns)


def _read_parameters(nodes: Mapping[str, Any]) -> dict[str, Tensor]:
    x, y = likelihood_of(nodes), likelihood_of(nodes, PROTEINS)
    parameters = {"mean": nodes["mu"]["value"], "dispersions": x.theta}
    if hasattr(x, "zi_probs"):
        parameters["dropout"] = x.zi_probs
    return parameters | {
        "protein_background_mean": y.mu1,
        "protein_foreground_mean": y.mu2,
        "protein_dispersions": y.theta1,
        "protein_background_probability": nodes["pi"]["value"],
    }
