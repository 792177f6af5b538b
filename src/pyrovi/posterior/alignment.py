r"""Alignment of draws that are known up to a rotation, permutation or signs of their factors.

The likelihood of a factor model depends on loadings ``W`` and scores ``z`` through ``z @ W`` alone,
so each fit finds factors of its own. Here the factors of every draw are turned to match those of a
reference; all sites that share the dimension turn together, which leaves ``z @ W`` as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrovi.errors import ModelError

Symmetry = Literal["rotation", "permutation", "sign"]
"""``"rotation"``: any orthogonal matrix; ``"permutation"``: order and signs; ``"sign"``: signs."""

Floats = NDArray[np.float64]


def align(
    draws: Mapping[str, NDArray[Any]],
    axes: Mapping[str, int],
    symmetry: Symmetry = "rotation",
    *,
    reference: Mapping[str, NDArray[Any]] | None = None,
    leading: int = 2,
    iterations: int = 5,
    signed: bool = True,
) -> dict[str, Floats]:
    r"""Turn the factors of every draw towards a reference.

    Parameters
    ----------
    draws
        Site -> draws of shape ``(chain, draw, ...)``; sites without an entry in ``axes`` come back
        as they are.
    axes
        Site -> position of the factors among its own axes (behind the leading ones), from 0.
        Negative positions count from the end.
    symmetry
        What the model cannot tell: ``"rotation"`` (orthogonal Procrustes), ``"permutation"``
        (signed Hungarian matching) or ``"sign"``.
    reference
        Site -> values of the site's own shape to turn to. ``None`` starts with the mean over the
        draws of the first chain (which are brought together first), and repeats the alignment with
        the mean over all aligned draws (generalised Procrustes analysis).
    leading
        Number of axes in front of the site's own.
    iterations
        Most repetitions without a reference.
    signed
        Whether factors of a permutation may also change their sign. Not so for factors that are
        positive.

    Returns
    -------
    dict
        The same sites, aligned.

    Raises
    ------
    ModelError
        If a site is missing, or the sizes of the factors differ.

    References
    ----------
    Schönemann (1966), *A generalized solution of the orthogonal Procrustes problem*. Gower (1975),
    *Generalized Procrustes analysis*. Papastamoulis & Ntzoufras (2022), *On the identifiability of
    Bayesian factor analytic models* (permutations and signs).
    """
    if symmetry not in ("rotation", "permutation", "sign"):
        raise ModelError(f"align is by 'rotation', 'permutation' or 'sign', got {symmetry!r}.")
    tables, shape = _tables(draws, axes, leading)
    if reference is not None:
        given = {n: np.asarray(reference[n])[(None,) * leading] for n in axes}
        target = _tables(given, axes, leading)[0][0]
        turns = best_turns(tables, target, symmetry, signed)
    else:
        target = _first_reference(tables, shape, symmetry, signed)
        turns = best_turns(tables, target, symmetry, signed)
        for _ in range(iterations):
            mean = np.einsum("skl,skm->lm", turns, tables) / len(tables)
            new = best_turns(tables, mean, symmetry, signed)
            settled = np.allclose(new, turns, atol=1e-8)
            turns = new
            if settled:
                break
    aligned = {name: np.asarray(array) for name, array in draws.items()}
    for name, axis in axes.items():
        aligned[name] = _turned(aligned[name], turns, _position(aligned[name], axis, leading))
    return aligned


def best_turns(tables: Floats, target: Floats, symmetry: Symmetry, signed: bool = True) -> Floats:
    r"""Orthogonal matrices :math:`Q_s` that bring :math:`Q_s^\top A_s` closest to a target.

    Parameters
    ----------
    tables
        The matrices :math:`A_s`, shape ``(S, K, M)``: rows are factors.
    target
        Shape ``(K, M)``.
    symmetry, signed
        As in :func:`align`.

    Returns
    -------
    numpy.ndarray
        Shape ``(S, K, K)``; the aligned factors are ``einsum("skl,skm->slm", Q, A)``.
    """
    overlap = tables @ target.T
    if symmetry == "rotation":
        left, _, right = np.linalg.svd(overlap)
        return np.asarray(left @ right)
    if symmetry == "sign":
        diagonal = np.diagonal(overlap, axis1=1, axis2=2)
        return np.where(diagonal < 0, -1.0, 1.0)[:, :, None] * np.eye(len(target))
    from scipy.optimize import linear_sum_assignment

    turns = np.zeros_like(overlap)
    for turn, similarity in zip(turns, overlap, strict=True):
        rows, columns = linear_sum_assignment(
            np.abs(similarity) if signed else similarity, maximize=True
        )
        signs = np.where(signed & (similarity[rows, columns] < 0), -1.0, 1.0)
        turn[rows, columns] = signs
    return turns


def invariant(draws: NDArray[Any], axis: int, *, leading: int = 2) -> Floats:
    r"""What a rotation does not change of a site: :math:`W^\top W`, summed over the factors.

    Parameters
    ----------
    draws
        Draws of the site, ``(*leading, ...)``.
    axis
        Position of the factors among the site's own axes.
    leading
        Number of axes in front of the site's own.

    Returns
    -------
    numpy.ndarray
        Shape ``(*leading, M, M)`` for ``M`` numbers per factor.
    """
    array = np.moveaxis(np.asarray(draws, np.float64), _position(draws, axis, leading), leading)
    table = array.reshape(*array.shape[: leading + 1], -1)
    return np.einsum("...km,...kn->...mn", table, table)


def _position(array: NDArray[Any], axis: int, leading: int) -> int:
    own = array.ndim - leading
    if not -own <= axis < own:
        raise ModelError(
            f"The factors are axis {axis} of a site with {own} axes of its own; expected a "
            f"position from {-own} to {own - 1}."
        )
    return leading + axis % own


def _tables(
    draws: Mapping[str, NDArray[Any]], axes: Mapping[str, int], leading: int
) -> tuple[Floats, tuple[int, ...]]:
    """All sites side by side, ``(S, K, M)``."""
    if missing := [name for name in axes if name not in draws]:
        raise ModelError(f"There are no draws of {', '.join(map(repr, missing))} to align.")
    if not axes:
        raise ModelError("Name the sites to align, and the axis of each that holds the factors.")
    parts, sizes, shape = [], {}, ()
    for name, axis in axes.items():
        array = np.asarray(draws[name], dtype=np.float64)
        shape = array.shape[:leading]
        array = np.moveaxis(array, _position(array, axis, leading), leading)
        sizes[name] = array.shape[leading]
        parts.append(array.reshape(-1, sizes[name], int(np.prod(array.shape[leading + 1 :]))))
    if len(set(sizes.values())) > 1:
        raise ModelError(
            "The sites to align do not share their factors: "
            + ", ".join(f"{name!r} has {size}" for name, size in sizes.items())
            + "."
        )
    return np.concatenate(parts, 2), shape


def _first_reference(
    tables: Floats, shape: tuple[int, ...], symmetry: Symmetry, signed: bool
) -> Floats:
    """Mean of the first chain, brought together around one of its draws."""
    first = tables[: shape[-1]]
    turns = best_turns(first, first[-1], symmetry, signed)
    return np.asarray(np.einsum("skl,skm->lm", turns, first) / len(first))


def _turned(array: NDArray[Any], turns: Floats, position: int) -> Floats:
    moved = np.moveaxis(np.asarray(array, np.float64), position, -1)
    shape = moved.shape
    flat = moved.reshape(len(turns), -1, shape[-1])
    return np.moveaxis(np.matmul(flat, turns).reshape(shape), -1, position)
