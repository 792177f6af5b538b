"""Rows of per-observation parameters belong to names, not to positions."""

import json
import warnings

import numpy as np
import pytest
import torch
from tests.train.toys import QUIET, Local, normal_data, toy

from pyrovi.errors import SaveLoadError, TrainingError

PERMUTED = np.random.default_rng(1).permutation(24)


@pytest.fixture
def model():
    """Every row is marked by its position: no fit would give these."""
    adata = normal_data()
    adata.obs_names = [f"cell{i}" for i in range(24)]
    Local.setup_anndata(adata)
    fitted = Local(adata)
    fitted.train(1, batch_size=8, **QUIET)
    with torch.no_grad():
        fitted.module.guide.locs.z.copy_(100.0 * torch.arange(24.0)[:, None].expand(24, 2))
        fitted.module.guide.scales.z_unconstrained.fill_(-20.0)
    return fitted


def rows(model, **query):
    z = model.sample_posterior("z", num_samples=1, **query)["z"].values[0]
    return np.round(z[:, 0] / 100, 3)


@pytest.mark.parametrize("positions", [PERMUTED, np.arange(5, 12), np.array([7, 3])])
def test_views_subsets_and_permuted_copies_have_their_own_rows(model, positions, tmp_path):
    view = model.adata[positions]
    model.save(tmp_path / "m")
    for again in (model, Local.load(tmp_path / "m"), Local.load(tmp_path / "m", model.adata)):
        for adata in (view, view.copy()):
            assert np.array_equal(rows(again, adata=adata), positions)
            assert np.array_equal(rows(again, adata=adata, indices=[1, 0]), positions[[1, 0]])
    assert np.array_equal(rows(Local.load(tmp_path / "m", view.copy())), positions)


def test_load_with_permuted_data_aligns_rows_and_index_sets(model, tmp_path):
    model.save(tmp_path / "m")
    permuted = model.adata[PERMUTED].copy()
    loaded = Local.load(tmp_path / "m", permuted)
    assert np.array_equal(rows(loaded), PERMUTED)
    assert np.array_equal(rows(loaded, adata=model.adata), np.arange(24))
    for which in ("train_indices", "validation_indices"):
        names = [m.adata.obs_names[getattr(m, which)].tolist() for m in (model, loaded)]
        assert names[0] == names[1]
    loaded.train(1, batch_size=8, lr=1e-9, **QUIET)
    kept = loaded.train_indices
    assert np.allclose(rows(loaded)[kept], PERMUTED[kept], atol=1e-2)
    loaded.save(tmp_path / "again")
    assert np.array_equal(rows(Local.load(tmp_path / "again", permuted)), rows(loaded))


def test_as_many_other_observations_have_no_rows(model, tmp_path):
    model.save(tmp_path / "m")
    other = normal_data(24, seed=9)
    other.obs_names = [f"other{i}" for i in range(24)]
    loaded = Local.load(tmp_path / "m", other)
    z = loaded.sample_posterior("z", num_samples=500)["z"].mean("draw")
    assert np.allclose(z, 0.8 * other.X, atol=0.3)
    with pytest.raises(TrainingError, match="0 are known by their obs_names"):
        loaded.train(1, **QUIET)


def test_made_up_names_identify_nothing(tmp_path):
    """Of other data, "0", "1", ... are not taken for those of the model's own."""
    model = toy(Local)
    model.save(tmp_path / "m")
    other = normal_data(24, seed=9)
    for n in (24, 7):
        z = model.sample_posterior("z", num_samples=500, adata=other[:n].copy())["z"].mean("draw")
        assert np.allclose(z, 0.8 * other.X[:n], atol=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Local.load(tmp_path / "m", model.adata.copy())  # the same rows in the same order
    for others in (other, model.adata[::-1].copy()):
        others.obs_names = [str(i) for i in range(24)]
        with pytest.warns(UserWarning, match="not those that the model was saved with"):
            Local.load(tmp_path / "m", others)


def test_known_observations_keep_their_rows_in_unknown_company(model):
    mixed = model.adata[[4, 2, 9]].copy()
    mixed.obs_names = [mixed.obs_names[0], "new", mixed.obs_names[2]]
    found = rows(model, adata=mixed)
    assert found[[0, 2]].tolist() == [4, 9]
    assert abs(found[1]) < 0.1


def test_names_are_saved_only_where_there_are_rows_and_checked(model, tmp_path):
    from tests.train.toys import Mean

    toy(Mean).save(tmp_path / "mean")
    assert "obs_names" not in json.loads((tmp_path / "mean/model.json").read_text())
    model.save(tmp_path / "m")
    path = tmp_path / "m/model.json"
    description = json.loads(path.read_text())
    assert description["obs_names"] == list(model.adata.obs_names)
    for damaged in (None, ["0"] * 24, list("abc"), [1] * 24):
        path.write_text(json.dumps({**description, "obs_names": damaged}))
        with pytest.raises(SaveLoadError, match="obs_names"):
            Local.load(tmp_path / "m")


def test_precision_of_parameters_is_kept(tmp_path):
    from tests.train.toys import Mean

    model = toy(Mean)
    model.train(1, **QUIET)
    model.module.double()
    with torch.no_grad():
        model.module.loc += 1e-12
    model.save(tmp_path / "m")
    loaded = Mean.load(tmp_path / "m")
    for name, value in model.module.state_dict().items():
        assert loaded.module.state_dict()[name].dtype == torch.float64
        assert torch.equal(loaded.module.state_dict()[name], value)
