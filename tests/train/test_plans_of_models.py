"""Every training plan with models of each kind: it trains, or an error says what it lacks."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from pyro import poutine
from pyro.infer import RenyiELBO

from pyrovi.errors import TrainingError
from pyrovi.model import SCANVI, SCVI, TOTALVI
from pyrovi.train import (
    AdversarialTrainingPlan,
    LowLevelTrainingPlan,
    ManualSVITrainingPlan,
    SemiSupervisedTrainingPlan,
    SVITrainingPlan,
)

N, SIZE = 60, {"n_hidden": 8, "n_latent": 2}
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def cells() -> AnnData:
    """Counts of genes and proteins in two batches, with labels for two thirds of the cells."""
    rng = np.random.default_rng(0)
    adata = AnnData(rng.poisson(2.0, (N, 6)).astype(np.float32))
    adata.obs["batch"] = np.array(["a", "b"])[np.arange(N) % 2]
    adata.obs["label"] = np.array(["s", "t", "none"])[np.arange(N) % 3]
    adata.obsm["proteins"] = rng.poisson(5.0, (N, 3)).astype(np.float32)
    return adata


def made(kind):
    adata = cells()
    if kind is SCVI:
        SCVI.setup_anndata(adata, batch_key="batch")
    elif kind is SCANVI:
        SCANVI.setup_anndata(adata, "label", "none", batch_key="batch")
    else:
        TOTALVI.setup_anndata(adata, "proteins", batch_key="batch")
    return kind(adata, **SIZE)


def encoded(module, minibatch, kl_weight):
    """A function of the guide alone."""
    guide = poutine.trace(module.run_guide).get_trace(minibatch)
    return guide.nodes["z"]["value"].square().mean()


PLANS = {
    SVITrainingPlan: {},
    ManualSVITrainingPlan: {},
    AdversarialTrainingPlan: {"n_categories": 2},
    LowLevelTrainingPlan: {"objective": encoded},
    SemiSupervisedTrainingPlan: {},
}
LACKS = {
    (SemiSupervisedTrainingPlan, SCVI): "VAE has no `classify`",
    (SemiSupervisedTrainingPlan, TOTALVI): "TOTALVAE has no `classify`",
    (ManualSVITrainingPlan, SCANVI): "guide sums over the values of c",
}


@pytest.mark.parametrize("kind", [SCVI, SCANVI, TOTALVI])
@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_trains_every_model_or_says_what_it_lacks(kind, plan):
    model = made(kind)
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    arguments = {"training_plan": plan, "plan_kwargs": PLANS[plan], "batch_size": 20, **QUIET}
    if lack := LACKS.get((plan, kind)):
        with pytest.raises(TrainingError, match=lack):
            model.train(1, **arguments)
        return
    model.train(1, **arguments)
    assert f"{plan.watched}_train" in model.history
    assert f"{plan.watched}_validation" in model.history
    after = dict(model.module.named_parameters())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert ("classification_loss_train" in model.history) == (plan is SemiSupervisedTrainingPlan)
    if kind is SCANVI:
        assert model.predict(soft=True).shape == (N, 2)


def test_plans_are_compared_on_the_same_splits():
    models = [made(SCANVI), made(SCANVI)]
    models[0].train(1, **QUIET)
    models[1].train(1, training_plan=SVITrainingPlan, **QUIET)
    np.testing.assert_array_equal(models[0].train_indices, models[1].train_indices)


def test_an_option_of_the_classification_loss_needs_one():
    with pytest.raises(TrainingError, match=r"n_samples_per_label=3 .*SVITrainingPlan does not"):
        made(SCANVI).train(1, training_plan=SVITrainingPlan, n_samples_per_label=3, **QUIET)


@pytest.mark.parametrize("early_stopping", [True, "elbo"])
def test_a_plan_watches_its_own_metric(early_stopping):
    """TOTALVI stops early, and lowers its learning rate, by a held-out metric."""
    model = made(TOTALVI)
    plan = {"objective": encoded, "lr": 0.0, "lr_patience": 0, "n_epochs_kl_warmup": 0}
    model.train(
        60, training_plan=LowLevelTrainingPlan, plan_kwargs=plan, early_stopping=early_stopping,
        early_stopping_patience=2, **QUIET,
    )  # fmt: skip
    losses = model.history["loss_validation"]
    assert "elbo_validation" not in model.history
    if early_stopping is True:
        assert len(losses) < 10
    else:
        assert len(losses) < 60


def test_without_held_out_cells_the_metric_is_named():
    with pytest.raises(TrainingError, match=r"watches 'loss_validation'.*watch 'loss_train'"):
        made(SCVI).train(
            1, training_plan=LowLevelTrainingPlan, plan_kwargs={"objective": encoded},
            early_stopping=True, train_size=1.0, **QUIET,
        )  # fmt: skip


def test_an_unknown_metric_is_not_blamed_on_the_split():
    with pytest.raises(TrainingError, match="'nonsense_validation' has not been") as told:
        made(SCVI).train(
            2, early_stopping=True, early_stopping_monitor="nonsense_validation",
            plan_kwargs={"n_epochs_kl_warmup": 0}, **QUIET,
        )  # fmt: skip
    assert "no validation observations" not in str(told.value)


def test_bounds_that_compute_their_own_gradients_train_networks_of_torch():
    """Their parameters are none to Pyro, which took no gradient without any."""
    model = made(SCVI)
    network = model.module.encoder.mean_head.weight
    before = network.detach().clone()
    model.train(1, batch_size=None, plan_kwargs={"loss_fn": RenyiELBO(num_particles=2)}, **QUIET)
    assert not torch.equal(before, network)
