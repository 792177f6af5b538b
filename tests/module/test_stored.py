"""Stored draws in the place of a guide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.module.stories import Hierarchy, given

from pyrovi.errors import ModelError
from pyrovi.model.draws import example_on_device
from pyrovi.module.ledger import Role
from pyrovi.module.stored import DRAW, StoredDraws
from pyrovi.posterior.point_estimates import point_sites


def stored(chains: int = 2, draws: int = 3) -> StoredDraws:
    mu = torch.arange(chains * draws).float().reshape(chains, draws)
    z = mu[..., None] * 10 + torch.arange(4.0)
    return StoredDraws({"mu": mu, "z": z}, {"z": -1}, [f"cell{i}" for i in (1, 3, 0, 2)])


def test_draws_are_chosen_evenly_without_replacement() -> None:
    posterior = stored(2, 6)
    assert posterior.choose(None).tolist() == list(range(12))
    assert posterior.choose(4).tolist() == [0, 3, 6, 9]
    assert len(set(posterior.choose(7).tolist())) == 7
    with posterior.only_chain(1):
        assert posterior.choose(None).tolist() == list(range(6, 12))
        assert posterior.choose(2).tolist() == [6, 9]
    with pytest.raises(ModelError, match="13 draws were asked for and 12 are stored"):
        posterior.choose(13)
    assert posterior.globals_of(torch.tensor([5, 7]))["mu"].tolist() == [5.0, 7.0]
    assert posterior.globals_of(torch.tensor([5, 7]))[DRAW].tolist() == [5, 7]


def test_a_point_can_be_asked_for_repeatedly() -> None:
    assert stored(1, 1).choose(5).tolist() == [0] * 5


def test_locals_belong_to_names_and_to_the_draw_of_the_globals() -> None:
    X = np.zeros((4, 1), dtype=np.float32)
    model = given(X, Hierarchy(X))
    model.is_trained = True
    model.module.use_posterior(stored())
    draws = model.sample_posterior(["mu", "z"], indices=[2, 0, 1])
    mu = draws["mu"].values
    np.testing.assert_array_equal(mu, np.arange(6))
    # cell2, cell0 and cell1 are rows 3, 2 and 0 of the draws
    np.testing.assert_array_equal(draws["z"], mu[:, None] * 10 + np.array([3, 2, 0]))


def test_other_data_are_matched_by_name() -> None:
    X = np.zeros((4, 1), dtype=np.float32)
    model = given(X, Hierarchy(X))
    model.is_trained = True
    model.module.use_posterior(stored())
    other = model.adata[[3, 1]].copy()
    z = model.sample_posterior("z", adata=other)["z"]
    np.testing.assert_array_equal(z[0], [1, 0])
    other.obs_names = ["new1", "new2"]
    with pytest.raises(ModelError, match="no draws of 'z' for 2 of these 2"):
        model.sample_posterior("z", adata=other)
    assert model.sample_posterior("mu", adata=other).sizes["draw"] == 6
    assert model.sample_prior("z", adata=other).sizes["obs"] == 2


def test_repeated_draws_are_no_point_estimate() -> None:
    model = given(np.zeros((4, 1), dtype=np.float32), Hierarchy(np.zeros((4, 1), np.float32)))
    example = example_on_device(model, None)
    names = [f"cell{i}" for i in range(4)]
    mu = torch.ones(1, 50)
    same = StoredDraws({"mu": mu, "z": mu[..., None].expand(1, 50, 4)}, {"z": -1}, names)
    model.module.use_posterior(same)
    assert point_sites(model.module, example, Role.GLOBAL, Role.LOCAL) == ["mu", "z"]
    mu[0, -1] = 2.0
    repeated = StoredDraws({"mu": mu, "z": mu[..., None].expand(1, 50, 4)}, {"z": -1}, names)
    model.module.use_posterior(repeated)
    assert point_sites(model.module, example, Role.GLOBAL, Role.LOCAL) == []
