"""Export to ArviZ (0.x: InferenceData, 1.x: DataTree): names, groups, files, summaries."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pytest
import xarray as xr
from tests.model.samples import make_data, make_model

from pyrovi._settings import settings
from pyrovi.errors import DataError
from pyrovi.model import SCVI
from pyrovi.model.arviz_export import GROUPS
from pyrovi.posterior.arviz import to_container, with_chain

IS_TREE = int(version("arviz").split(".")[0]) >= 1


def dataset(container: Any, group: str) -> xr.Dataset:
    return container[group].to_dataset() if IS_TREE else container[group]


def group_names(container: Any) -> list[str]:
    return list(container.children) if IS_TREE else list(container.groups())


@pytest.fixture(scope="module")
def model() -> SCVI:
    adata = make_data()
    adata.var_names = [f"gene {i}" for i in range(adata.n_vars)]
    adata.obs_names = [f"cell {i}" for i in range(adata.n_obs)]
    return make_model(adata)


@pytest.fixture(scope="module")
def container(model: SCVI) -> Any:
    return model.to_arviz(["z", "rho"], num_samples=6, indices=[5, 1, 8], groups=GROUPS, seed=3)


def test_type(container: Any) -> None:
    assert type(container).__name__ == ("DataTree" if IS_TREE else "InferenceData")


def test_groups_dimensions_and_coordinates(model: SCVI, container: Any) -> None:
    assert sorted(group_names(container)) == sorted(GROUPS)
    draws = ("chain", "draw", "obs")
    dims: dict[str, dict[str, tuple[str, ...]]] = {
        "posterior": {"z": (*draws, "latent_dim"), "rho": (*draws, "var")},
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


def test_attributes(container: Any) -> None:
    attrs = dict(container.attrs)
    assert attrs.pop("created_at")[:2] == "20"
    assert attrs == {
        "inference_library": "pyrovi",
        "inference_library_version": version("pyrovi"),
        "inference": "svi",
        "guide": "VAE",
        "model": "SCVI",
        "seed": 3,
        "note": "independent draws of a fitted guide: ess and mcse do not measure its error",
    }


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
    assert group_names(container) == ["posterior", "constant_data"]
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
    for group in GROUPS:
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
    container = model.to_arviz(num_samples=100, groups=("posterior", "log_likelihood"))
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
