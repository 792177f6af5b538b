"""ArviZ's own functions on what an export returns; the same file passes on both of its lines."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib as mpl
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import xarray as xr
from tests.criticism.exact import exact_loo, exact_model, simulated
from tests.model import arviz_lines
from tests.model.arviz_lines import IS_TREE, dataset, group_names, table
from torch import Tensor

import pyrovi as pv
from pyrovi.criticism.comparison import compare
from pyrovi.criticism.leave_one_out import loo
from pyrovi.criticism.prior_sensitivity import sensitivity
from pyrovi.model.arviz_export import GROUPS
from pyrovi.posterior.convergence import ess_bulk, rhat

pytestmark = [
    pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto"),
    pytest.mark.filterwarnings("ignore:This .* is not trained"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def drawing() -> Iterator[None]:
    """Draw without a screen, and close what was drawn."""
    before = mpl.get_backend()
    mpl.use("Agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
    mpl.use(before)


def common(x: Tensor, y: Tensor) -> None:
    """The regression without group effects."""
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pv.obs_plate():
        pyro.sample("response", dist.Normal(b * x, s), obs=y)


def by_nuts(story: Any) -> Any:
    model = pv.from_pyro(story, table())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(
            method="nuts", num_samples=250, num_warmup=200, num_chains=2, num_workers=2,
            enable_progress_bar=False,
        )  # fmt: skip
    return model


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {"groups": by_nuts(arviz_lines.groups), "common": by_nuts(common)}


@pytest.fixture(scope="module")
def containers(models: dict[str, Any]) -> dict[str, Any]:
    groups = [group for group in GROUPS if group != "vi_diagnostics"]
    return {name: model.to_arviz(groups=groups) for name, model in models.items()}


@pytest.fixture(scope="module")
def restarted() -> Any:
    model = pv.from_pyro(arviz_lines.groups, table(), guide="mvn")
    model.train(60, n_restarts=3, num_workers=1, enable_progress_bar=False)
    return model


def numbers(values: Any) -> np.ndarray:
    """A column of a table of ArviZ, which 1.x writes as text unless told otherwise."""
    return np.asarray(pd.to_numeric(values), dtype=float)


def test_summary_by_names(containers: dict[str, Any], models: dict[str, Any]) -> None:
    found = az.summary(
        containers["groups"], var_names=["a"], coords={"group": ["u", "w"]}, round_to="none"
    )
    assert list(found.index) == ["a[u]", "a[w]"]
    own = models["groups"].summary("a", coords={"group": ["u", "w"]})
    for theirs, ours in (("mean", "mean"), ("sd", "sd"), ("r_hat", "r_hat")):
        np.testing.assert_allclose(numbers(found[theirs]), own[ours], rtol=2e-3)
    np.testing.assert_allclose(numbers(found["ess_bulk"]), own["ess_bulk"], rtol=1e-2)


def test_convergence_of_restarts(restarted: Any) -> None:
    container = restarted.to_arviz(num_samples=100)
    draws = dataset(container, "posterior")
    for theirs, ours in ((az.rhat, rhat), (az.ess, ess_bulk)):
        found = theirs(container, var_names=["a"])
        found = found["posterior"].to_dataset() if "posterior" in found else found
        values = ours(draws["a"].values.astype(float))
        np.testing.assert_allclose(np.asarray(found["a"]), values, rtol=1e-3)


def elpd_of(result: Any) -> tuple[float, float]:
    return (result.elpd, result.p) if IS_TREE else (result.elpd_loo, result.p_loo)


def test_loo_is_that_of_criticism(containers: dict[str, Any], models: dict[str, Any]) -> None:
    elpd, p_loo = elpd_of(az.loo(containers["groups"]))
    own = loo(models["groups"])
    assert elpd == pytest.approx(own.elpd, abs=0.05)
    assert p_loo == pytest.approx(own.p_loo, abs=0.05)


def test_loo_with_locals_is_that_of_criticism() -> None:
    X, W, sd = simulated(60)
    model = exact_model(X, W, sd)
    groups = ("posterior", "log_likelihood")
    container = model.to_arviz(num_samples=500, num_inner=20, groups=groups)
    elpd, _ = elpd_of(az.loo(container))
    assert elpd == pytest.approx(loo(model, num_samples=500, num_inner=20).elpd, abs=0.05)
    assert elpd == pytest.approx(exact_loo(X, W, sd).sum(), abs=1.5)


def test_compare(containers: dict[str, Any], models: dict[str, Any]) -> None:
    unrounded = {"round_to": "none"} if IS_TREE else {}
    found, own = az.compare(containers, **unrounded), compare(models)
    assert list(found.index) == list(own.index)
    theirs = numbers(found["elpd" if IS_TREE else "elpd_loo"])
    np.testing.assert_allclose(theirs, own["elpd"], atol=0.1)
    np.testing.assert_allclose(
        np.abs(numbers(found["elpd_diff"])), own["elpd_diff"].abs(), atol=0.1
    )


def test_power_scaling(containers: dict[str, Any], models: dict[str, Any]) -> None:
    own = sensitivity(models["common"]).table
    names = ["s", "b"]
    for component, group in (("prior", "prior"), ("likelihood", "likelihood")):
        if IS_TREE:
            found = az.psense(containers["common"], group=group)
        else:
            found = az.psens(containers["common"], component=component)
        found = found["posterior"].to_dataset() if "posterior" in found else found
        theirs = [float(found[name]) for name in names]
        np.testing.assert_allclose(theirs, own.loc[names, component], rtol=0.1, atol=0.01)


def test_loo_pit(containers: dict[str, Any]) -> None:
    if IS_TREE:
        found = az.loo_pit(containers["groups"])
        found = found.get("loo_pit", found)
        values = np.asarray(found["response"])
    else:
        values = az.loo_pit(containers["groups"], y="response")
    assert values.shape == (24,)
    assert ((values >= 0) & (values <= 1)).all()
    assert 0.25 < values.mean() < 0.75


def test_netcdf_round_trip_of_all_groups(containers: dict[str, Any], tmp_path: Path) -> None:
    path = str(tmp_path / "draws.nc")
    container = containers["groups"]
    container.to_netcdf(path)
    back = xr.open_datatree(path) if IS_TREE else az.from_netcdf(path)
    assert set(group_names(back)) == set(GROUPS) - {"vi_diagnostics"}
    for group in group_names(back):
        one, two = dataset(back, group).load(), dataset(container, group)
        xr.testing.assert_equal(one, two)
        assert one.attrs == two.attrs
    assert dataset(back, "sample_stats")["diverging"].dtype == bool
    back.close()


def test_diagnostics_go_to_files(restarted: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "fit.nc")
    container = restarted.to_arviz(num_samples=5, groups=("posterior", "vi_diagnostics"))
    container.to_netcdf(path)
    back = xr.open_datatree(path) if IS_TREE else az.from_netcdf(path)
    xr.testing.assert_equal(
        dataset(back, "vi_diagnostics").load(), dataset(container, "vi_diagnostics")
    )
    back.close()


@pytest.mark.parametrize(
    "plot",
    ["forest", "trace", "energy", "pair", "predictive", "loo_pit", "several models", "rank"],
)
def test_plots(plot: str, containers: dict[str, Any]) -> None:
    """They find what they need by the names of the schema, and draw something."""
    import matplotlib.pyplot as plt

    container = containers["groups"]
    if plot == "forest":
        az.plot_forest(container, var_names=["a"], coords={"group": ["u", "x"]}, combined=True)
    elif plot == "trace":
        az.plot_trace(container, var_names=["b"])
    elif plot == "energy":
        az.plot_energy(container)
    elif plot == "pair" and IS_TREE:
        az.plot_pair(container, var_names=["s", "tau"], visuals={"divergence": True})
    elif plot == "pair":
        az.plot_pair(container, var_names=["s", "tau"], divergences=True)
    elif plot == "predictive":
        (az.plot_ppc_dist if IS_TREE else az.plot_ppc)(container)
    elif plot == "loo_pit" and IS_TREE:
        az.plot_loo_pit(container)
    elif plot == "loo_pit":
        az.plot_loo_pit(container, y="response")
    elif plot == "several models" and IS_TREE:
        az.plot_forest(containers, var_names=["b"])
    elif plot == "several models":
        az.plot_forest(list(containers.values()), model_names=list(containers), var_names=["b"])
    else:
        az.plot_rank(container, var_names=["b"])
    axes = [ax for number in plt.get_fignums() for ax in plt.figure(number).axes]
    assert any(ax.has_data() for ax in axes)
