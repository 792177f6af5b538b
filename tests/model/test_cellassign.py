"""CellAssign: markers by name, exact probabilities of types, and what is recovered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, special, stats

import pyrovi as pv
from pyrovi.errors import DataError, ModelError, NotSetUpError, RegistryError
from pyrovi.model import CellAssign, truth_of

TYPES = ["A", "B", "C", "D"]
GENES = [f"{t.lower()}{i}" for t in TYPES for i in range(4)]
MARKERS = pd.DataFrame(
    {t: [int(g[0] == t.lower() or (g == "a0" and t == "B")) for g in GENES] for t in TYPES},
    index=GENES,
)
"""Four markers of each type; ``a0`` marks two."""
QUICK: dict[str, Any] = {"enable_progress_bar": False, "accelerator": "cpu"}
PROPORTIONS = np.array([0.4, 0.3, 0.2, 0.1])


def make_data(n: int = 240, seed: int = 0, n_other: int = 5) -> anndata.AnnData:
    """Cells of the four types among whose genes the markers are scattered."""
    rng = np.random.default_rng(seed)
    c = rng.choice(4, n, p=PROPORTIONS)
    delta = np.where(MARKERS.to_numpy() > 0, 2.5, 0.0)
    base = np.concatenate([np.full(len(GENES), -0.7), np.full(n_other, 1.0)])
    s = rng.lognormal(0.0, 0.3, n)
    mu = s[:, None] * np.exp(base + np.pad(delta[:, c].T, ((0, 0), (0, n_other))))
    X = rng.poisson(rng.gamma(4.0, mu / 4.0)).astype(np.float32)
    names = [*GENES, *(f"other{i}" for i in range(n_other))]
    order = rng.permutation(len(names))
    obs = pd.DataFrame(
        {
            "type": np.array(TYPES)[c],
            "s": s,
            "batch": rng.choice(["x", "y", "z"], n),
            "sex": rng.choice(["f", "m"], n),
            "age": rng.normal(size=n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    made = anndata.AnnData(X[:, order], obs=obs, var=pd.DataFrame(index=np.array(names)[order]))
    made.layers["counts"] = sparse.csr_matrix(made.X)
    return made


def make_model(adata: Any = None, epochs: int = 0, setup: Any = None, **options: Any) -> CellAssign:
    adata = make_data() if adata is None else adata
    CellAssign.setup_anndata(adata, **(setup or {}))
    model = CellAssign(adata, MARKERS, **options)
    if epochs:
        model.train(epochs, early_stopping=False, lr=0.1, **QUICK)
    return model


@pytest.fixture(scope="module")
def trained() -> CellAssign:
    return make_model(epochs=60)


# ---------------------------------------------------------------------- what it finds


def test_types_are_found_under_the_data_s_names(trained: CellAssign) -> None:
    found = trained.predict(num_samples=20)
    adata = trained.adata
    assert list(found.index) == list(adata.obs_names)
    assert list(found.columns) == TYPES
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    right = found.to_numpy()[np.arange(adata.n_obs), found.columns.get_indexer(adata.obs["type"])]
    assert (found.idxmax(axis=1) == adata.obs["type"]).mean() > 0.95
    assert -np.log(right).mean() < 0.15
    some = trained.predict(indices=[5, 2], num_samples=20)
    assert list(some.index) == ["cell5", "cell2"]


def test_probabilities_are_bayes_rule(trained: CellAssign) -> None:
    """One draw of the parameters, and the probabilities given them in NumPy."""
    found = trained.predict(num_samples=1, seed=4)
    q = trained.sample_posterior(["pi", "delta", "beta_0", "log_a"], num_samples=1, seed=4)
    pi, delta, beta_0, log_a = (np.squeeze(q[k].to_numpy()).astype(float) for k in q.data_vars)
    adata = trained.adata
    total = adata.X.sum(1)
    log_s = np.log(total / total.mean())
    x = adata[:, GENES].X
    log_p = np.zeros((adata.n_obs, 4))
    centres = np.linspace(0, x.max(), 10)
    for k in range(4):
        mu = np.exp(log_s[:, None] + beta_0 + delta[k])
        b = 1 / (2 * centres[1] ** 2)
        distance = np.minimum(mu, x.max())[..., None] - centres
        phi = (np.exp(log_a) * np.exp(-b * distance**2)).sum(-1)
        log_p[:, k] = np.log(pi[k]) + stats.nbinom(phi, phi / (phi + mu)).logpmf(x).sum(1)
    np.testing.assert_allclose(found, special.softmax(log_p, 1), atol=2e-3)


@pytest.mark.slow
def test_parameters_are_recovered() -> None:
    """Coverage of 90 % intervals over data sets from the model's own story."""
    shell = make_data(500, n_other=0)
    CellAssign.setup_anndata(shell, size_factor_key="s")
    story = CellAssign(shell, MARKERS, max_count=80.0, n_basis=4)
    inside: dict[str, list[Any]] = {}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        given = {"pi": PROPORTIONS, "delta_bar": 1.1, "sigma": 0.2}
        given |= {"beta_0": rng.normal(-0.7, 0.5, len(GENES)), "log_a": np.full(4, 0.7)}
        simulated = story.simulate(seed, given=given)
        model = story.fresh_copy(simulated, seed=seed)
        assert model.module.max_count == 80.0
        model.train(**RECOVERY, **QUICK)
        truth = truth_of(simulated)
        kinds = model.predict(num_samples=20).to_numpy().argmax(1)
        assert (kinds == truth["c"].to_numpy()).mean() > 0.98
        draws = model.sample_posterior(["pi", "log_delta", "beta_0"], num_samples=400)
        for name, values in draws.items():
            low, high = np.quantile(values, [0.05, 0.95], axis=values.dims.index("draw"))
            true = truth[name].to_numpy()
            inside.setdefault(str(name), []).append((low <= true) & (true <= high))
    coverage = {name: float(np.mean(hits)) for name, hits in inside.items()}
    print(coverage)
    assert all(0.8 <= coverage[name] <= 0.97 for name in ("log_delta", "beta_0")), coverage


RECOVERY: dict[str, Any] = {
    "max_epochs": 1500, "batch_size": None, "train_size": 1.0, "early_stopping": False,
    "plan_kwargs": {"lr": 0.2, "lr_decay": 0.005, "antithetic": True},
}  # fmt: skip
"""Covariances take many steps to grow: parameters are known long before their uncertainty."""


# ---------------------------------------------------------------------- data


def test_order_of_genes_and_other_genes_do_not_matter() -> None:
    adata = make_data(80)
    shuffled = adata[:, np.random.default_rng(1).permutation(adata.n_vars)].copy()
    fewer = adata[:, GENES].copy()
    setup = {"size_factor_key": "s"}
    tables = [
        make_model(data, epochs=3, setup=setup).predict(num_samples=5)
        for data in (adata, shuffled, fewer)
    ]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])


def test_order_of_the_marker_table_is_the_order_of_results() -> None:
    adata = make_data(80)
    CellAssign.setup_anndata(adata)
    model = CellAssign(adata, MARKERS.iloc[::-1, [2, 0, 3, 1]])
    assert list(model.var_names) == GENES[::-1]
    delta = model.sample_posterior("delta", num_samples=2)["delta"]
    assert list(delta["cell_type"].values) == ["C", "A", "D", "B"]
    assert list(delta["var"].values) == GENES[::-1]
    assert (delta.sel(cell_type="B", var="b2") > 2).all()
    assert (delta.sel(cell_type="B", var="a0") > 2).all()
    assert (delta.sel(cell_type="B", var="a1") == 0).all()
    markers = model.sample_posterior("log_delta", num_samples=2)["marker"].values
    assert "a0 in B" in markers
    assert len(markers) == 17
    assert list(model.predict(num_samples=2).columns) == ["C", "A", "D", "B"]


def test_new_data_in_any_order(trained: CellAssign) -> None:
    adata = trained.adata
    whole = trained.predict(num_samples=5)
    other = adata[[7, 3, 11], adata.var_names[::-1]].copy()
    pd.testing.assert_frame_equal(
        trained.predict(other, num_samples=5), whole.iloc[[7, 3, 11]], atol=1e-5
    )
    with pytest.raises(RegistryError, match=r"lack 1 of the 16 variables .*'b1'"):
        trained.predict(adata[:, adata.var_names != "b1"].copy())
    ones, var = np.ones((adata.n_obs, 1), np.float32), pd.DataFrame(index=["new"])
    more = anndata.concat([adata, anndata.AnnData(ones, obs=adata.obs[[]], var=var)], axis=1)
    with pytest.raises(RegistryError, match=r"extra 1: 'new'.*sums of adata\.X are of all"):
        trained.predict(more)


def test_size_factors_are_given_or_relative_totals() -> None:
    adata = make_data(60)
    model = make_model(adata)
    assert model.module.mean_size_factor.item() == pytest.approx(adata.X.sum(1).mean())
    total = adata.X.sum(1)
    expected = model.predict(num_samples=3)
    for scale in (1.0, 1000.0):  # only ratios matter
        adata.obs["relative"] = scale * total / total.mean()
        given = make_model(adata, setup={"size_factor_key": "relative"})
        pd.testing.assert_frame_equal(given.predict(num_samples=3), expected, atol=1e-5)
    adata.obs["relative"] *= -1
    with pytest.raises(DataError, match="60 size factors that are not positive"):
        CellAssign.setup_anndata(adata, size_factor_key="relative")


@pytest.mark.parametrize("container", ["sparse", "backed"])
def test_containers_give_the_same(container: str, tmp_path: Path) -> None:
    adata = make_data(60)
    setup = {"layer": "counts"}
    expected = make_model(adata.copy()).predict(num_samples=3)
    if container == "backed":
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        setup = {}
    pd.testing.assert_frame_equal(make_model(adata, setup=setup).predict(num_samples=3), expected)


def test_covariates_are_named_and_take_effect() -> None:
    setup = {
        "batch_key": "batch",
        "categorical_covariate_keys": ["sex"],
        "continuous_covariate_keys": ["age"],
    }
    adata = make_data(200)
    adata.X[np.ix_(adata.obs["batch"] == "y", adata.var_names == "a1")] *= 6
    model = make_model(adata, epochs=80, setup=setup)
    beta = model.sample_posterior("beta", reduce="mean", num_samples=50)["beta"].to_pandas()
    assert list(beta.index) == ["batch: y", "batch: z", "sex: m", "age"]
    assert beta.loc["batch: y", "a1"] > 0.9
    assert beta.drop(columns="a1").abs().to_numpy().mean() < 0.4
    assert "beta" not in make_model(adata).sites
    adata.obs["batch"] = "new"
    with pytest.raises(RegistryError, match="'new'"):
        model.predict(adata)


# ---------------------------------------------------------------------- marker tables


def test_marker_tables_from_lists_and_files(tmp_path: Path) -> None:
    adata = make_data(40)
    CellAssign.setup_anndata(adata)
    listed = {t: list(MARKERS.index[MARKERS[t] > 0]) for t in TYPES}
    MARKERS.to_csv(tmp_path / "markers.csv")
    file = str(tmp_path / "markers.csv")
    for table in (listed, file, MARKERS.astype(bool), MARKERS.astype(float)):
        model = CellAssign(adata, table)
        pd.testing.assert_frame_equal(model.cell_type_markers, MARKERS)
    (tmp_path / "markers.csv").unlink()
    model = CellAssign(adata, listed)
    model.save(tmp_path / "model")
    pd.testing.assert_frame_equal(CellAssign.load(tmp_path / "model").cell_type_markers, MARKERS)


def test_a_type_without_markers_is_all_other_cells() -> None:
    adata = make_data(300)
    CellAssign.setup_anndata(adata)
    table = MARKERS.loc[MARKERS[["A", "B", "C"]].any(axis=1), ["A", "B", "C"]].assign(other=0)
    model = CellAssign(adata, table)
    model.train(60, early_stopping=False, lr=0.1, **QUICK)
    found = model.predict(num_samples=10).idxmax(axis=1)
    assert (found == adata.obs["type"].replace("D", "other")).mean() > 0.93


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to_numpy(), "Expected a pandas.DataFrame of genes"),
        (lambda t: {"A": "a0", "B": "b0"}, "Expected a pandas.DataFrame of genes"),
        (lambda t: "no_such_file.csv", "There is no file 'no_such_file.csv'"),
        (lambda t: None, "needs cell_type_markers"),
        (lambda t: t.replace(1, 2), "holds 2 for gene 'a0' and cell type 'A'"),
        (lambda t: t.astype(float).mask(t == 1), "holds .*nan.* for gene 'a0'"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "names genes more than once: 'a0'"),
        (lambda t: t.set_axis(["A", "A", "C", "D"], axis=1), "cell types more than once: 'A'"),
        (lambda t: t.assign(E=t["A"]), "the same markers as another: 'A', 'E'"),
        (lambda t: t.assign(E=0, F=0), "the same markers as another: 'E', 'F'"),
        (lambda t: t[["A", "B", "C"]], "mark no cell type: 'd0', 'd1', 'd2', 'd3'"),
        (lambda t: t[["A"]][:4], "4 genes and 1 cell types"),
    ],
)
def test_tables_that_cannot_be_used(change: Any, message: str) -> None:
    adata = make_data(30)
    CellAssign.setup_anndata(adata)
    with pytest.raises(DataError, match=message):
        CellAssign(adata, change(MARKERS))


def test_data_that_cannot_be_used() -> None:
    adata = make_data(30)
    with pytest.raises(NotSetUpError, match="CellAssign"):
        CellAssign(adata, MARKERS)
    CellAssign.setup_anndata(adata)
    with pytest.raises(RegistryError, match=r"lack 1 of the 17 variables .*'absent'"):
        CellAssign(adata, pd.concat([MARKERS, MARKERS.iloc[:1].set_axis(["absent"])]))
    with pytest.raises(ModelError, match="max_count must be a positive number, got 0"):
        CellAssign(adata, MARKERS, max_count=0)
    adata.X[:, adata.var_names.isin(GENES)] = 0
    with pytest.raises(DataError, match="marker genes have no counts at all"):
        CellAssign(adata, MARKERS)
    adata.X[0] = 0
    with pytest.raises(DataError, match="without a single count: 'cell0'"):
        CellAssign.setup_anndata(adata)


# ---------------------------------------------------------------------- the rest of the package


def test_saved_and_loaded(trained: CellAssign, tmp_path: Path) -> None:
    trained.save(tmp_path / "model")
    loaded = pv.load(tmp_path / "model", trained.adata)
    assert isinstance(loaded, CellAssign)
    pd.testing.assert_frame_equal(
        loaded.predict(num_samples=5), trained.predict(num_samples=5), atol=1e-6
    )
    alone = CellAssign.load(tmp_path / "model")
    pd.testing.assert_frame_equal(
        alone.predict(trained.adata, num_samples=5), trained.predict(num_samples=5), atol=1e-6
    )
    assert alone.module.max_count == trained.module.max_count
    before = {name: p.detach().clone() for name, p in loaded.module.named_parameters()}
    loaded.train(2, **QUICK)
    assert all(not torch.equal(p, before[n]) for n, p in loaded.module.named_parameters())


def test_a_registry_needs_its_own_genes_and_the_largest_count(trained: CellAssign) -> None:
    made = CellAssign(trained.registry, MARKERS, max_count=12.0)
    assert made.module.max_count == 12.0
    with pytest.raises(ModelError, match="max_count= has to be given"):
        CellAssign(trained.registry, MARKERS)
    with pytest.raises(RegistryError, match="other genes than those of the marker table"):
        CellAssign(trained.registry, MARKERS.iloc[1:], max_count=12.0)


def test_copies_keep_the_story(trained: CellAssign) -> None:
    other = make_data(50, seed=3)
    copy = trained.fresh_copy(other)
    assert copy.module.max_count == trained.module.max_count
    assert list(copy.predict(num_samples=2).index) == list(other.obs_names)


def test_simulated_data_have_the_markers_and_the_totals(trained: CellAssign) -> None:
    simulated = trained.simulate(1, from_="posterior", sites=["c", "pi", "delta"])
    assert list(simulated.var_names) == GENES
    assert truth_of(simulated)["delta"].shape == (4, 16)
    copy = trained.fresh_copy(simulated)
    assert copy.module.mean_size_factor.item() == pytest.approx(
        trained.module.mean_size_factor.item()
    )
    kinds = trained.predict(simulated, num_samples=10).to_numpy().argmax(1)
    assert (kinds == truth_of(simulated)["c"].to_numpy()).mean() > 0.9


def test_workflow(trained: CellAssign) -> None:
    idata = trained.to_arviz(["pi", "log_delta", "c"], num_samples=10)
    assert list(idata.posterior["pi"].coords["cell_type"].values) == TYPES
    assert "b2 in B" in idata.posterior.coords["marker"].values
    summary = trained.summary("pi", num_samples=100)
    shares = trained.adata.obs["type"].value_counts(normalize=True)[TYPES]
    error = summary["mean"].to_numpy() - shares
    assert error.abs().max() < 0.06
    drawn = trained.posterior_predictive("X", num_samples=20, reduce="mean")["X"]
    assert drawn.shape == (trained.adata.n_obs, 16)
    observed = trained.adata[:, GENES].X.mean(0)
    np.testing.assert_allclose(drawn.mean("obs"), observed, rtol=0.35)
    assert np.isfinite(trained.get_elbo(num_samples=5))
    assert trained.get_elbo(num_samples=5) > make_model().get_elbo(num_samples=5)


def test_other_methods_take_their_own_options() -> None:
    model = make_model(make_data(60))
    model.train(method="map", max_iterations=300)
    assert (model.predict().idxmax(axis=1) == model.adata.obs["type"]).mean() > 0.9
    with pytest.raises(pv.errors.TrainingError, match="'lr'"):
        model.train(method="map", lr=0.1)


def test_defaults_of_training() -> None:
    model = make_model(make_data(60))
    model.train(2, **QUICK)
    assert len(model.history["elbo_train"]) == 2
    assert model._training is not None
    assert model._training.options["batch_size"] == 1024
    model.train(1, lr=0.2, **QUICK)
    assert model.history["lr-Adam"].iloc[-1, 0] == pytest.approx(0.2)
    whole = make_model(make_data(60))
    whole.train(1, train_size=1.0, **QUICK)  # nothing is held out: there is nothing to stop by
    assert len(whole.train_indices) == 60
