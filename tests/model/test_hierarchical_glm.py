"""HierarchicalGLM: recovers what was simulated, decides at its rates, and says what it cannot."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tests.model.regression_data import regression, simulated

import pyrovi as pv
from pyrovi.criticism.decisions import decide
from pyrovi.errors import DataError, MissingKeyError, ModelError, RegistryError
from pyrovi.model import HierarchicalGLM
from pyrovi.model.effects import effect_table
from pyrovi.model.glm_start import start_near_posterior

STEPS = 700


@pytest.fixture(scope="module")
def fitted() -> tuple[HierarchicalGLM, dict[str, np.ndarray]]:
    adata, truth = simulated()
    return regression(adata, epochs=STEPS), truth


@pytest.fixture(scope="module")
def small() -> HierarchicalGLM:
    """Few genes, few steps: for what does not depend on how good a fit is."""
    adata, _ = simulated(n_genes=6, n_donors=4, n_cells=12)
    return regression(adata, epochs=20, batch_key="lane")


@pytest.fixture(scope="module")
def other() -> tuple[HierarchicalGLM, dict[str, np.ndarray]]:
    """A fit of other data of the same kind."""
    adata, truth = simulated(seed=1)
    return regression(adata, epochs=STEPS), truth


def test_recovers_what_was_simulated(fitted, other) -> None:
    coverage: dict[str, list[float]] = {}
    for model, truth in (fitted, other):
        draws = model.sample_posterior(list(truth), num_samples=1000)
        for site, true in truth.items():
            low, high = np.quantile(draws[site].values, [0.05, 0.95], axis=0)
            coverage.setdefault(site, []).append(((low <= true) & (true <= high)).mean())
            estimate = np.median(draws[site].values, axis=0)
            least = 0.4 if site == "sigma" else 0.6  # ten donors tell a variance vaguely
            assert stats.spearmanr(np.ravel(estimate), np.ravel(true))[0] > least, site
    means = {site: np.mean(values) for site, values in coverage.items()}
    assert all(0.8 <= mean <= 0.97 for mean in means.values()), means
    assert draws["u"].dims == ("draw", "donor", "var")
    assert list(draws["donor"].values) == [f"d{i}" for i in range(10)]
    assert list(draws["coefficient"].values) == ["condition[stim]"]


def test_false_sign_rates_are_calibrated(fitted, other) -> None:
    """Of genes with a false sign rate of about p, about p have the other sign."""
    rates, wrong = [], []
    for model, truth in (fitted, other):
        effects = model.get_effects(delta=0)
        rates.append(effects["lfsr"].to_numpy())
        wrong.append(np.sign(truth["beta"][0]) != effects["direction"].to_numpy())
    rate, is_wrong = np.concatenate(rates), np.concatenate(wrong)
    error = np.sqrt((rate * (1 - rate)).sum()) / len(rate)
    assert abs(is_wrong.mean() - rate.mean()) < 3 * error
    unsure = rate > np.median(rate)
    assert is_wrong[unsure].mean() > is_wrong[~unsure].mean()


def test_effects_are_those_of_decide(fitted) -> None:
    model, _ = fitted
    effects = model.get_effects(delta=0.2, num_samples=500, fdr=0.1)
    decided = decide(model, "beta", rope=0.2 * np.log(2), num_samples=500, fdr=0.1)
    np.testing.assert_allclose(effects["mean"] * np.log(2), decided["mean"], rtol=1e-4)
    np.testing.assert_allclose(effects["p_effect"], decided["probability"])
    np.testing.assert_array_equal(effects["called"], decided["called"])
    assert list(effects.index) == list(model.var_names)
    assert (effects["lower"] < effects["mean"]).all()
    assert (effects["contrast"] == "stim vs ctrl").all()


def test_options_of_effects(fitted) -> None:
    model, _ = fitted
    default, strict = model.get_effects(), model.get_effects(delta=1.0, fdr=0.01)
    assert default["called"].sum() > strict["called"].sum()
    narrow = model.get_effects(probability=0.5)
    assert (narrow["upper"] - narrow["lower"] < default["upper"] - default["lower"]).all()
    turned = model.get_effects(("ctrl", "stim"))
    np.testing.assert_allclose(turned["mean"], -default["mean"], rtol=1e-6)
    np.testing.assert_array_equal(turned["called"], default["called"])
    pd.testing.assert_frame_equal(model.get_effects(seed=3), model.get_effects(seed=3))
    named = model.get_effects(coefficients="condition[stim]")
    np.testing.assert_array_equal(named["mean"], default["mean"])
    for wrong in ({"delta": -1}, {"delta": np.nan}, {"probability": 1.0}, {"fdr": 2.0},
                  {"contrast": ("stim",) * 2},
                  {"contrast": ("stim", "ctrl"), "coefficients": "condition[stim]"}):  # fmt: skip
        with pytest.raises(ModelError):
            model.get_effects(**wrong)
    with pytest.raises(MissingKeyError, match="'x' is no level"):
        model.get_effects(("x", "ctrl"))
    with pytest.raises(MissingKeyError, match="no coefficient"):
        model.get_effects(coefficients="age")


def test_effect_table_by_hand() -> None:
    draws = np.array([[1.0, -0.1], [2.0, 0.3], [-0.5, -0.2], [3.0, -0.4]])
    table = effect_table(draws, delta=0.25, fdr=0.3, probability=0.5)
    assert list(table["p_direction"]) == [0.75, 0.75]
    assert list(table["lfsr"]) == [0.25, 0.25]
    assert list(table["p_effect"]) == [0.75, 0.25]
    assert list(table["direction"]) == [1, -1]
    assert list(table["called"]) == [True, False]


def test_donor_effects(fitted) -> None:
    model, truth = fitted
    table = model.donor_effects()
    assert list(table["donor"].unique()) == [f"d{i}" for i in range(10)]
    means = table["mean"].to_numpy().reshape(10, -1)
    assert np.corrcoef(means.ravel(), truth["u"].ravel())[0, 1] > 0.6
    right = np.sign(truth["u"]).ravel() == table["direction"]
    assert right[table["called"]].mean() > 0.9


def test_shrinkage(fitted) -> None:
    model, truth = fitted
    alone = model.no_pooling_effects()["condition[stim]"]
    counts, donor = model.adata.X, model.adata.obs["donor"]
    rates = np.stack(
        [
            np.log2(
                (counts[(donor == d).to_numpy()].sum(0) + 0.5)
                / model.adata.obs["size"][donor == d].sum()
            )
            for d in sorted(donor.unique())
        ]
    )
    np.testing.assert_allclose(alone, rates[5:].mean(0) - rates[:5].mean(0), atol=1e-5)
    pooled = model.get_effects()["mean"]
    true = truth["beta"][0] / np.log(2)
    assert ((pooled - true) ** 2).mean() < ((alone - true) ** 2).mean()
    assert (pooled.abs() < alone.abs()).mean() > 0.8
    axes = model.plot_shrinkage().axes[0]
    np.testing.assert_allclose(axes.collections[0].get_offsets()[:, 0], alone)
    with pytest.raises(MissingKeyError, match="no coefficient"):
        model.plot_shrinkage("x")


def test_no_pooling_needs_as_many_sums_as_effects(small) -> None:
    assert list(small.no_pooling_effects()) == ["condition[stim]", "lane[l1]"]
    adata, _ = simulated(n_genes=3, n_donors=3, n_cells=8)
    adata.obs["weight"] = np.random.default_rng(0).normal(size=adata.n_obs)
    adata.obs["height"] = np.random.default_rng(1).normal(size=adata.n_obs)
    model = regression(adata, continuous_covariate_keys=["weight", "height"])
    with pytest.raises(ModelError, match=r"3 donors .* too few to estimate 3 effects"):
        model.no_pooling_effects()


@pytest.mark.slow
def test_svi_agrees_with_nuts() -> None:
    adata, _ = simulated(n_genes=6, n_donors=6, n_cells=25, seed=2)
    model = regression(adata, epochs=800)
    sites = ["alpha", "beta", "u"]
    svi = model.sample_posterior(sites, num_samples=2000)
    model.train(
        method="nuts", num_chains=2, num_warmup=200, num_samples=300, target_accept=0.9,
        enable_progress_bar=False,
    )  # fmt: skip
    nuts = model.sample_posterior(sites)
    for site in sites:
        sd = nuts[site].values.std(0)
        shift = (svi[site].values.mean(0) - nuts[site].values.mean(0)) / sd
        assert np.sqrt((shift**2).mean()) < 0.15, site
        assert 0.85 < np.median(svi[site].values.std(0) / sd) < 1.15, site


def test_order_of_genes_and_donors_does_not_matter() -> None:
    adata, _ = simulated(n_genes=10, n_donors=6, n_cells=15)
    rng = np.random.default_rng(0)
    genes, cells = rng.permutation(adata.n_vars), rng.permutation(adata.n_obs)
    other = adata[cells][:, genes].copy()
    names = {d: f"d{9 - int(d[1:])}" for d in adata.obs["donor"].unique()}
    other.obs["donor"] = other.obs["donor"].map(names)  # another order of the categories
    first, second = (regression(a, epochs=200).get_effects() for a in (adata, other))
    second = second.loc[first.index]
    sd = first["sd"].to_numpy()
    assert np.abs(first["mean"] - second["mean"]).max() < 0.25 * sd.max()
    np.testing.assert_allclose(first["sd"], second["sd"], rtol=0.15)


def test_saved_and_loaded_it_is_the_same_and_trains_on(small, tmp_path: Path) -> None:
    small.save(tmp_path / "model")
    loaded = HierarchicalGLM.load(tmp_path / "model", adata=small.adata)
    for method in ("get_effects", "donor_effects", "no_pooling_effects"):
        pd.testing.assert_frame_equal(getattr(small, method)(), getattr(loaded, method)())
    before = {k: v.clone() for k, v in loaded.module.named_parameters()}
    loaded.train(max_epochs=3, enable_progress_bar=False)
    for name, value in loaded.module.named_parameters():
        assert not value.equal(before[name]), name


def test_names_of_coefficients_and_other_references() -> None:
    adata, _ = simulated(n_genes=4, n_donors=6, n_cells=8, crossed=True)
    adata.obs["weight"] = np.random.default_rng(0).normal(size=adata.n_obs)
    model = regression(
        adata, reference="stim", batch_key="lane", continuous_covariate_keys=["weight"]
    )
    assert model.coefficient_names == ["condition[ctrl]", "lane[l1]", "weight"]
    assert model.reference == "stim"
    model.train(max_epochs=80, batch_size=None, enable_progress_bar=False)
    effects = model.get_effects()
    assert (effects["contrast"] == "ctrl vs stim").all()
    plain = regression(adata, epochs=80).get_effects()
    np.testing.assert_allclose(effects["mean"], -plain["mean"], atol=0.35)
    assert len(model.get_effects(coefficients=["lane[l1]", "weight"])) == 8
    with pytest.raises(MissingKeyError, match="reference='x'"):
        regression(adata, reference="x")


def test_a_normal_prior_pulls_large_effects_further() -> None:
    adata, truth = simulated(n_genes=15, n_donors=6, n_cells=20, tau=0.02)
    rows = (adata.obs["condition"] == "stim").to_numpy()
    gene = int(np.argmax(truth["alpha"]))
    adata.X[rows, gene] *= 6
    means = []
    for effect_df in (3.0, None):
        regression(adata)
        model = HierarchicalGLM(adata, effect_df=effect_df)
        model.train(max_epochs=250, batch_size=None, enable_progress_bar=False)
        means.append(model.get_effects()["mean"].iloc[gene])
    assert means[0] > means[1] + 0.1


def test_new_donors_come_from_the_distribution_of_donors(fitted) -> None:
    model, _ = fitted
    new = model.adata[:40].copy()
    new.obs["donor"] = ["new"] * 20 + ["d0"] * 20
    mu = model.posterior_predictive("mu", adata=new, new_levels=True, num_samples=400)["mu"]
    logs = np.log(mu.values)
    unseen, seen = logs[:, :20].var(0).mean(0), logs[:, 20:].var(0).mean(0)
    sigma = model.sample_posterior("sigma", num_samples=400)["sigma"].values
    known = model.sample_posterior("u", num_samples=400)["u"].values[:, 0].var(0)
    assert np.median(unseen) > 1.5 * np.median(seen)
    expected = (sigma**2).mean(0).mean()
    assert unseen.mean() - (seen.mean() - known.mean()) == pytest.approx(expected, rel=0.5)
    with pytest.raises(ModelError, match="new data"):
        model.posterior_predictive(new_levels=True)
    new.obs["condition"] = "other"
    with pytest.raises(ModelError, match="n_condition=3"):
        model.posterior_predictive("mu", adata=new, new_levels=True)


def test_new_data_that_do_not_fit(small) -> None:
    data = small.adata
    expected = small.get_elbo(adata=data.copy())
    shuffled = data[::-1].copy()  # another order of cells: the same bound
    assert small.get_elbo(adata=shuffled) == pytest.approx(expected, rel=1e-4)
    for genes, named in (
        ([1, 0, 2, 3, 4, 5], "another order"),
        ([0, 1, 2, 3, 4], "missing 1: 'g5'"),
    ):
        with pytest.raises(RegistryError, match=named):
            small.get_elbo(adata=data[:, genes].copy())
    for column in ("donor", "condition", "lane"):
        unseen = data.copy()
        unseen.obs[column] = unseen.obs[column].astype(str).replace(data.obs[column].iloc[0], "new")
        with pytest.raises(RegistryError, match="new"):
            small.get_elbo(adata=unseen)
        del unseen.obs[column]
        with pytest.raises(MissingKeyError, match=column):
            small.get_elbo(adata=unseen)
    unsized = data.copy()
    unsized.obs["size"] = -1.0
    with pytest.raises(DataError, match="not positive"):
        regression(unsized)


def test_sums_over_the_cells_of_donors() -> None:
    """Observations that are donors, without donor effects: as with them, from all cells."""
    adata, truth = simulated(n_genes=60, n_donors=12, n_cells=30)
    by = adata.obs.groupby("donor", observed=True)
    rows = list(by.indices.values())
    sums = anndata.AnnData(
        np.stack([adata.X[r].sum(0) for r in rows]),
        pd.DataFrame(
            {"condition": by["condition"].first(), "size": by["size"].sum()}, index=list(by.indices)
        ),
        adata.var,
    )
    model = regression(sums, donor_key=None, epochs=300)
    assert "u" not in model.sites
    effects = model.get_effects(probability=0.9)
    true = truth["beta"][0] / np.log(2)
    assert 0.8 <= ((effects["lower"] <= true) & (true <= effects["upper"])).mean() <= 0.99
    assert np.corrcoef(effects["mean"], true)[0, 1] > 0.8
    with pytest.raises(ModelError, match="without donors"):
        model.donor_effects()


def test_simulates_its_own_data(small) -> None:
    data = small.simulate(seed=1, given={"mu_alpha": 0.0, "sigma_alpha": 0.5})
    copy = small.fresh_copy(data)
    copy.train(max_epochs=2, enable_progress_bar=False)
    assert np.isfinite(copy.get_elbo())


def test_totals_are_the_default_size_factors_and_only_ratios_count() -> None:
    adata, _ = simulated(n_genes=8, n_donors=4, n_cells=10)
    adata.obs["total"], adata.obs["ten"] = adata.X.sum(1), adata.X.sum(1) * 10.0
    tables = [
        regression(adata, size_factor_key=key, epochs=30).get_effects()
        for key in (None, "total", "ten")
    ]
    for table in tables[1:]:
        np.testing.assert_allclose(table["mean"], tables[0]["mean"], atol=1e-3)


def test_the_start_looks_at_training_cells_alone() -> None:
    adata, _ = simulated(n_genes=5, n_donors=4, n_cells=20)
    model, other = regression(adata), None
    half = np.arange(0, adata.n_obs, 2)
    changed = adata.copy()
    changed.X[1::2] += 7
    other = regression(changed)
    for one in (model, other):
        start_near_posterior(one, half)
    first, second = (m.module.state_dict() for m in (model, other))
    for name in ("shared_loc", "genes_origin", "genes_base"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5, atol=1e-6)


def test_designs_that_tell_nothing_are_refused() -> None:
    adata, _ = simulated(n_genes=4, n_donors=4, n_cells=8)
    with pytest.raises(DataError, match="no condition has two donors"):
        regression(adata[adata.obs["donor"].isin(["d0", "d3"])].copy())
    regression(adata[adata.obs["donor"].isin(["d0", "d1", "d3"])].copy())
    adata.obs["day"] = np.where(adata.obs["condition"] == "stim", "two", "one")
    with pytest.raises(DataError, match=r"condition\[stim\], day\[two\] cannot be told apart"):
        regression(adata, batch_key="day")
    with pytest.raises(DataError, match=r"condition\[stim\] is named twice"):
        regression(adata, batch_key="condition")
    adata.obs["same"] = 1.5
    with pytest.raises(DataError, match=r"'same' has the same value 1\.5"):
        regression(adata, continuous_covariate_keys=["same"])
    adata.obs["none"] = 0.0
    with pytest.raises(DataError, match="not positive"):
        regression(adata, size_factor_key="none")
    with pytest.raises(ModelError, match="1 level"):
        regression(adata[adata.obs["condition"] == "ctrl"].copy())
    with pytest.raises(MissingKeyError, match="nowhere"):
        regression(adata, donor_key="nowhere")


def test_one_donor_in_both_conditions() -> None:
    adata, _ = simulated(n_genes=4, n_donors=2, n_cells=20, crossed=True)
    model = regression(adata, epochs=20)
    assert np.isfinite(model.get_effects()["mean"]).all()


def test_options_of_training(small) -> None:
    with pytest.raises(pv.errors.TrainingError, match="nonsense"):
        small.train(plan_kwargs={"nonsense": 1})
    for method in ("map", "laplace"):
        with pytest.raises(pv.errors.TrainingError, match=f"'{method}' finds the mode"):
            small.train(method=method)
    adata, _ = simulated(n_genes=4, n_donors=4, n_cells=10)
    model = regression(adata)
    model.train(max_epochs=2, train_size=0.5, plan_kwargs={"lr": 0.01}, enable_progress_bar=False)
    assert len(model.validation_indices) == 20
    assert len(model.history["elbo_validation"]) == 2
    joined = model._training.plan_kwargs
    assert (joined["lr"], joined["optim"].__name__) == (0.01, "ScaledAdam")
    model.train(max_epochs=1, plan_kwargs={"optim": torch.optim.Adam}, enable_progress_bar=False)
    assert len(model.history["elbo_train"]) == 3
