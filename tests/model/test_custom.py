"""pv.from_pyro: a plain Pyro function and data make a whole model."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyrovi as pv
from pyrovi.errors import DataError, MissingKeyError, ModelError, SaveLoadError, TrainingError
from pyrovi.module.ledger import Role

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 3 rows")


def line(x: torch.Tensor, y: torch.Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)


def factors(X: Any, library: Any, *, n_vars: int, n_factors: int = 3) -> None:
    with pv.plate("factor", n_factors, dim=-2), pv.plate("var", n_vars, dim=-1):
        W = pyro.sample("W", dist.Gamma(0.3, 0.3))
    with pv.obs_plate():
        z = pyro.sample("z", dist.Gamma(torch.ones(n_factors), 1.0).to_event(1))
        rate = pyro.deterministic("rate", library * (z @ W), event_dim=1)
        pyro.sample("X", dist.Poisson(rate).to_event(1), obs=X)


FACTOR_FIELDS = {"X": pv.fields.layer("counts"), "library": pv.fields.total("counts")}


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    x = rng.normal(size=40)
    y = 1 + 2 * x + rng.normal(size=40)
    return pd.DataFrame({"x": x, "y": y}, index=[f"row{i}" for i in range(40)])


@pytest.fixture
def adata() -> anndata.AnnData:
    adata = anndata.AnnData(np.random.default_rng(0).poisson(2.0, (30, 7)).astype(np.float32))
    adata.layers["counts"] = adata.X.copy() + 1
    adata.obs["batch"] = list("uv") * 15
    return adata


def exact_line(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    X = np.column_stack([np.ones(len(frame)), frame["x"]])
    covariance = np.linalg.inv(X.T @ X + np.eye(2) / 100)
    return covariance @ X.T @ frame["y"].to_numpy(), covariance


def test_a_frame_gives_the_exact_log_likelihood(frame: pd.DataFrame) -> None:
    model = pv.from_pyro(line, frame)
    draws = model.sample_posterior(num_samples=3)
    ours = model.log_likelihood(num_samples=3)["y"]
    mean = draws["a"] + draws["b"] * frame["x"].to_xarray().rename(index="obs")
    theirs = -0.5 * (frame["y"].to_numpy() - mean) ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(ours, theirs.transpose("draw", "obs"), rtol=1e-4)
    assert list(ours.obs.values) == list(frame.index)


@pytest.mark.parametrize("as_data", [
    lambda f: f,
    lambda f: {"x": f["x"].to_numpy(), "y": f["y"].to_numpy()},
    lambda f: {"x": torch.tensor(f["x"].to_numpy()), "y": list(f["y"])},
    lambda f: anndata.AnnData(obs=f),
], ids=["frame", "arrays", "tensors", "anndata"])  # fmt: skip
def test_every_form_of_data_is_the_same_data(as_data: Any, frame: pd.DataFrame) -> None:
    fields = {"x": pv.fields.column("x"), "y": pv.fields.column("y")}
    reference = pv.from_pyro(line, frame, fields).log_likelihood(num_samples=2)["y"]
    data = as_data(frame)
    if isinstance(data, dict):
        fields = {"x": pv.fields.array("x"), "y": pv.fields.array("y")}
    found = pv.from_pyro(line, data, fields).log_likelihood(num_samples=2)["y"]
    np.testing.assert_array_equal(found, reference)


def test_a_story_that_closes_over_its_data(frame: pd.DataFrame) -> None:
    x, y = (torch.tensor(frame[name].to_numpy()) for name in "xy")

    def closed() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pv.plate("row", len(x)):
            pyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)

    model = pv.from_pyro(closed, {})
    assert model.summary_stats.n_obs == 1
    assert model.sites["y"].role is Role.OBSERVED
    # the ELBO is of all data at once, and the same as with the observations in a plate
    plated = pv.from_pyro(line, frame)
    ours = model.get_elbo(num_samples=50)
    assert ours == pytest.approx(plated.get_elbo(num_samples=50) * len(frame), rel=1e-4)


def test_nothing_of_the_callers_data_changes(frame: pd.DataFrame, adata: anndata.AnnData) -> None:
    before = frame.copy(deep=True)
    pv.from_pyro(line, frame).sample_posterior(num_samples=2)
    pd.testing.assert_frame_equal(frame, before)
    copy = adata.copy()
    pv.from_pyro(factors, adata, FACTOR_FIELDS).sample_prior(num_samples=2)
    assert list(adata.obs) == list(copy.obs)
    np.testing.assert_array_equal(adata.X, copy.X)
    assert set(adata.uns) - set(copy.uns) == {"_pyrovi_uuid"}


def test_constants_come_from_the_data_or_the_author(adata: anndata.AnnData) -> None:
    model = pv.from_pyro(factors, adata, FACTOR_FIELDS)
    assert model.sites["W"].shape == (3, 7)
    wider = functools.partial(factors, n_factors=5)
    assert pv.from_pyro(wider, adata, FACTOR_FIELDS).sites["W"].shape == (5, 7)


def test_dimensions_have_the_names_of_the_data(adata: anndata.AnnData) -> None:
    model = pv.from_pyro(factors, adata, FACTOR_FIELDS)
    assert model.sites["X"].dims == model.sites["rate"].dims == ("obs", "var")
    assert model.sites["W"].dims == ("factor", "var")
    draws = model.sample_posterior(["W", "rate"], num_samples=2)
    assert list(draws["var"].values) == list(adata.var_names)
    assert list(draws["obs"].values) == list(adata.obs_names)
    named = pv.from_pyro(factors, adata, FACTOR_FIELDS, site_dims={"z": ("factor",)})
    assert named.sites["z"].dims == ("obs", "factor")


def test_categories_name_a_plate(adata: anndata.AnnData) -> None:
    def story(batch: Any, *, n_batch: int) -> None:
        with pv.plate("batch", n_batch):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(m[batch], 1.0), obs=torch.zeros(len(batch)))

    model = pv.from_pyro(story, adata, {"batch": pv.fields.column("batch")})
    assert model.sample_posterior("m", num_samples=2)["batch"].values.tolist() == ["u", "v"]


def test_integers_index_and_are_observed(frame: pd.DataFrame) -> None:
    data = {"k": np.array([0, 1, 1]), "group": np.array([0, 1, 0])}

    def story(k: Any, group: Any) -> None:
        with pv.plate("g", 2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            pyro.sample("k", dist.Bernoulli(logits=a[group]), obs=k)

    model = pv.from_pyro(story, data)
    a = model.sample_posterior("a", num_samples=2)["a"].values[:, data["group"]]
    expected = np.where(data["k"] == 1, -np.log1p(np.exp(-a)), -np.log1p(np.exp(a)))
    np.testing.assert_allclose(model.log_likelihood(num_samples=2)["k"], expected, rtol=1e-5)


def test_a_module_is_a_story(frame: pd.DataFrame) -> None:
    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Any, y: Any) -> None:
            with pv.obs_plate():
                pyro.sample("y", dist.Normal(self.b * x, 1.0), obs=y)

    story = Line()
    model = pv.from_pyro(story, frame)
    assert [name for name in model.module.state_dict() if name.endswith("story.b")]
    model.train(max_epochs=3, train_size=1.0, enable_progress_bar=False)
    assert story.b.item() == 0.5  # the caller's own is left alone


def test_a_pair_brings_its_guide(adata: anndata.AnnData) -> None:
    class Pair(pv.module.PyroBaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.guide = AutoNormal(self.model)

        def model(self, X: Any) -> None:
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            with self.obs_plate():
                pyro.sample("X", dist.Normal(m, 1.0).expand([7]).to_event(1), obs=X)

    fields = {"X": pv.fields.layer("counts")}
    assert "m" in pv.from_pyro(Pair(), adata, fields).sites
    with pytest.raises(ModelError, match="Leave guide= out"):
        pv.from_pyro(Pair(), adata, fields, guide="normal")
    with pytest.raises(ModelError, match="needs fields="):
        pv.from_pyro(Pair(), adata)


def test_a_class_makes_an_object_for_every_fit(frame: pd.DataFrame) -> None:
    class Line(torch.nn.Module):
        def __init__(self, width: float = 1.0) -> None:
            super().__init__()
            self.b = torch.nn.Parameter(width * torch.randn(()))

        def forward(self, x: Any, y: Any) -> None:
            with pv.obs_plate():
                pyro.sample("y", dist.Normal(self.b * x, 1.0), obs=y)

    slopes = set()
    for seed in (1, 2):
        pv.settings.seed = seed
        slopes.add(float(pv.from_pyro(Line, frame).module.story.b))
    assert len(slopes) == 2
    flat = pv.from_pyro(functools.partial(Line, width=0.0), frame)
    assert flat.module.story.b.item() == 0.0
    with pytest.raises(TrainingError, match="Give the class in the place of the object"):
        pv.from_pyro(Line(), frame).train(n_restarts=2)


def test_a_guide_by_hand(frame: pd.DataFrame) -> None:
    def guide(x: Any, y: Any) -> None:
        pyro.sample("a", dist.Normal(3.0, 1e-6))
        pyro.sample("b", dist.Normal(-1.0, 1e-6))

    model = pv.from_pyro(line, frame, guide=guide)
    draws = model.sample_posterior(num_samples=2)
    np.testing.assert_allclose(draws["a"], 3.0, atol=1e-4)
    np.testing.assert_allclose(draws["b"], -1.0, atol=1e-4)


def test_queries_take_the_same_kinds_of_data(frame: pd.DataFrame) -> None:
    model = pv.from_pyro(line, frame)
    some = frame.iloc[5:9]
    whole = model.log_likelihood(num_samples=2)["y"].sel(obs=list(some.index))
    np.testing.assert_array_equal(model.log_likelihood(adata=some, num_samples=2)["y"], whole)


# ---------------------------------------------------------------------- files


def test_save_and_load(frame: pd.DataFrame, tmp_path: Path) -> None:
    model = pv.from_pyro(line, frame)
    model.train(max_epochs=2, train_size=1.0, enable_progress_bar=False)
    model.save(tmp_path / "line")
    loaded = pv.load(tmp_path / "line", frame)
    assert loaded.get_elbo() == model.get_elbo()
    blind = pv.load(tmp_path / "line", False)
    assert blind.get_elbo(frame) == model.get_elbo()


def test_a_nameless_story_has_to_be_given_again(frame: pd.DataFrame, tmp_path: Path) -> None:
    story = lambda x, y: line(x, y)  # noqa: E731
    pv.from_pyro(story, frame).save(tmp_path / "m")
    with pytest.raises(SaveLoadError, match=r"pass it again: pv.load\(dir, data, story=my_story\)"):
        pv.load(tmp_path / "m", frame)
    assert list(pv.load(tmp_path / "m", frame, story=story).sites) == ["a", "b", "y"]
    with pytest.raises(SaveLoadError, match="'tale', which PyroModel does not take"):
        pv.load(tmp_path / "m", frame, tale=story)


def test_a_file_cannot_name_code_to_run(frame: pd.DataFrame, tmp_path: Path) -> None:
    pv.from_pyro(line, frame).save(tmp_path / "m")
    description = tmp_path / "m" / "model.json"
    name = f"{line.__module__}.line"
    text = description.read_text()
    assert name in text
    description.write_text(text.replace(name, "os.system"))
    with pytest.raises(SaveLoadError, match=r"function 'os\.system'"):
        pv.load(tmp_path / "m", frame)


# ---------------------------------------------------------------------- errors that teach


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((line, {"x": [1.0]}), ModelError, r"asks for 'y', which the data have nothing.*found: x"),
        ((line, {"x": [1.0]}, {"x": pv.fields.array("x")}), ModelError, "'y', which no field"),
        ((line, {"x": [1.0, 2.0], "y": [1.0]}), DataError, "different numbers of rows"),
        ((line, {"x": [1.0]}, {"x": "x"}), DataError, r"fields\['x'\] is 'x' \(str\)"),
        ((line, {"x": [1.0]}, {"x": pv.fields.array("q")}), MissingKeyError, "'q' not found"),
        ((lambda x, *, size: None, {"x": [1.0]}), ModelError, r"constant 'size'.*n_obs=1"),
        ((lambda *x: None, {"x": [1.0]}), ModelError, r"takes \*x"),
    ],
)  # fmt: skip
def test_what_does_not_fit(arguments: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        pv.from_pyro(*arguments)


def test_site_dims_that_do_not_fit(frame: pd.DataFrame) -> None:
    with pytest.raises(ModelError, match="site_dims names 'c', which the model has no site for"):
        pv.from_pyro(line, frame, site_dims={"c": ("k",)})


def test_a_guide_that_is_a_plain_module_and_has_nothing_to_train() -> None:
    class Exact(torch.nn.Module):
        def forward(self, y: torch.Tensor) -> None:
            pyro.sample("mu", dist.Normal(torch.tensor(0.5), 0.1))

    def story(y: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    model = pv.from_pyro(story, {"y": np.ones(6)}, guide=Exact())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = model.sample_posterior("mu", num_samples=500)["mu"]
    assert abs(float(draws.mean()) - 0.5) < 0.03


def masked(x: torch.Tensor, y: torch.Tensor, seen: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(slope * x, 0.5).mask(seen.bool()), obs=y)


def unmasked(x: torch.Tensor, y: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)


def test_masked_outcomes_are_as_if_they_were_not_there_and_can_be_predicted() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = np.where(rng.random(60) < 0.3, np.nan, 2 * x + 0.5 * rng.normal(size=60))
    seen = np.isfinite(y)
    with pytest.raises(DataError, match="masked"):
        pv.from_pyro(unmasked, {"x": x, "y": y})
    whole = pv.from_pyro(masked, {"x": x, "y": np.nan_to_num(y), "seen": seen})
    part = pv.from_pyro(unmasked, {"x": x[seen], "y": y[seen]})
    for model in (whole, part):
        model.train(method="laplace")
    columns = ["mean", "sd"]
    np.testing.assert_allclose(whole.summary()[columns], part.summary()[columns], rtol=1e-4)
    drawn = whole.posterior_predictive(num_samples=400)["y"].mean("draw")
    slope = float(whole.summary().loc["slope", "mean"])
    np.testing.assert_allclose(drawn, slope * x, atol=0.15)


def test_a_series_in_a_frame_is_told_to_close_over_its_data() -> None:
    def autoregressive(y: torch.Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a * y[:-1], 1.0).to_event(1), obs=y[1:])

    series = torch.as_tensor(np.random.default_rng(0).normal(size=60), dtype=torch.float32)
    with pytest.raises(ModelError, match=r"pv\.from_pyro\(story, \{\}\), and close over"):
        pv.from_pyro(autoregressive, {"y": series.numpy()})

    def closed() -> None:
        autoregressive(series)

    model = pv.from_pyro(closed, {})
    model.train(method="laplace")
    precision = 1 + float((series[:-1] ** 2).sum())
    mean = float((series[:-1] * series[1:]).sum()) / precision
    found = model.sample_posterior("a", num_samples=4000)["a"]
    assert float(found.mean()) == pytest.approx(mean, abs=0.05)
    assert float(found.std()) == pytest.approx(precision**-0.5, rel=0.05)


def test_nothing_is_heard_of_what_torch_deprecates_at_its_first_derivative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hessian = torch.func.hessian

    def first(function: Any) -> Any:
        warnings.warn("`torch.jit.script` is deprecated.", DeprecationWarning, stacklevel=1)
        warnings.warn("something else", DeprecationWarning, stacklevel=1)
        return hessian(function)

    monkeypatch.setattr(torch.func, "hessian", first)
    model = pv.from_pyro(unmasked, {"x": np.ones(3), "y": np.ones(3)})
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        model.train(method="laplace")
    assert [str(w.message) for w in heard if "else" in str(w.message)]
    assert not [str(w.message) for w in heard if "torch.jit" in str(w.message)]
