"""Setup: one id is all that is written, and each object has the setup it was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch
from tests.model.samples import (
    QUICK,
    SETUP,
    assert_unchanged,
    make_data,
    make_model,
    same_state,
    snapshot,
    state,
)

from pyrovi._constants import UUID_KEY
from pyrovi.data import AnnDataManager, open_store
from pyrovi.data.fields import LayerField, NumericalObsField
from pyrovi.errors import ModelError, NotSetUpError, RegistryError
from pyrovi.model import SCVI, BaseModelClass
from pyrovi.module import PyroBaseModule


class Rates(PyroBaseModule):
    """A Gamma-Poisson story with global rates."""

    def __init__(self, n_vars: int) -> None:
        super().__init__()
        self.n_vars = n_vars
        self.shape = torch.nn.Parameter(torch.ones(n_vars))

    def model(self, X: torch.Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.ones(self.n_vars), 1.0).to_event(1))
        with self.obs_plate():
            pyro.sample("X", dist.Poisson(rate).to_event(1), obs=X)

    def guide(self, X: torch.Tensor) -> None:
        pyro.sample("rate", dist.Gamma(self.shape.exp(), 1.0).to_event(1))


class RatesModel(BaseModelClass):
    @classmethod
    def setup_anndata(cls, adata: Any, layer: str | None = None) -> None:  # type: ignore[override]
        cls.register(adata, [LayerField("X", layer)], locals())

    def __init__(self, adata: Any) -> None:
        super().__init__(adata)
        self.module = Rates(self.summary_stats.n_vars)


# ---------------------------------------------------------------------- what is written


@pytest.mark.parametrize("sparse_format", [None, "csr_matrix", "csc_matrix"])
def test_setup_writes_one_id_and_nothing_else(sparse_format: Any) -> None:
    adata = make_data(sparse_format=sparse_format)
    adata.layers["counts"] = adata.X.copy()
    adata.uns["mine"] = {"a": np.arange(3)}
    before = snapshot(adata)
    SCVI.setup_anndata(adata, layer="counts", size_factor_key="size", **SETUP)
    assert isinstance(adata.uns.pop(UUID_KEY), str)
    assert_unchanged(adata, before)


def test_construction_training_and_queries_write_nothing() -> None:
    adata = make_data()
    SCVI.setup_anndata(adata, **SETUP)
    before = snapshot(adata)
    model = SCVI(adata, n_hidden=8, n_latent=3)
    model.train(1, **QUICK)
    model.get_latent_representation()
    model.get_elbo()
    model.to_arviz(num_samples=2, groups=("posterior", "observed_data", "constant_data"))
    model.posterior_predictive(num_samples=2)
    assert_unchanged(adata, before)


def test_a_model_of_a_copy_or_subset_writes_nothing() -> None:
    adata = make_data()
    SCVI.setup_anndata(adata, **SETUP)
    copied, view = adata.copy(), adata[5:40]
    for other in (copied, view, adata[::2].copy()):
        before = snapshot(other)
        one, two = SCVI(other, n_hidden=4), SCVI(other, n_hidden=4)  # twice
        assert one.adata is two.adata is other
        assert one.summary_stats.n_obs == other.n_obs
        assert_unchanged(other, before)
    assert view.is_view


def test_failed_setup_writes_nothing_and_keeps_the_earlier_one() -> None:
    adata = make_data()
    SCVI.setup_anndata(adata, batch_key="batch")
    before = snapshot(adata)
    with pytest.raises(KeyError, match="'none' not found"):
        SCVI.setup_anndata(adata, batch_key="none")
    assert_unchanged(adata, before)
    assert SCVI(adata).summary_stats.n_batch == 2


# ---------------------------------------------------------------------- which setup applies


def test_setup_of_two_classes() -> None:
    adata = make_data()
    SCVI.setup_anndata(adata, batch_key="batch")
    with pytest.raises(NotSetUpError, match=r"with RatesModel: it was set up for SCVI"):
        RatesModel(adata)
    RatesModel.setup_anndata(adata)
    assert SCVI(adata).summary_stats.n_batch == 2
    assert RatesModel(adata).summary_stats.n_vars == adata.n_vars


def test_the_last_setup_applies() -> None:
    adata = make_data()
    SCVI.setup_anndata(adata, batch_key="batch")
    one = SCVI(adata)
    SCVI.setup_anndata(adata, batch_key="labels")
    two = SCVI(adata)
    assert (one.summary_stats.n_batch, two.summary_stats.n_batch) == (2, 3)
    one.get_latent_representation()
    one.train(1, **QUICK)


def test_copies_keep_the_setup_they_were_made_under() -> None:
    adata = make_data()
    SCVI.setup_anndata(adata, batch_key="batch")
    clone, other = adata.copy(), adata.copy()
    SCVI.setup_anndata(adata, batch_key="labels")
    assert SCVI(clone).summary_stats.n_batch == 2
    SCVI.setup_anndata(other, batch_key="donor", labels_key="labels")
    assert SCVI(clone).summary_stats.n_labels == 1


def test_an_id_that_was_read_from_a_file(tmp_path: Path) -> None:
    adata = make_data()
    SCVI.setup_anndata(adata, batch_key="batch")
    adata.write_h5ad(tmp_path / "a.h5ad")
    loaded = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert SCVI(loaded).summary_stats.n_batch == 2
    loaded.uns[UUID_KEY] = "of another process"
    with pytest.raises(
        NotSetUpError, match=r"was not set up.*SCVI\.setup_anndata\(adata, \.\.\.\)"
    ):
        SCVI(loaded)


# ---------------------------------------------------------------------- registry


def test_a_model_from_a_registry_alone() -> None:
    model = make_model(n_layers=2, dispersion="gene-batch")
    registry = json.loads(json.dumps(model.registry))
    twin = SCVI(registry, n_hidden=8, n_latent=3, n_layers=2, dispersion="gene-batch")
    shapes = {k: v.shape for k, v in model.module.state_dict().items()}
    assert {k: v.shape for k, v in twin.module.state_dict().items()} == shapes
    twin.module.load_state_dict(model.module.state_dict())
    np.testing.assert_array_equal(
        twin.get_latent_representation(model.adata), model.get_latent_representation()
    )
    also = SCVI(registry=registry, n_hidden=8, n_latent=3)
    assert dict(also.summary_stats) == dict(model.summary_stats)
    registry["field_registries"].clear()  # the models have their own
    assert twin.summary_stats.n_vars == 12
    with pytest.raises(NotSetUpError, match=r"without data.*adata=.*load\(dir, adata\)"):
        twin.get_latent_representation()
    with pytest.raises(NotSetUpError, match="without data"):
        twin.train(1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r.pop("field_registries"), "lacks 'field_registries'"),
        (lambda r: r.update(format=2), r"has format 2\. Expected 1: update pyrovi"),
        (lambda r: r.update(n_obs="many"), r"has 'many' as 'n_obs'\. Expected a int"),
        (lambda r: r["field_registries"].update(X=3), r"field 'X' lacks.*; it has 3"),
        (lambda r: r["field_registries"]["X"].pop("tensor"), "field 'X' lacks 'tensor'"),
        (lambda r: r["field_registries"]["X"]["tensor"].pop("shape"), "'tensor', lacks 'shape'"),
    ],
)
def test_a_damaged_registry(damage: Any, message: str) -> None:
    registry = make_model(epochs=0).registry
    damage(registry)
    with pytest.raises(RegistryError, match=message):
        SCVI(registry)


@pytest.mark.parametrize("name", ["load", "save", "__init__", "mro", "none", None, "setup_cfg"])
def test_a_registry_cannot_call_anything_but_a_setup_method(name: Any) -> None:
    model = make_model(epochs=0)
    model.registry["setup_method_name"] = name
    with pytest.raises(RegistryError, match=f"setup method {name!r}, which SCVI does not have"):
        model.get_latent_representation(make_data())


def test_setup_arguments_that_do_not_fit() -> None:
    model = make_model(epochs=0)
    model.registry["setup_args"]["color"] = "red"
    with pytest.raises(RegistryError, match=r"do not fit SCVI\.setup_anndata.*color"):
        model.get_latent_representation(make_data())


def test_a_setup_method_that_registers_nothing() -> None:
    class Forgetful(RatesModel):
        @classmethod
        def setup_anndata(cls, adata: Any, layer: str | None = None) -> None:
            if not adata.uns.get("forget"):
                super().setup_anndata(adata, layer)

    adata = make_data()
    Forgetful.setup_anndata(adata)
    other = make_data()
    other.uns["forget"] = True
    with pytest.raises(RegistryError, match=r"did not register its fields.*cls\.register"):
        Forgetful(adata).get_elbo(other)


def test_a_model_of_a_manager() -> None:
    adata = make_data()
    manager = AnnDataManager([LayerField("X")], {"setup_method_name": "setup_anndata"})
    manager.register_fields(adata)
    assert RatesModel(manager).adata_manager is manager


# ---------------------------------------------------------------------- the module's fields


def test_a_field_that_was_not_registered() -> None:
    class Wanting(Rates):
        def model(self, X: torch.Tensor, depth: torch.Tensor) -> None:
            super().model(X)

    class WantingModel(RatesModel):
        def __init__(self, adata: Any) -> None:
            BaseModelClass.__init__(self, adata)
            self.module = Wanting(self.summary_stats.n_vars)

    adata = make_data()
    WantingModel.setup_anndata(adata)
    before = snapshot(adata)
    with pytest.raises(
        ModelError, match=r"asks for 'depth', which is not registered.*'depth', layer="
    ):
        WantingModel(adata)
    assert_unchanged(adata, before)


def test_a_module_that_is_not_assigned() -> None:
    class Empty(RatesModel):
        def __init__(self, adata: Any) -> None:
            BaseModelClass.__init__(self, adata)

    adata = make_data()
    Empty.setup_anndata(adata)
    with pytest.raises(ModelError, match=r"Empty\.__init__ must assign self\.module"):
        Empty(adata).get_elbo()


# ---------------------------------------------------------------------- one process, many models


def test_two_live_models_of_one_class_are_independent() -> None:
    adata, other = make_data(), make_data(seed=3)
    one, two = make_model(adata, epochs=0), make_model(other, epochs=0)
    before = state(two)
    expected = two.get_latent_representation()
    one.train(2, lr=0.05, **QUICK)
    assert same_state(state(two), before)
    np.testing.assert_array_equal(two.get_latent_representation(), expected)
    assert not two.is_trained
    assert not two.history
    together = state(one)
    alone = make_model(make_data(), epochs=0)
    alone.train(2, lr=0.05, **QUICK)
    assert same_state(state(alone), together)


def test_classic_pyro_beside_pyrovi(tmp_path: Path) -> None:
    """The process-wide parameter store survives, and a classic SVI goes on as if alone."""

    def story(x: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x: torch.Tensor) -> None:
        loc = pyro.param("loc_loc", torch.tensor(0.0))
        scale = pyro.param("loc_scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("loc", dist.Normal(loc, scale))

    def run(between: Any) -> dict[str, float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = pyro.infer.SVI(story, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
        data = torch.arange(5.0)
        for step in range(6):
            if step == 3:
                rng = torch.get_rng_state()
                between()
                torch.set_rng_state(rng)
            svi.step(data)
        values = {k: v.item() for k, v in pyro.get_param_store().items()}
        pyro.clear_param_store()
        return values

    def use_pyrovi() -> None:
        store = pyro.get_param_store()
        before = {k: v.item() for k, v in store.items()}
        identities = {k: id(store._params[k]) for k in store.keys()}  # noqa: SIM118
        for model in (make_model(), RatesModel(set_up(make_data()))):
            model.train(1, **QUICK)
            model.sample_posterior(num_samples=2)
            model.save(tmp_path / type(model).__name__, overwrite=True)
            type(model).load(tmp_path / type(model).__name__, model.adata).train(1, **QUICK)
        assert {k: v.item() for k, v in store.items()} == before
        assert {k: id(store._params[k]) for k in store.keys()} == identities  # noqa: SIM118
        assert not pyro.settings.get("module_local_params")

    assert run(use_pyrovi) == run(lambda: None)


def set_up(adata: anndata.AnnData) -> anndata.AnnData:
    RatesModel.setup_anndata(adata)
    return adata


def test_numerical_field_of_a_model_of_ones_own() -> None:
    class Sized(RatesModel):
        @classmethod
        def setup_anndata(cls, adata: Any, size: str = "size") -> None:  # type: ignore[override]
            cls.register(adata, [LayerField("X"), NumericalObsField("size", size)], locals())

    adata = make_data()
    Sized.setup_anndata(adata)
    model = Sized(adata)
    assert model.has_field("size")
    assert not model.has_field("batch")
    assert model.registry["setup_args"] == {"size": "size"}


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_totals_of_a_store_are_those_in_memory(form: Any, tmp_path: Path) -> None:
    adata = make_data()
    adata.X = form(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with_backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    found = []
    for data in (adata, open_store(tmp_path / "a.h5ad"), with_backed):
        SCVI.setup_anndata(data, batch_key="batch")
        found.append(state(SCVI(data, n_hidden=4, use_observed_lib_size=False)))
    with_backed.file.close()
    assert same_state(found[0], found[1])
    assert same_state(found[0], found[2])
    x = make_data().X
    log_totals = np.log(np.asarray(x.sum(1), dtype=np.float64)).ravel()
    batch = make_data().obs["batch"].astype("category").cat.codes.to_numpy()
    means = [log_totals[batch == b].mean() for b in range(batch.max() + 1)]
    np.testing.assert_allclose(found[1]["library_log_means"].ravel(), means, rtol=1e-6)
