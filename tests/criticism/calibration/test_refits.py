"""SBC with refits: right inference passes, wrong one fails, and runs can be gone on with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi as pv
from pyrovi.criticism.calibration.one_refit import LIKELIHOOD
from pyrovi.criticism.calibration.refits import sbc
from pyrovi.data.fields import LayerField, TotalField
from pyrovi.errors import InferenceError, ModelError, SaveLoadError, TrainingError
from pyrovi.model.base import BaseModelClass
from pyrovi.module import PyroBaseModule

QUICK: dict[str, Any] = {"accelerator": "cpu", "batch_size": None}


class MeanModule(PyroBaseModule):
    """mu ~ N(0, 2); x_n ~ N(mu, 1.5); the guide reads the data: it is exact without training."""

    def __init__(self, widen: float, shift: float) -> None:
        super().__init__()
        self.widen, self.shift = widen, shift
        self.loc = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("exact", torch.ones(2))

    def model(self, X: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with self.obs_plate():
            pyro.sample("X", dist.Normal(mu, 1.5).expand([1]).to_event(1), obs=X)

    def guide(self, X: torch.Tensor) -> None:
        loc, scale = self.exact
        pyro.sample("mu", dist.Normal(loc + self.shift + 0 * self.loc, self.widen * scale))


class Exact(BaseModelClass):
    """``train`` puts the exact posterior into the guide; or fails, where it is asked to."""

    @classmethod
    def setup_anndata(cls, adata: Any) -> None:
        cls.register(adata, [LayerField("X", None, is_count_data=False)], {})

    def __init__(self, adata: Any, widen: float = 1.0, shift: float = 0.0) -> None:
        super().__init__(adata)
        self.module = MeanModule(widen, shift)

    def train(self, fail_above: float = math.inf, **kwargs: Any) -> None:
        X = np.asarray(self.adata_manager.get_from_registry("X"), dtype=float)
        if X.mean() > fail_above:
            raise InferenceError("the loss is not finite")
        variance = 1 / (1 / 4 + len(X) / 2.25)
        loc = variance * X.sum() / 2.25
        self.module.exact.copy_(torch.tensor([loc, math.sqrt(variance)]))
        self.is_trained = True
        self.train_indices = np.arange(len(X))


def exact(n: int = 6, **options: float) -> Exact:
    adata = anndata.AnnData(np.zeros((n, 1), dtype=np.float32))
    Exact.setup_anndata(adata)
    return Exact(adata, **options)


def test_exact_posterior_passes() -> None:
    found = sbc(exact(), 90, num_draws=19, seed=1)
    assert found.passed, found.summary()
    assert list(found.values) == ["mu", "log p(x | latents)", "log p(x, latents)"]
    assert (found.symmetry["direction"] == "").all()
    assert found.values.shape == (90, 3)
    assert (found.ess == 19).all()


@pytest.mark.parametrize(
    ("wrong", "reading"), [({"widen": 0.5}, "too narrow"), ({"widen": 2.5}, "too wide")]
)
def test_wrong_scale_fails_but_is_symmetric(wrong: dict, reading: str) -> None:
    found = sbc(exact(**wrong), 90, sites="mu", num_draws=19, seed=1)
    assert not found.passed
    assert reading in found.table.loc["mu", "reading"]
    assert found.symmetry.loc["mu", "direction"] == ""


def test_wrong_mean_fails_with_its_direction() -> None:
    found = sbc(exact(shift=-0.6), 90, num_draws=19, seed=1)
    assert "too low" in found.table.loc["mu", "reading"]
    assert found.symmetry.loc["mu", "direction"] == "low"
    assert "biased low on average" in found.summary()


def test_a_fit_that_returns_the_prior_is_revealed_by_the_likelihood() -> None:
    class Lazy(Exact):
        def train(self, **kwargs: Any) -> None:
            self.module.exact.copy_(torch.tensor([0.0, 2.0]))
            self.is_trained = True

    adata = anndata.AnnData(np.zeros((6, 1), dtype=np.float32))
    Lazy.setup_anndata(adata)
    found = sbc(Lazy(adata), 90, num_draws=19, seed=1)
    assert found.table.loc["mu", "verdict"] == "passes"
    assert found.table.loc[LIKELIHOOD, "verdict"] == "fails"


def test_results_do_not_depend_on_workers_or_on_what_was_drawn_before() -> None:
    one = sbc(exact(), 8, num_draws=19, seed=2)
    torch.manual_seed(5)
    two = sbc(exact(), 8, num_draws=19, seed=2, num_workers=2)
    assert one.values.equals(two.values)
    assert not one.values.equals(sbc(exact(), 8, num_draws=19, seed=3).values)


def test_a_run_goes_on_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "sbc.json"
    first = sbc(exact(), 5, num_draws=19, path=path, seed=2)
    lines = path.read_text().splitlines()
    assert len(lines) == 6
    path.write_text("\n".join([*lines[:-1], lines[-1][:20]]))  # killed while writing the last
    all_at_once = sbc(exact(), 9, num_draws=19, seed=2)
    gone_on = sbc(exact(), 9, num_draws=19, path=path, seed=2)
    assert gone_on.values.equals(all_at_once.values)
    assert len(path.read_text().splitlines()) == 10
    before = path.read_bytes()
    assert sbc(exact(), 5, num_draws=19, path=path, seed=2).values.equals(first.values)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_draws": 9}, "num_draws"),
        ({"seed": 3}, "seed"),
        ({"train_kwargs": {"max_epochs": 3}}, "train_kwargs"),
    ],
)
def test_a_file_of_another_configuration_is_refused(
    tmp_path: Path, change: dict, named: str
) -> None:
    path = tmp_path / "sbc.json"
    options = {"num_draws": 19, "seed": 2}
    sbc(exact(), 2, path=path, **options)
    with pytest.raises(SaveLoadError, match=f"another configuration: {named}"):
        sbc(exact(), 2, path=path, **(options | change))


def test_files_of_other_models_or_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sbc.json"
    sbc(exact(), 2, path=path, num_draws=19)
    with pytest.raises(SaveLoadError, match="story"):
        sbc(exact(widen=2.0), 2, path=path, num_draws=19)
    with pytest.raises(SaveLoadError, match="data"):
        sbc(exact(n=7), 2, path=path, num_draws=19)
    path.write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(SaveLoadError, match="something else"):
        sbc(exact(), 2, path=path, num_draws=19)
    path.write_text("hello\n")
    with pytest.raises(SaveLoadError, match="no JSON"):
        sbc(exact(), 2, path=path, num_draws=19)
    assert path.read_text() == "hello\n"


def test_failed_fits_are_reported_and_too_many_of_them_do_not_pass(tmp_path: Path) -> None:
    found = sbc(exact(), 60, train_kwargs={"fail_above": 1.0}, num_draws=19, seed=1)
    assert 3 < len(found.failures) < 40
    assert len(found.values) + len(found.failures) == 60
    assert not found.passed
    assert "fits failed" in found.summary()
    assert "the loss is not finite" in found.summary()
    with pytest.raises(TrainingError, match=r"None of the 4 .* loss is not finite"):
        sbc(exact(), 4, train_kwargs={"fail_above": -100.0}, num_draws=19)


FIELDS = {"X": pv.fields.layer(None)}
NUTS = {"method": "nuts", "num_chains": 1, "num_samples": 60, "num_warmup": 60}


def counts_of(rows: int = 12) -> anndata.AnnData:
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.2, 4.0, size=(rows, 1))
    return anndata.AnnData(rng.poisson(3.0 * depth, size=(rows, 3)).astype(np.float32))


def rates(X, *, n_vars):
    with pv.plate("var", n_vars, dim=-1):
        r = pyro.sample("r", dist.Gamma(3.0, 1.0))
    with pv.obs_plate():
        pyro.sample("X", dist.Poisson(r).to_event(1), obs=X)


def scaled(X, library, *, n_vars):
    with pv.plate("var", n_vars, dim=-1):
        r = pyro.sample("r", dist.Gamma(3.0, 1.0))
    with pv.obs_plate():
        pyro.sample("X", dist.Poisson(library * r).to_event(1), obs=X)


@pytest.mark.parametrize(
    ("guide", "training"),
    [("laplace", {}), ("normal", NUTS), ("normal", {"method": "pathfinder"})],
    ids=["laplace", "nuts", "pathfinder"],
)
def test_methods_without_a_division_of_the_data_are_refitted(guide: str, training: dict) -> None:
    model = pv.from_pyro(rates, counts_of(), fields=FIELDS, guide=guide)
    found = sbc(model, 2, train_kwargs=training, num_draws=19, seed=1)
    assert len(found.values) == 2
    assert found.failures.empty
    if guide == "laplace":
        assert (found.ess == 19).all()  # its draws are independent


def test_wrong_options_are_told_and_not_recorded(tmp_path: Path) -> None:
    model = pv.from_pyro(rates, counts_of(), fields=FIELDS, guide="laplace")
    path = tmp_path / "sbc.json"
    options = {"num_draws": 19, "seed": 1, "path": path}
    with pytest.raises(TrainingError, match="does not take 'num_foo'"):
        sbc(model, 2, train_kwargs={"num_foo": 3}, **options)
    with pytest.raises(TrainingError, match="num_starts must be at least 1"):
        sbc(model, 2, train_kwargs={"num_starts": 0}, num_workers=2, **options)
    with pytest.raises(ModelError, match="'map' finds a point"):
        sbc(model, 2, train_kwargs={"method": "map"}, **options)
    assert not path.exists()
    assert len(sbc(model, 2, **options).values) == 2


def test_failed_fits_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sbc.json"
    options = {"num_draws": 19, "seed": 1, "path": path}
    train = Exact.train
    monkeypatch.setattr(Exact, "train", lambda self, **_: train(self, fail_above=0.0))
    first = sbc(exact(), 8, **options)
    assert 0 < len(first.failures) < 8
    monkeypatch.setattr(Exact, "train", train)
    # the model is the same to the file, which compares the code of its module
    again = sbc(exact(), 8, **options)
    assert again.failures.empty
    assert again.values.equals(sbc(exact(), 8, num_draws=19, seed=1).values)


def test_a_file_of_nothing_but_failures_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "sbc.json"
    with pytest.raises(TrainingError, match="None of the 2"):
        sbc(exact(), 2, train_kwargs={"fail_above": -100.0}, num_draws=19, path=path)
    assert len(sbc(exact(), 2, num_draws=19, path=path).values) == 2
    assert len(path.read_text().splitlines()) == 3


class Conjugate(BaseModelClass):
    """Poisson counts of known depth: the posterior of the rates is a gamma, put into the guide."""

    @classmethod
    def setup_anndata(cls, adata: Any) -> None:
        cls.register(adata, [LayerField("X", None), TotalField("library", None)], {})

    def __init__(self, adata: Any) -> None:
        super().__init__(adata)
        self.module = ScaledModule()

    def train(self, **kwargs: Any) -> None:
        X = np.asarray(self.adata_manager.get_from_registry("X"), dtype=float)
        library = np.asarray(self.adata_manager.get_from_registry("library"), dtype=float)
        self.module.shape.copy_(torch.as_tensor(3 + X.sum(0)))
        self.module.rate.copy_(torch.as_tensor(1 + library.sum()))
        self.is_trained, self.train_indices = True, np.arange(len(X))


class ScaledModule(PyroBaseModule):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shape", torch.ones(3))
        self.register_buffer("rate", torch.ones(()))

    def model(self, X: torch.Tensor, library: torch.Tensor) -> None:
        r = pyro.sample("r", dist.Gamma(X.new_full((3,), 3.0), 1.0).to_event(1))
        with self.obs_plate():
            pyro.sample("X", dist.Poisson(library * r).to_event(1), obs=X)

    def guide(self, X: torch.Tensor, library: torch.Tensor) -> None:
        pyro.sample("r", dist.Gamma(self.shape, self.rate).to_event(1))


def test_totals_as_covariate_are_those_that_were_simulated_with() -> None:
    adata = counts_of(6)
    Conjugate.setup_anndata(adata)
    found = sbc(Conjugate(adata), 60, num_draws=19, seed=2)
    assert found.passed, found.summary()


@pytest.mark.slow
def test_totals_of_a_story_pass_with_nuts() -> None:
    fields = {"X": pv.fields.layer(None), "library": pv.fields.total(None)}
    model = pv.from_pyro(scaled, counts_of(6), fields=fields)
    training = NUTS | {"num_samples": 100, "num_warmup": 100}
    found = sbc(model, 20, train_kwargs=training, num_draws=19, num_workers=2, seed=1)
    assert found.passed, found.summary()


def test_results_are_shown_in_short() -> None:
    found = sbc(exact(), 8, num_draws=19, seed=2)
    assert repr(found) == found.summary()
    assert "<table" in found._repr_html_()


def test_time_limit_stops_before_the_next_simulation(tmp_path: Path) -> None:
    path = tmp_path / "sbc.json"
    with pytest.raises(TrainingError, match="max_time=0"):
        sbc(exact(), 4, num_draws=19, max_time=0, path=path)
    sbc(exact(), 2, num_draws=19, path=path)
    found = sbc(exact(), 4, num_draws=19, max_time=0, path=path)
    assert len(found.values) == 2
    assert "2 of 4 simulations are done" in found.summary()


def test_wrong_questions_are_explained() -> None:
    with pytest.raises(ModelError, match="'X' is observed"):
        sbc(exact(), 2, sites="X")
    with pytest.raises(ModelError, match="num_draws must be at least 1"):
        sbc(exact(), 2, num_draws=0)


class HierarchyModule(PyroBaseModule):
    """mu ~ N(0, 2); z_n ~ N(mu, 1); x_n ~ N(z_n, 0.5)."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(()))
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def model(self, X: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("X", dist.Normal(z[..., None], 0.5).to_event(1), obs=X)

    def guide(self, X: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(self.loc, self.log_scale.exp()))
        with self.obs_plate():
            pyro.sample("z", dist.Normal((mu + 4 * X[:, 0]) / 5, 5**-0.5))


class HierarchyModel(Exact):
    def __init__(self, adata: Any) -> None:
        BaseModelClass.__init__(self, adata)
        self.module = HierarchyModule()

    train = BaseModelClass.train


@pytest.mark.slow
def test_trained_exact_family_passes_with_local_latents() -> None:
    """The guide's family holds the exact posterior, so SVI finds it and everything is uniform."""
    adata = anndata.AnnData(np.zeros((10, 1), dtype=np.float32))
    HierarchyModel.setup_anndata(adata)
    training = {"max_epochs": 100, "lr": 0.08, "plan_kwargs": {"n_epochs_kl_warmup": 0}, **QUICK}
    model = HierarchyModel(adata)
    found = sbc(
        model, 30, train_kwargs=training, observations=[0, 3], num_draws=19, num_workers=2, seed=1
    )
    assert found.passed, found.summary()
    assert list(found.values)[:3] == ["mu", "z[obs=0]", "z[obs=3]"]


def line(x: torch.Tensor, y: torch.Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(b * x, 1.0), obs=y)


def line_model() -> Any:
    x = np.linspace(-1, 1, 12)
    return pv.from_pyro(line, {"x": x, "y": x})


def test_the_inference_that_the_model_holds_is_judged(tmp_path: Path) -> None:
    model = line_model()
    model.train(method="laplace")
    found = sbc(model, 3, num_draws=19, seed=1)
    assert found.inference == "method='laplace'"
    assert "of train(method='laplace')" in found.summary()
    same = sbc(line_model(), 3, train_kwargs={"method": "laplace"}, num_draws=19, seed=1)
    assert found.values.equals(same.values)  # one of an untrained model that is told so
    model.save(tmp_path / "saved")
    loaded = pv.load(tmp_path / "saved", model.adata, story=line)
    assert sbc(loaded, 3, num_draws=19, seed=1).values.equals(found.values)


@pytest.mark.parametrize("number", [1, 19])
def test_few_simulations_do_not_pass(number: int) -> None:
    found = sbc(exact(), number, num_draws=19, seed=1)
    assert found.passed is None
    assert "too few to judge" in found.summary()
    assert "passes" not in found.summary()
    assert set(found.table["verdict"]) == {"too few"}


def test_enough_simulations_pass_and_few_can_still_fail() -> None:
    assert sbc(exact(), 20, num_draws=19, seed=1).passed is True
    assert sbc(exact(shift=-5.0), 8, num_draws=19, seed=1).passed is False
