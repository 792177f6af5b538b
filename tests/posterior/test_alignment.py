"""Tests of the alignment of factors: planted turns are recovered."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group

from pyrovi.errors import ModelError
from pyrovi.posterior.alignment import align, best_turns, invariant

K, VARS, OBS, CHAINS, DRAWS = 3, 6, 5, 2, 4


def turns(symmetry, rng):
    if symmetry == "rotation":
        return ortho_group.rvs(K, size=CHAINS * DRAWS, random_state=rng)
    signs = rng.choice([-1.0, 1.0], (CHAINS * DRAWS, K))
    order = np.stack([rng.permutation(K) for _ in signs])
    if symmetry == "sign":
        order[:] = np.arange(K)
    return np.eye(K)[order] * signs[:, :, None]


def planted(symmetry, seed=0):
    rng = np.random.default_rng(seed)
    W, z = rng.normal(size=(K, VARS)), rng.normal(size=(OBS, K))
    q = turns(symmetry, rng).reshape(CHAINS, DRAWS, K, K)
    return {"W": W, "z": z}, {"W": q @ W, "z": z @ q.swapaxes(-1, -2), "m": np.zeros((2, 4, 1))}


@pytest.mark.parametrize("symmetry", ["rotation", "permutation", "sign"])
def test_planted_turns_are_undone_to_rounding(symmetry):
    truth, draws = planted(symmetry)
    axes = {"W": 0, "z": -1}
    known = align(draws, axes, symmetry, reference=truth)
    for name in axes:
        expected = np.broadcast_to(truth[name], draws[name].shape)
        np.testing.assert_allclose(known[name], expected, atol=1e-12)
    found = align(draws, axes, symmetry)
    for name in axes:
        expected = np.broadcast_to(found[name][0, 0], draws[name].shape)
        np.testing.assert_allclose(found[name], expected, atol=1e-12)
    np.testing.assert_allclose(found["z"] @ found["W"], draws["z"] @ draws["W"], atol=1e-12)
    assert found["m"] is draws["m"]


def test_a_weaker_symmetry_does_not_undo_a_rotation():
    truth, draws = planted("rotation")
    for symmetry in ("permutation", "sign"):
        found = align(draws, {"W": 0}, symmetry, reference=truth)["W"]
        assert np.abs(found - truth["W"]).max() > 0.1


def test_turns_are_the_best_ones():
    rng = np.random.default_rng(1)
    tables, target = rng.normal(size=(4, K, VARS)), rng.normal(size=(K, VARS))

    def distance(q):
        return np.square(np.einsum("kl,skm->slm", q, tables[:1]) - target).sum()

    best = distance(best_turns(tables, target, "rotation")[0])
    assert all(best <= distance(q) for q in ortho_group.rvs(K, size=500, random_state=rng))
    permuted = distance(best_turns(tables, target, "permutation")[0])
    candidates = turns("permutation", np.random.default_rng(2))
    assert all(permuted <= distance(q) + 1e-12 for q in candidates)


def test_positive_factors_keep_their_signs():
    rng = np.random.default_rng(3)
    target, table = rng.gamma(1.0, size=(K, VARS)), rng.gamma(1.0, size=(1, K, VARS))
    assert (best_turns(table, target, "permutation", signed=False) >= 0).all()


def test_invariant_does_not_turn():
    truth, draws = planted("rotation")
    cross = invariant(draws["W"], 0)
    expected = np.broadcast_to(truth["W"].T @ truth["W"], cross.shape)
    np.testing.assert_allclose(cross, expected, atol=1e-12)


def test_messages():
    _, draws = planted("rotation")
    with pytest.raises(ModelError, match="'rotation', 'permutation' or 'sign', got 'turn'"):
        align(draws, {"W": 0}, "turn")
    with pytest.raises(ModelError, match="no draws of 'V' to align"):
        align(draws, {"V": 0})
    with pytest.raises(ModelError, match="do not share their factors: 'W' has 3, 'z' has 5"):
        align(draws, {"W": 0, "z": 0})
    with pytest.raises(ModelError, match="axis 2 of a site with 2 axes"):
        align(draws, {"W": 2})
