"""Partly labelled data: the ELBO of all observations and a classifier of those with a label."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from anndata import AnnData
from tests.train.toys import QUIET, assert_same, assert_same_training, parameters

from pyrovi.data.fields import LabelsWithUnlabeledObsField, LayerField
from pyrovi.dataloaders import AnnDataLoader, SemiSupervisedDataSplitter
from pyrovi.errors import TrainingError
from pyrovi.model.base import BaseModelClass
from pyrovi.module.base import PyroBaseModule
from pyrovi.train import SemiSupervisedTrainingPlan, SVITrainingPlan


class LabelledModule(PyroBaseModule):
    """x ~ N(W z, 1) with a linear encoder, and a linear classifier of its mean."""

    def __init__(self, n_vars, n_labels):
        super().__init__()
        self.W = torch.nn.Parameter(torch.eye(n_vars))
        self.encoder = torch.nn.Linear(n_vars, n_vars)
        self.head = torch.nn.Linear(n_vars, n_labels)
        self.classified = []

    def model(self, X):
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(X.shape[-1]), 1.0).to_event(1))
            pyro.sample("X", dist.Normal(z @ self.W, 1.0).to_event(1), obs=X)

    def guide(self, X):
        with self.obs_plate():
            pyro.sample("z", dist.Normal(self.encoder(X), 0.3).to_event(1))

    def classify(self, X):
        if self.training:
            self.classified.append(X[:, -1].clone())
        return self.head(self.encoder(X))


class Labelled(BaseModelClass):
    def __init__(self, adata):
        super().__init__(adata)
        self.module = LabelledModule(
            self.summary_stats.n_vars, max(self.summary_stats.n_labels - 1, 1)
        )

    @classmethod
    def setup_anndata(cls, adata, **kwargs):
        labels = LabelsWithUnlabeledObsField("labels", "label", "none")
        cls.register(adata, [LayerField("X", None, is_count_data=False), labels], {})

    def training_plan_class(self):
        return SemiSupervisedTrainingPlan

    def data_splitter_class(self):
        return SemiSupervisedDataSplitter


def data(n=120, labelled=0.5, seed=0):
    """Two groups; the last variable numbers the cells."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, n)
    X = rng.normal(size=(n, 3)) + 2.0 * group[:, None] * np.array([1.0, 0.0, 0.0])
    X[:, 2] = np.arange(n) / n
    adata = AnnData(X.astype(np.float32))
    seen = rng.random(n) < labelled
    adata.obs["label"] = np.where(seen, np.array(["a", "b"])[group], "none")
    Labelled.setup_anndata(adata)
    return adata, group, seen


def rows(values, n):
    return np.rint(values.numpy() * n).astype(int)


PLAIN = {"n_epochs_kl_warmup": 0}


def test_the_loss_is_the_negative_elbo_and_the_weighted_cross_entropy():
    adata, group, seen = data(40)
    model = Labelled(adata)
    module = model.module.train()
    (everything,) = AnnDataLoader(model.adata_manager, batch_size=40)
    few = np.flatnonzero(seen)[:7]
    (labelled,) = AnnDataLoader(model.adata_manager, few, batch_size=7)
    plan = SemiSupervisedTrainingPlan(module, classification_ratio=3.0, **PLAIN)
    torch.manual_seed(0)
    loss = plan.training_step((everything, labelled), 0)
    torch.manual_seed(0)
    elbo = SVITrainingPlan(module, **PLAIN).objective(everything, 1.0)[0]
    log_q = module.classify(labelled["X"]).log_softmax(-1)
    entropy = -log_q[torch.arange(7), torch.as_tensor(group[few])].mean()
    assert loss.item() == pytest.approx((elbo + 3 * entropy).item(), rel=1e-6)
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    right = torch.autograd.grad(elbo + 3 * entropy, list(module.parameters()))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)
    means = plan.means["train"].compute()
    assert means["classification_loss"] == pytest.approx(entropy.item(), rel=1e-6)
    right_ones = log_q.argmax(-1).numpy() == group[few]
    assert means["accuracy"] == pytest.approx(right_ones.mean())


def test_labelled_observations_are_drawn_anew_in_every_epoch():
    adata, group, seen = data(60)
    model = Labelled(adata)
    epochs = 14
    options = {"datasplitter_kwargs": {"n_samples_per_label": 6}, "batch_size": 20}
    model.train(epochs, train_size=1.0, **options, **QUIET)
    drawn = [rows(values, adata.n_obs) for values in model.module.classified]
    per_epoch = len(drawn) // epochs
    sets = []
    for epoch in range(epochs):
        used = set(np.concatenate(drawn[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert sorted(group[list(used)]) == [0] * 6 + [1] * 6  # as many of each label
        assert seen[list(used)].all()
        sets.append(frozenset(used))
    assert len(set(sets)) > epochs / 2
    assert set().union(*sets) == set(np.flatnonzero(seen))  # each has its turn


def test_metrics_of_training_and_validation():
    adata, group, seen = data(200)
    model = Labelled(adata)
    model.train(30, lr=0.1, train_size=0.5, **QUIET)
    history = {name: frame.iloc[:, 0] for name, frame in model.history.items()}
    for which in ("train", "validation"):
        loss = history[f"classification_loss_{which}"]
        assert len(loss) == 30
        assert loss.iloc[-1] < loss.iloc[0]
        assert history[f"accuracy_{which}"].iloc[-1] > 0.75
    held = model.validation_indices[seen[model.validation_indices]]
    with torch.no_grad():
        log_q = model.module.classify(torch.as_tensor(adata.X[held])).log_softmax(-1).numpy()
    entropy = -log_q[np.arange(len(held)), group[held]].mean()
    assert history["classification_loss_validation"].iloc[-1] == pytest.approx(entropy, rel=1e-5)
    accuracy = (log_q.argmax(-1) == group[held]).mean()
    assert history["accuracy_validation"].iloc[-1] == pytest.approx(accuracy)


def test_the_ratio_weighs_the_classifier():
    entropies = []
    for ratio in (0.0, 50.0):
        model = Labelled(data()[0])
        model.train(15, plan_kwargs={"classification_ratio": ratio}, lr=0.02, **QUIET)
        entropies.append(model.history["classification_loss_validation"].iloc[-1, 0])
    assert entropies[1] < entropies[0] - 0.1


def test_without_labels_it_is_plain_svi():
    adata = data()[0]
    labelled = Labelled(adata)
    without = adata.copy()
    without.obs["label"] = "none"
    models = [labelled.fresh_copy(without) for _ in range(2)]
    for model, plan in zip(models, (None, SVITrainingPlan), strict=True):
        model.train(3, training_plan=plan, **QUIET)
    assert_same(parameters(models[0]), parameters(models[1]))
    assert not any("classification" in name for name in models[0].history)


def test_training_goes_on_as_one_run():
    arguments = {"plan_kwargs": PLAIN, "datasplitter_kwargs": {"n_samples_per_label": 5}, **QUIET}
    once, twice = (Labelled(data()[0]) for _ in range(2))
    once.train(5, **arguments)
    twice.train(3, **arguments)
    twice.train(2, **arguments)
    assert_same_training(once, twice)


def test_restarts():
    model = Labelled(data()[0])
    model.train(4, n_restarts=2, num_workers=1, **QUIET)
    assert len(model.restarts) == 2
    for restart in range(2):
        assert "classification_loss_validation" in model.restart_history(restart)


def test_bad_options():
    model = Labelled(data(20)[0])
    with pytest.raises(TrainingError, match="must not be negative, got -1"):
        model.train(1, plan_kwargs={"classification_ratio": -1.0}, **QUIET)
    with pytest.raises(TrainingError, match=r"'ratio'.*classification_ratio"):
        model.train(1, plan_kwargs={"ratio": 1.0}, **QUIET)
    from tests.train.toys import Amortised, toy

    with pytest.raises(TrainingError, match="AmortisedModule has no `classify`"):
        SemiSupervisedTrainingPlan(toy(Amortised).module)
