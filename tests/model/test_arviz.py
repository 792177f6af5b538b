"""Export to ArviZ (0.x: InferenceData, 1.x: DataTree): names, groups, files, summaries."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tests.model.arviz_lines import IS_TREE, dataset, group_names
from tests.model.samples import make_data, make_model

from pyrovi._settings import settings
from pyrovi.errors import DataError, ModelError
from pyrovi.model import SCVI, arviz_data, arviz_request
from pyrovi.model.arviz_attributes import data_hash
from pyrovi.model.arviz_export import GROUPS
from pyrovi.posterior.arviz import plain_labels, to_container, with_chain

OF_LOCALS = tuple(group for group in GROUPS if group != "log_prior")
"""The groups of a model without global latents."""


@pytest.fixture(scope="module")
def model() -> SCVI:
    adata = make_data()
    adata.var_names = [f"gene {i}" for i in range(adata.n_vars)]
    adata.obs_names = [f"cell {i}" for i in range(adata.n_obs)]
    return make_model(adata)


@pytest.fixture(scope="module")
def container(model: SCVI) -> Any:
    return model.to_arviz(["z", "rho"], num_samples=6, indices=[5, 1, 8], groups=OF_LOCALS, seed=3)


def test_type(container: Any) -> None:
    assert type(container).__name__ == ("DataTree" if IS_TREE else "InferenceData")


def test_groups_dimensions_and_coordinates(model: SCVI, container: Any) -> None:
    assert sorted(group_names(container)) == sorted(OF_LOCALS)
    draws = ("chain", "draw", "obs")
    dims: dict[str, dict[str, tuple[str, ...]]] = {
        "posterior": {"z": (*draws, "latent_dim"), "rho": (*draws, "var")},
        "unconstrained_posterior": {"z": (*draws, "latent_dim")},
        "prior": {"z": (*draws, "latent_dim"), "rho": (*draws, "var")},
        "posterior_predictive": {"X": (*draws, "var")},
        "prior_predictive": {"X": (*draws, "var")},
        "log_likelihood": {"X": draws},
        "observed_data": {"X": ("obs", "var")},
        "constant_data": {
            "batch": ("obs",),
            "labels": ("obs",),
            "extra_categorical_covs": ("obs",),
            "extra_continuous_covs": ("obs",),
        },
    }
    for group, variables in dims.items():
        data = dataset(container, group)
        assert {name: data[name].dims for name in data.data_vars} == variables, group
        assert list(data["obs"].values) == ["cell 5", "cell 1", "cell 8"]
        if "var" in data.dims:
            assert list(data["var"].values) == list(model.var_names)
        if "draw" in data.dims:
            assert list(data["draw"].values) == list(range(6))
            assert list(data["chain"].values) == [0]
    of_draws = dataset(container, "sample_stats")
    assert {name: of_draws[name].dims for name in of_draws} == {"elbo": ("chain", "draw")}
    of_chains = dataset(container, "vi_diagnostics")
    assert {str(name): of_chains[name].dims for name in of_chains} == {
        "elbo": ("chain",), "elbo_mcse": ("chain",), "loss_train": ("chain", "epoch"),
        "loss_validation": ("chain", "epoch"), "local_khat": ("chain", "obs"),
        "local_ess": ("chain", "obs"),
    }  # fmt: skip


def test_attributes(model: SCVI, container: Any) -> None:
    attrs = dict(container.attrs)
    assert attrs.pop("created_at")[:2] == "20"
    assert attrs == {
        "creation_library": "pyrovi",
        "creation_library_version": version("pyrovi"),
        "creation_library_language": "Python",
        "arviz_version": version("arviz"),
        "inference_library": "pyrovi",
        "inference_library_version": version("pyrovi"),
        "inference": "svi",
        "guide": "VAE",
        "model": "SCVI",
        "num_chains": 1,
        "num_restarts": 1,
        "seed": 3,
        "data_id": model.adata_manager.adata_uuid,
        "data_hash": data_hash(model.adata_manager),
        "note": "independent draws of a fitted guide: ess and mcse do not measure its error",
    }
    for group in OF_LOCALS:
        own = dataset(container, group).attrs
        assert {name: own[name] for name in attrs} == attrs, group
    likelihood = dataset(container, "log_likelihood").attrs
    assert (likelihood["kind"], likelihood["num_inner"]) == ("iw-marginal", 100)
    assert (
        "trained parameters (px_r" in likelihood["in_sample"]
        or "decoder" in likelihood["in_sample"]
    )


def test_hash_is_of_the_content() -> None:
    one, same = make_model(epochs=0).adata_manager, make_model(epochs=0).adata_manager
    assert one.adata_uuid != same.adata_uuid
    assert data_hash(one) == data_hash(same)
    sparse = make_model(make_data(sparse_format="csr_matrix"), epochs=0).adata_manager
    again = make_data(sparse_format="csr_matrix")
    again.X = again.X.tocsc()
    assert data_hash(sparse) == data_hash(make_model(again, epochs=0).adata_manager)
    for change in ("count", "covariate", "name"):
        adata = make_data()
        if change == "count":
            adata.X[3, 4] += 1
        elif change == "covariate":
            adata.obs.iloc[3, adata.obs.columns.get_loc("age")] += 1e-3
        else:
            adata.obs_names = [f"other {i}" for i in range(adata.n_obs)]
        assert data_hash(make_model(adata, epochs=0).adata_manager) != data_hash(one), change


def test_values(model: SCVI, container: Any) -> None:
    draws = model.sample_posterior(["z", "rho"], num_samples=6, indices=[5, 1, 8], seed=3)
    posterior = dataset(container, "posterior")
    for name in ("z", "rho"):
        np.testing.assert_array_equal(posterior[name].values[0], draws[name].values)
    np.testing.assert_allclose(posterior["rho"].sum("var"), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(
        dataset(container, "observed_data")["X"], model.adata.X[[5, 1, 8]]
    )
    constant = dataset(container, "constant_data")
    codes = (model.adata.obs["batch"] == "batch_1").to_numpy()[[5, 1, 8]]
    np.testing.assert_array_equal(constant["batch"], codes)
    np.testing.assert_allclose(
        constant["extra_continuous_covs"], model.adata.obs["age"].iloc[[5, 1, 8]], rtol=1e-6
    )


def test_default_groups_and_seed(model: SCVI) -> None:
    container = model.to_arviz(num_samples=2)
    assert group_names(container) == ["posterior", "observed_data", "constant_data"]
    assert set(dataset(container, "posterior").data_vars) == {"z"}
    assert container.attrs["seed"] == settings.seed


def test_other_data(model: SCVI) -> None:
    other = make_data(seed=4)
    other.var_names = model.var_names
    other.obs_names = [f"other {i}" for i in range(other.n_obs)]
    posterior = dataset(model.to_arviz(num_samples=2, adata=other), "posterior")
    assert list(posterior["obs"].values) == list(other.obs_names)


def test_netcdf_round_trip(container: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "draws.nc")
    container.to_netcdf(path)
    back = xr.open_datatree(path) if IS_TREE else az.from_netcdf(path)
    for group in OF_LOCALS:
        xr.testing.assert_equal(dataset(back, group).load(), dataset(container, group))
    assert back.attrs["model"] == "SCVI"
    back.close()


def test_summary_of_named_variables(model: SCVI) -> None:
    container = model.to_arviz("rho", num_samples=20, indices=[0, 1])
    summary = az.summary(container, var_names=["rho"], coords={"var": ["gene 3"]}, round_to="none")
    assert list(summary.index) == ["rho[cell 0, gene 3]", "rho[cell 1, gene 3]"]
    draws = dataset(container, "posterior")["rho"].sel(var="gene 3").values[0]
    np.testing.assert_allclose(summary["mean"].astype(float), draws.mean(0), rtol=1e-4)


def test_information_criterion_is_accepted(model: SCVI) -> None:
    groups = ("posterior", "log_likelihood")
    container = model.to_arviz(num_samples=100, num_inner=10, groups=groups)
    loo = az.loo(container, var_name="X")
    assert np.isfinite(loo.elpd if IS_TREE else loo.elpd_loo)
    assert loo.n_data_points == 60


def test_sparse_data() -> None:
    adata = make_data(sparse_format="csr_matrix")
    model = make_model(adata, epochs=0)
    container = model.to_arviz(num_samples=2, groups=("observed_data",))
    np.testing.assert_array_equal(dataset(container, "observed_data")["X"], adata.X.toarray())


def test_repeated_variable_names_are_refused(model: SCVI) -> None:
    state = model.registry["field_registries"]["X"]["state_registry"]
    names = state["column_names"]
    try:
        state["column_names"] = ["same", "same", *names[2:]]
        with pytest.raises(DataError, match=r"'var' has repeated names, e\.g\. \['same'\].*unique"):
            SCVI.sample_posterior(model, "mu", num_samples=2)
    finally:
        state["column_names"] = names


def test_chains() -> None:
    plain = xr.Dataset({"x": ("obs", [1.0, 2.0])})
    assert with_chain(plain) is plain
    draws = with_chain(xr.Dataset({"x": ("draw", [1.0, 2.0])}))
    assert draws["x"].dims == ("chain", "draw")
    container = to_container({"posterior": draws}, {"a": 1})
    assert dict(container.attrs)["a"] == 1
    assert dict(container.attrs)["creation_library"] == "pyrovi"
    assert dataset(container, "posterior").attrs["a"] == 1


def test_labels_are_numbers_or_text() -> None:
    index = pd.CategoricalIndex(["u", "v"])
    plain = plain_labels(xr.Dataset({"x": ("k", [1.0, 2.0])}, coords={"k": index}))
    assert plain["k"].dtype == object
    assert [type(label) for label in plain["k"].values] == [str, str]
    mixed = xr.Dataset({"x": ("k", [1.0, 2.0])}, coords={"k": np.array([True, "a"], dtype=object)})
    assert list(plain_labels(mixed)["k"].values) == ["True", "a"]
    numbers = xr.Dataset({"x": ("k", [1.0, 2.0])}, coords={"k": [3, 5]})
    assert list(plain_labels(numbers)["k"].values) == [3, 5]
    same = xr.Dataset({"x": ("k", [1.0, 2.0])}, coords={"k": np.array([1, "1"], dtype=object)})
    with pytest.raises(DataError, match=r"'k' has labels that are the same text, e\.g\. \['1'\]"):
        to_container({"posterior": same})


def test_large_locals_are_exported_by_name_only(
    model: SCVI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arviz_request, "MAX_LOCAL_ELEMENTS", 5 * 60 * 3 - 1)
    with pytest.raises(ModelError, match=r"'z' for 60 observations.*indices=.*name the sites"):
        model.to_arviz(num_samples=5)
    assert set(dataset(model.to_arviz(num_samples=4), "posterior")) == {"z"}
    assert set(dataset(model.to_arviz(num_samples=5, indices=[0, 1]), "posterior")) == {"z"}
    assert set(dataset(model.to_arviz("z", num_samples=5), "posterior")) == {"z"}
    only = model.to_arviz(num_samples=5, groups="posterior_predictive")  # needs no latent site
    assert group_names(only) == ["posterior_predictive"]


def test_large_data_are_refused_or_left_out(model: SCVI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arviz_data, "MAX_DATA_ELEMENTS", 10 * 12 - 1)
    with pytest.raises(ModelError, match=r"'X' as a dense array of 1\.2e\+02 numbers.*indices="):
        model.to_arviz(num_samples=2, indices=range(10), groups="observed_data")
    model.to_arviz(num_samples=2, indices=range(9), groups="observed_data")
    monkeypatch.setattr(arviz_data, "MAX_DATA_ELEMENTS", 59)
    request = arviz_request.Request(
        model, model.adata_manager, True, np.arange(60), 2, 10, None, None
    )
    constant = arviz_data.constant_data(request)
    assert not constant.data_vars  # 60 numbers each
    assert "batch" in constant.attrs["left_out"]


def test_groups_that_do_not_exist(model: SCVI) -> None:
    with pytest.raises(ModelError, match="Unknown group 'likelihood'; groups are: posterior, "):
        model.to_arviz(groups="likelihood")
    with pytest.raises(ModelError, match="groups is empty; name some of: posterior, "):
        model.to_arviz(groups=())
    with pytest.raises(ModelError, match="align= turns the posterior group"):
        model.to_arviz(groups="prior", align={"latent_dim": "rotation"})
    with pytest.raises(ModelError, match="no global latent sites"):
        model.to_arviz(num_samples=2, groups="log_prior")
    other = make_data(seed=4)
    other.var_names = model.var_names
    for group in ("sample_stats", "vi_diagnostics"):
        with pytest.raises(ModelError, match=f"'{group}' describes the fit.*leave adata= out"):
            model.to_arviz(num_samples=2, adata=other, groups=group)
