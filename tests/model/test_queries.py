"""Queries: rows of any selection are the rows of the whole, and the data stay as they were."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from scipy import sparse
from tests.model.samples import (
    QUICK,
    assert_unchanged,
    make_data,
    make_model,
    same_state,
    snapshot,
    state,
)

from pyrovi.model import SCVI
from pyrovi.model.setup import transferred_manager


@pytest.fixture(scope="module", params=[None, "csr_matrix"])
def model(request: pytest.FixtureRequest) -> SCVI:
    return make_model(make_data(sparse_format=request.param), encode_covariates=True)


def moments(model: SCVI, adata: Any = None, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    """What needs no draws."""
    result: Any = model.get_latent_representation(adata, return_dist=True, **kwargs)
    return result


def assert_rows(found: tuple[np.ndarray, ...], whole: tuple[np.ndarray, ...], rows: Any) -> None:
    for one, all_ in zip(found, whole, strict=True):
        np.testing.assert_allclose(one, all_[rows], rtol=1e-5, atol=1e-6)


ROWS: dict[str, Any] = {
    "slice": slice(3, 20),
    "reversed": np.arange(60)[::-1],
    "permuted": np.random.default_rng(0).permutation(60),
    "mask": np.arange(60) % 7 == 0,
    "one": [17],
}


@pytest.mark.parametrize("rows", list(ROWS))
@pytest.mark.parametrize("kind", ["view", "copy", "indices", "view of a copy", "foreign copy"])
def test_rows_of_any_selection(model: SCVI, rows: str, kind: str) -> None:
    adata, which = model.adata, ROWS[rows]
    before = snapshot(adata)
    whole = moments(model)
    if kind == "indices":
        positions = np.arange(60)[which]
        assert_rows(moments(model, indices=positions), whole, which)
        if rows == "mask":
            assert_rows(moments(model, indices=which), whole, which)
        return
    part = {
        "view": lambda: adata[which],
        "copy": lambda: adata[which].copy(),
        "view of a copy": lambda: adata.copy()[which],
        "foreign copy": lambda: _without_id(adata[which].copy()),
    }[kind]()
    then = snapshot(part)
    assert_rows(moments(model, part), whole, which)
    assert_unchanged(part, then)
    assert_unchanged(adata, before)
    assert part.is_view == kind.startswith("view")
    again = adata[which]  # indices of a selection count within it
    assert_rows(moments(model, again, indices=[0]), moments(model, again), [0])


def _without_id(adata: anndata.AnnData) -> anndata.AnnData:
    adata.uns.clear()
    return adata


FORMATS: dict[str, Callable[[Any], Any]] = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "dense": lambda x: x,
    "fortran": np.asfortranarray,
    "int64": lambda x: x.astype(np.int64),
    "float64": lambda x: x.astype(np.float64),
    "uint16": lambda x: x.astype(np.uint16),
}


@pytest.mark.parametrize("name", list(FORMATS))
def test_the_format_of_the_query_does_not_matter(model: SCVI, name: str) -> None:
    dense = model.adata.X.toarray() if sparse.issparse(model.adata.X) else model.adata.X
    other = model.adata.copy()
    other.X = FORMATS[name](dense)
    before = snapshot(other)
    for found, expected in zip(moments(model, other), moments(model), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert_unchanged(other, before)


def test_a_query_on_disk(model: SCVI, tmp_path: Path) -> None:
    model.adata.write_h5ad(tmp_path / "a.h5ad")
    bytes_ = (tmp_path / "a.h5ad").read_bytes()
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    whole = moments(model)
    assert_rows(moments(model, backed), whole, slice(None))
    assert_rows(moments(model, backed[5:9]), whole, slice(5, 9))
    assert_rows(moments(model, backed, indices=[7, 3, 3]), whole, [7, 3, 3])
    backed.file.close()
    assert (tmp_path / "a.h5ad").read_bytes() == bytes_


def test_other_types_of_the_same_categories(model: SCVI) -> None:
    other = model.adata.copy()
    other.obs["batch"] = other.obs["batch"].astype(str).astype("category")
    other.obs["batch"] = other.obs["batch"].cat.reorder_categories(["batch_1", "batch_0"])
    other.obs["donor"] = other.obs["donor"].astype("category").cat.add_categories("unused")
    for found, expected in zip(moments(model, other), moments(model), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_every_query_leaves_data_model_and_registry_alone(model: SCVI) -> None:
    other = make_data(seed=4)
    queries: list[Callable[[Any], Any]] = [
        lambda a: model.get_latent_representation(a),
        lambda a: model.get_latent_representation(a, give_mean=False),
        lambda a: model.get_elbo(a),
        lambda a: model.get_marginal_ll(a, n_mc_samples=2),
        lambda a: model.get_reconstruction_error(a),
        lambda a: model.sample_posterior(adata=a, num_samples=2),
        lambda a: model.posterior_predictive(adata=a, num_samples=2),
        lambda a: model.sample_prior(adata=a, num_samples=2),
        lambda a: model.log_likelihood(adata=a, num_samples=2),
        lambda a: model.to_arviz(adata=a, num_samples=2),
    ]
    registry, parameters = model.registry, state(model)
    for query in queries:
        for adata in (model.adata, other, other[::3], None):
            watched = model.adata if adata is None else adata
            before = snapshot(watched)
            query(adata)
            assert_unchanged(watched, before)
            assert watched.is_view == before.is_view or watched.is_view
    assert model.registry == registry
    assert same_state(state(model), parameters)
    assert not model.module.training


def test_a_query_in_between_does_not_disturb_training() -> None:
    def run(between: Callable[[SCVI], Any]) -> dict[str, np.ndarray]:
        model = make_model(epochs=1)
        between(model)
        model.train(1, batch_size=16, **QUICK)
        return state(model)

    def ask(model: SCVI) -> None:
        model.sample_posterior(num_samples=3)
        model.get_elbo(make_data(seed=7))

    assert same_state(run(ask), run(lambda model: None))


def test_draws_of_the_same_rows_and_seed_are_the_same(model: SCVI) -> None:
    one = model.sample_posterior("z", num_samples=3, indices=[4, 9], seed=1)
    two = model.sample_posterior("z", num_samples=3, indices=[4, 9], seed=1)
    three = model.sample_posterior("z", num_samples=3, indices=[4, 9], seed=2)
    np.testing.assert_array_equal(one["z"], two["z"])
    assert (one["z"] != three["z"]).all()


def test_results_carry_the_names_of_what_was_asked(model: SCVI) -> None:
    rows = [30, 2, 11]
    names = list(model.adata.obs_names[rows])
    for draws in (
        model.sample_posterior("mu", num_samples=2, indices=rows),
        model.sample_posterior("mu", num_samples=2, adata=model.adata[rows]),
    ):
        assert list(draws["obs"].values) == names
        assert list(draws["var"].values) == list(model.var_names)
        assert draws["mu"].dims == ("draw", "obs", "var")


def test_load_without_data_then_query(model: SCVI, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    loaded = SCVI.load(tmp_path / "m")
    for found, expected in zip(moments(loaded, model.adata), moments(model), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"without data.*adata="):
        loaded.sample_posterior()


def test_an_untrained_model_says_so() -> None:
    adata = make_data()
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=4, n_latent=2)
    for query in (model.get_latent_representation, model.get_elbo, model.posterior_predictive):
        with pytest.warns(UserWarning, match=r"SCVI is not trained"):
            query()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.sample_prior("z", num_samples=2)


@pytest.mark.parametrize(
    "query",
    [
        lambda model, adata: model.get_elbo(adata),
        lambda model, adata: model.get_marginal_ll(adata, n_mc_samples=2),
        lambda model, adata: model.get_latent_representation(adata),
        lambda model, adata: model.to_arviz(adata=adata, num_samples=2),
    ],
    ids=["elbo", "marginal", "latent", "arviz"],
)
def test_other_data_are_matched_once_per_query(
    model: SCVI, query: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    matched = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        matched.append(args)
        return transferred_manager(*args, **kwargs)

    monkeypatch.setattr("pyrovi.model.base.transferred_manager", counting)
    query(model, make_data(seed=4))
    assert len(matched) == 1
