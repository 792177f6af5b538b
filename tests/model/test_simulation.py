"""Simulated data: joint, repeatable, in the form of the data, with the truth that made them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar

import anndata
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import sparse

import pyrovi as pv
from pyrovi.data.fields import (
    CategoricalObsField,
    LayerField,
    MuDataLayerField,
    MuDataNumericalObsField,
    NumericalObsField,
    ObsmField,
    TotalField,
)
from pyrovi.data.synthetic import no_pull_on_update
from pyrovi.errors import DataError, ModelError
from pyrovi.model import BaseModelClass
from pyrovi.model.copies import fresh_copy
from pyrovi.model.truth import truth_of
from pyrovi.module import PyroBaseModule

N, G, K = 60, 7, 2


class Several(PyroBaseModule):
    """Counts in a layer, a score in obs, proteins in obsm, and a label: all observed."""

    site_dims: ClassVar = {
        "W": ("factor", "var"), "z": ("factor",), "rate": ("var",), "counts": ("var",),
        "proteins": ("proteins",),
    }  # fmt: skip

    def __init__(self, n_vars: int) -> None:
        super().__init__()
        self.n_vars = n_vars
        self.loc = torch.nn.Parameter(torch.zeros(()))

    def model(self, X, size, score, proteins, label):
        W = pyro.sample("W", dist.Normal(X.new_zeros(K, self.n_vars), 0.3).to_event(2))
        shift = pyro.sample("shift", dist.Normal(X.new_tensor(0.0), 100.0))
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(K), 1.0).to_event(1))
            rate = pyro.deterministic("rate", size * (z @ W).exp(), event_dim=1)
            pyro.sample("counts", dist.Poisson(rate).to_event(1), obs=X)
            pyro.sample("score", dist.Normal(shift, 0.01), obs=score.squeeze(-1))
            pyro.sample("proteins", dist.Normal(z.sum(-1, keepdim=True).expand(-1, 3), 0.1)
                        .to_event(1), obs=proteins)  # fmt: skip
            pyro.sample("label", dist.Bernoulli(logits=50 * z[:, 0]), obs=label.squeeze(-1).float())

    def guide(self, X, size, score, proteins, label):
        pyro.sample("W", dist.Normal(X.new_zeros(K, self.n_vars) + self.loc, 0.01).to_event(2))
        pyro.sample("shift", dist.Normal(X.new_tensor(5.0), 0.001))
        with self.obs_plate():
            pyro.sample("z", dist.Normal(X.new_zeros(K), 1.0).to_event(1))


class SeveralModel(BaseModelClass):
    def __init__(self, adata) -> None:
        super().__init__(adata)
        self.module = Several(len(self.var_names))

    @classmethod
    def setup_anndata(cls, adata) -> None:
        fields = [
            LayerField("X", "counts"),
            NumericalObsField("size", "size"),
            NumericalObsField("score", "score"),
            ObsmField("proteins", "proteins"),
            CategoricalObsField("label", "label"),
        ]
        cls.register(adata, fields, {})


def make_adata() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(2.0, (N, G)).astype(np.int32))
    obs = pd.DataFrame(
        {
            "size": rng.uniform(1, 3, N),
            "score": rng.integers(0, 5, N),
            "label": pd.Categorical(rng.choice(["no", "yes"], N)),
            "donor": [f"donor_{i % 3}" for i in range(N)],
        },
        index=[f"cell_{i}" for i in range(N)],
    )
    proteins = pd.DataFrame(rng.normal(size=(N, 3)), index=obs.index, columns=["a", "b", "c"])
    return anndata.AnnData(
        counts.astype(np.float32) * 0.1,
        obs=obs,
        var=pd.DataFrame(index=[f"gene_{g}" for g in range(G)]),
        layers={"counts": counts},
        obsm={"proteins": proteins, "X_pca": rng.normal(size=(N, 2))},
        uns={"log1p": {"base": None}},
    )


@pytest.fixture
def several() -> SeveralModel:
    adata = make_adata()
    SeveralModel.setup_anndata(adata)
    return SeveralModel(adata)


def assert_same_adata(one: anndata.AnnData, two: anndata.AnnData) -> None:
    pd.testing.assert_frame_equal(one.obs, two.obs)
    pd.testing.assert_frame_equal(one.var, two.var)
    assert set(one.layers) == set(two.layers)
    assert set(one.obsm) == set(two.obsm)
    assert one.uns == two.uns
    assert (one.layers["counts"] != two.layers["counts"]).nnz == 0
    assert (one.X != two.X).nnz == 0
    pd.testing.assert_frame_equal(one.obsm["proteins"], two.obsm["proteins"])


def test_the_form_of_the_data_is_kept_and_the_data_unchanged(several) -> None:
    before = several.adata.copy()
    made = several.simulate(seed=1, batch_size=17)
    assert_same_adata(several.adata, before)
    assert list(made.obs_names) == list(before.obs_names)
    assert list(made.var_names) == list(before.var_names)
    assert sparse.issparse(made.layers["counts"])
    assert made.layers["counts"].format == "csr"
    assert made.layers["counts"].dtype == np.int32
    pd.testing.assert_frame_equal(made.obs[["size", "donor"]], before.obs[["size", "donor"]])
    assert list(made.obsm["proteins"].columns) == ["a", "b", "c"]
    assert made.obs["label"].dtype == before.obs["label"].dtype
    assert "X_pca" not in made.obsm  # it belongs to the old counts
    assert made.X is None
    made.obs["size"] = 0.0
    made.obsm["proteins"].iloc[0, 0] = 99.0
    made.layers["counts"].data[:] = 77
    assert_same_adata(several.adata, before)


def test_the_truth_made_the_data(several) -> None:
    made = several.simulate(seed=2, batch_size=13)
    truth = truth_of(made)
    assert set(truth.data_vars) == {"W", "shift", "z", "rate"}
    assert truth["W"].dims == ("factor", "var")
    assert truth["z"].dims == ("obs", "factor")
    assert list(truth["rate"]["var"].values) == list(made.var_names)
    assert truth.attrs == {"source": "prior", "seed": 2, "model": "SeveralModel"}
    # one joint draw over all minibatches, globals and locals alike
    z, W = truth["z"].to_numpy(), truth["W"].to_numpy()
    rate = made.obs["size"].to_numpy()[:, None] * np.exp(z @ W)
    np.testing.assert_allclose(truth["rate"].to_numpy(), rate, rtol=1e-4)
    score = made.obs["score"].to_numpy()
    assert np.abs(score - float(truth["shift"])).max() < 0.06
    assert score.dtype.kind == "f"  # whole numbers before, but not any more
    label = (made.obs["label"] == "yes").to_numpy()
    clear = np.abs(z[:, 0]) > 0.2
    assert (label == (z[:, 0] > 0))[clear].all()
    proteins = made.obsm["proteins"].to_numpy()
    assert np.abs(proteins - z.sum(1)[:, None]).max() < 0.5
    residual = (made.layers["counts"].toarray() - rate) / np.sqrt(rate)
    assert abs(residual.mean()) < 4 / np.sqrt(N * G)
    assert residual.var() == pytest.approx(1.0, abs=0.25)


def test_seeds_repeat_and_globals_do_not_depend_on_the_batch_size(several) -> None:
    one, again = several.simulate(seed=3), several.simulate(seed=3)
    assert truth_of(one).identical(truth_of(again))
    assert (one.layers["counts"] != again.layers["counts"]).nnz == 0
    smaller, other = several.simulate(seed=3, batch_size=7), several.simulate(seed=4)
    for name in ("W", "shift"):
        assert truth_of(one)[name].identical(truth_of(smaller)[name])
        assert not truth_of(one)[name].equals(truth_of(other)[name])
    state = torch.get_rng_state()
    several.simulate(seed=3)
    assert torch.equal(state, torch.get_rng_state())


def test_the_truth_of_some_sites(several) -> None:
    part = several.simulate(seed=2, sites=["W", "z"])
    assert set(truth_of(part).data_vars) == {"W", "z"}
    whole = several.simulate(seed=2)
    assert truth_of(part)["z"].identical(truth_of(whole)["z"])
    assert (part.layers["counts"] != whole.layers["counts"]).nnz == 0
    with pytest.raises(ModelError, match="no site 'V'"):
        several.simulate(sites="V")


def test_a_copy_of_the_model_trains_on_simulated_data(several) -> None:
    made = several.simulate(seed=5)
    copied = fresh_copy(several, made)
    assert copied.adata is made
    copied.train(1, accelerator="cpu", enable_progress_bar=False, train_size=1.0)
    assert copied.is_trained
    assert SeveralModel(made).summary_stats == several.summary_stats


def test_the_posterior_has_the_globals_of_the_guide(several) -> None:
    with pytest.warns(UserWarning, match="not trained"):
        made = several.simulate(seed=6, from_="posterior")
    assert float(truth_of(made)["shift"]) == pytest.approx(5.0, abs=0.01)
    assert made.obs["score"].mean() == pytest.approx(5.0, abs=0.05)
    assert truth_of(made).attrs["source"] == "posterior"


def test_given_values(several) -> None:
    made = several.simulate(seed=7, given={"shift": 3.5, "W": np.zeros((K, G))})
    assert float(truth_of(made)["shift"]) == 3.5
    expected = np.broadcast_to(made.obs["size"].to_numpy()[:, None], (N, G))
    np.testing.assert_allclose(truth_of(made)["rate"], expected, rtol=1e-6)
    with pytest.raises(ModelError, match="names 'z', which is no global latent site"):
        several.simulate(given={"z": 0.0})
    with pytest.raises(ModelError, match=r"given\['W'\] has shape \(3,\); expected \(2, 7\)"):
        several.simulate(given={"W": np.zeros(3)})
    with pytest.raises(ModelError, match="Leave one of the two out"):
        several.simulate(from_="posterior", given={"shift": 0.0})
    with pytest.raises(ModelError, match="'prior' or 'posterior', got 'guide'"):
        several.simulate(from_="guide")


def test_truth_survives_files_and_subsets(several, tmp_path: Path) -> None:
    made = several.simulate(seed=8)
    made.write_h5ad(tmp_path / "simulated.h5ad")
    again = anndata.read_h5ad(tmp_path / "simulated.h5ad")
    assert truth_of(again).equals(truth_of(made))
    assert truth_of(again).attrs == truth_of(made).attrs
    part = truth_of(made[[5, 1]].copy())
    assert part["z"].equals(truth_of(made)["z"].isel(obs=[5, 1]))
    assert part["W"].equals(truth_of(made)["W"])
    genes = truth_of(made[:, [4, 2]].copy())
    assert genes["W"].equals(truth_of(made)["W"].isel(var=[4, 2]))
    with pytest.raises(DataError, match="carry no truth"):
        truth_of(several.adata)


def test_scanpy_reads_simulated_data(several) -> None:
    scanpy = pytest.importorskip("scanpy")
    made = several.simulate(seed=9)
    scanpy.pp.calculate_qc_metrics(made, layer="counts", inplace=True, percent_top=None)
    total = np.asarray(made.layers["counts"].sum(1)).ravel()
    np.testing.assert_allclose(made.obs["total_counts"], total)


class Totals(PyroBaseModule):
    def model(self, X, library, total=None):
        level = pyro.sample("level", dist.Gamma(X.new_tensor(5.0), 1.0))
        with self.obs_plate():
            rate = level * library.expand(-1, X.shape[-1])
            pyro.sample("X", dist.Poisson(rate).to_event(1), obs=X)

    def guide(self, X, library, total=None):
        pyro.sample("level", dist.Gamma(X.new_tensor(5.0), 1.0))


class OfComputed(Totals):
    def model(self, X, library, total=None):
        super().model(X, library)
        with self.obs_plate():
            pyro.sample("half", dist.Normal(X.new_zeros(X.shape[-1]), 1.0).to_event(1), obs=X / 2)


class OfTotal(Totals):
    def model(self, X, library, total=None):
        super().model(X, library)
        with self.obs_plate():
            pyro.sample("library", dist.LogNormal(X.new_zeros(1), 1.0).to_event(1), obs=library)


class Infinite(Totals):
    def model(self, X, library, total=None):
        level = pyro.sample("level", dist.Gamma(X.new_tensor(5.0), 1.0))
        with self.obs_plate():
            scale = (1e30 * level * X.new_ones(X.shape[-1])).square()
            pyro.sample("X", dist.Normal(0.0, scale).to_event(1), obs=X)


class TotalsModel(BaseModelClass):
    def __init__(self, adata, kind=Totals) -> None:
        super().__init__(adata)
        self.module = kind()

    @classmethod
    def setup_anndata(cls, adata) -> None:
        cls.register(adata, [LayerField("X", None), TotalField("library", None)], locals())


def totals_model(kind) -> TotalsModel:
    rng = np.random.default_rng(1)
    adata = anndata.AnnData(rng.poisson(3.0, (12, 4)).astype(np.float32))
    TotalsModel.setup_anndata(adata)
    return TotalsModel(adata, kind)


def test_totals_are_those_that_the_data_were_simulated_with(tmp_path) -> None:
    model = totals_model(Totals)
    before = model.adata.obs.copy()
    made = model.simulate(seed=1)
    assert isinstance(made.X, np.ndarray)
    assert made.X.dtype == np.float32
    # the totals of the real data were the covariate
    level = float(truth_of(made)["level"])
    expected = level * model.adata.X.sum() * 4
    assert made.X.sum() == pytest.approx(float(expected), rel=5 / float(np.sqrt(expected)))
    assert model.adata.obs.equals(before)

    totals = model.adata_manager.get_from_registry("library")
    fit = fresh_copy(model, made)
    np.testing.assert_array_equal(fit.adata_manager.get_from_registry("library"), totals)
    again = fit.simulate(seed=2)
    np.testing.assert_array_equal(again.obs["pyrovi_total_X"], totals.ravel())
    made.write_h5ad(tmp_path / "made.h5ad")
    part = anndata.read_h5ad(tmp_path / "made.h5ad")[[4, 2], [1, 0]].copy()
    field = TotalField("library", None)
    np.testing.assert_array_equal(field.get_field_data(part, {}), totals[[4, 2]])

    part.obs.loc[part.obs_names[0], "pyrovi_total_X"] = np.nan
    with pytest.raises(DataError, match=r"1 values of obs\['pyrovi_total_X'\] are missing"):
        field.get_field_data(part, {})
    del part.obs["pyrovi_total_X"]
    np.testing.assert_array_equal(field.get_field_data(part, {}), part.X.sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OfComputed, "'half' is not one of the registered fields"),
        (OfTotal, "'library' is the field 'library', which is computed from adata.X"),
        (Infinite, "drawn values of 'X' are not finite"),
    ],
)
def test_what_has_no_place_in_the_data_is_refused(kind, message) -> None:
    with pytest.raises(ModelError, match=message):
        totals_model(kind).simulate(seed=1)


class Multi(PyroBaseModule):
    def model(self, X, score):
        level = pyro.sample("level", dist.Gamma(X.new_tensor(5.0), 1.0))
        with self.obs_plate():
            pyro.sample("X", dist.Poisson(level * torch.ones_like(X)).to_event(1), obs=X)
            pyro.sample("score", dist.Normal(level, 0.01).expand([len(X)]), obs=score.squeeze(-1))

    def guide(self, X, score):
        pyro.sample("level", dist.Gamma(X.new_tensor(5.0), 1.0))


class MultiModel(BaseModelClass):
    def __init__(self, adata) -> None:
        super().__init__(adata)
        self.module = Multi()

    @classmethod
    def setup_anndata(cls, adata) -> None:
        fields = [
            MuDataLayerField("X", None, mod_key="rna"),
            MuDataNumericalObsField("score", "score", mod_key=None),
        ]
        cls.register(adata, fields, {})


def test_mudata() -> None:
    mudata = pytest.importorskip("mudata")
    rng = np.random.default_rng(2)
    names = [f"cell_{i}" for i in range(10)]
    parts = {
        name: anndata.AnnData(
            rng.poisson(3.0, (10, n)).astype(np.float32),
            obs=pd.DataFrame(index=names),
            var=pd.DataFrame(index=[f"{name}_{i}" for i in range(n)]),
        )
        for name, n in (("rna", 4), ("protein", 2))
    }
    with no_pull_on_update(mudata):
        mdata = mudata.MuData(parts)
    mdata.obs["score"] = rng.normal(size=10)
    MultiModel.setup_anndata(mdata)
    model = MultiModel(mdata)
    before = copy.deepcopy(mdata["rna"].X)
    made = model.simulate(seed=3)
    np.testing.assert_array_equal(mdata["rna"].X, before)
    level = float(truth_of(made)["level"])
    np.testing.assert_allclose(made.obs["score"], level, atol=0.06)
    assert made["rna"].X.shape == (10, 4)
    assert made["protein"].X is None  # nothing reads it
    assert list(made.obs_names) == names
    assert fresh_copy(model, made).summary_stats == model.summary_stats


def test_data_frames_and_dicts() -> None:
    def line(x, y, group):
        slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 10.0).to_event(1))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(slope[group] * x, 0.01), obs=y)

    rng = np.random.default_rng(4)
    frame = pd.DataFrame({
        "x": rng.normal(size=20), "y": rng.normal(size=20), "group": list("abcab" * 4)
    })  # fmt: skip
    from pyrovi.model.custom import from_pyro

    for data in (frame, {name: frame[name].to_numpy() for name in frame}):
        model = from_pyro(line, data)
        made = model.simulate(seed=5)
        slope = truth_of(made)["slope"].to_numpy()
        expected = slope[frame["group"].map({"a": 0, "b": 1, "c": 2})] * frame["x"]
        np.testing.assert_allclose(made.obs["y"], expected, atol=0.06)
        copied = fresh_copy(model, made)
        assert copied.summary_stats == model.summary_stats


def test_prior_moments_over_seeds(several) -> None:
    shifts = np.array([float(truth_of(several.simulate(seed=s))["shift"]) for s in range(40)])
    assert abs(shifts.mean()) < 4 * 100 / np.sqrt(40)
    assert 60 < shifts.std() < 150


def lagged(Z):
    a = pyro.sample("a", dist.Normal(1.0, 0.001))
    with pv.obs_plate():
        before = torch.cat([torch.zeros_like(Z[..., :1]), Z[..., :-1]], -1)
        pyro.sample("Z", dist.Normal(a * before, 0.1).to_event(1), obs=Z)


def other_outcome(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pv.obs_plate():
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        pyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)


@pytest.mark.parametrize("from_", ["prior", "posterior"])
@pytest.mark.parametrize(
    ("story", "data", "reader"),
    [
        (lagged, {"Z": np.random.default_rng(0).normal(size=(10, 5))}, "'Z'"),
        (lagged, {"Z": np.zeros((3, 6))}, "'Z'"),  # a placeholder tells nothing of its order
        (other_outcome, {"x": np.arange(9.0), "y": np.eye(9)[0]}, "'y'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is not trained")
def test_stories_that_read_their_own_data_are_refused(story, data, reader, from_) -> None:
    with pytest.raises(ModelError, match=f"observed site {reader} changes with the observed data"):
        pv.from_pyro(story, data).simulate(seed=1, from_=from_)


def test_an_outcome_may_be_a_regressor_by_the_value_of_its_site() -> None:
    def story(x, y):
        with pv.obs_plate():
            drawn = pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            pyro.sample("y", dist.Normal(2 * drawn, 1e-3), obs=y)

    made = pv.from_pyro(story, {"x": np.arange(9.0), "y": np.arange(9.0)}).simulate(seed=1)
    np.testing.assert_allclose(made.obs["y"], 2 * made.obs["x"], atol=0.01)


def test_the_library_size_of_counts_may_be_read() -> None:
    def story(X):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(4)))
        with pv.obs_plate():
            rate = X.sum(-1, keepdim=True) * share
            pyro.sample("X", dist.Poisson(rate).to_event(1), obs=X)

    counts = np.random.default_rng(0).poisson(300.0, (20, 4)).astype(np.float32)
    made = pv.from_pyro(story, anndata.AnnData(counts)).simulate(seed=1)
    np.testing.assert_allclose(np.asarray(made.X.sum(1)).ravel(), counts.sum(1), rtol=0.15)


def test_outcomes_that_are_mostly_zero_are_written_to_arrays() -> None:
    def story(shock):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pv.obs_plate():
            pyro.sample("shock", dist.Bernoulli(p).expand([30]).to_event(1), obs=shock)

    model = pv.from_pyro(story, {"shock": np.eye(20, 30)})
    made = model.simulate(seed=1, given={"p": 0.1}).obsm["shock"]
    assert isinstance(made, np.ndarray)
    assert made.shape == (20, 30)
    assert made.mean() == pytest.approx(0.1, abs=0.05)
