"""The adversary: a latent variable that a classifier cannot tell batches by."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from tests.train.toys import QUIET

from pyrovi.data.fields import CategoricalObsField, LayerField
from pyrovi.dataloaders import AnnDataLoader
from pyrovi.errors import TrainingError
from pyrovi.model import SCVI
from pyrovi.model.base import BaseModelClass
from pyrovi.module.base import PyroBaseModule
from pyrovi.train import AdversarialTrainingPlan


class LinearModule(PyroBaseModule):
    """x ~ N(W z, 1) with a linear encoder: nothing but the adversary knows of batches."""

    def __init__(self, n_vars):
        super().__init__()
        self.W = torch.nn.Parameter(torch.eye(n_vars))
        self.encoder = torch.nn.Linear(n_vars, n_vars)

    def model(self, X):
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(X.shape[-1]), 1.0).to_event(1))
            pyro.sample("X", dist.Normal(z @ self.W, 1.0).to_event(1), obs=X)

    def guide(self, X):
        with self.obs_plate():
            pyro.sample("z", dist.Normal(self.encoder(X), 0.3).to_event(1))


class Linear(BaseModelClass):
    def __init__(self, adata):
        super().__init__(adata)
        self.module = LinearModule(self.summary_stats.n_vars)

    @classmethod
    def setup_anndata(cls, adata, **kwargs):
        fields = [LayerField("X", None, is_count_data=False), CategoricalObsField("batch", "batch")]
        cls.register(adata, fields, {})


def two_batches(n=300):
    """The batch shifts the first variable; the second one does not know of it."""
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 2, n)
    X = rng.normal(size=(n, 2)) + 3.0 * batch[:, None] * np.array([1.0, 0.0])
    adata = AnnData(X.astype(np.float32))
    adata.obs["batch"] = np.array(["a", "b"])[batch]
    Linear.setup_anndata(adata)
    return adata, batch


PLAN = {"n_categories": 2, "n_epochs_kl_warmup": 0, "lr": 0.01}


@pytest.mark.parametrize(("weight", "hidden"), [(0.0, False), (50.0, True)])
def test_the_guide_hides_the_batch_from_the_classifier(weight, hidden):
    adata, batch = two_batches()
    model = Linear(adata)
    options = PLAN | {"scale_adversarial_loss": weight}
    model.train(
        60, training_plan=AdversarialTrainingPlan, plan_kwargs=options, train_size=1.0,
        batch_size=50, **QUIET,
    )  # fmt: skip
    z = model.sample_posterior("z", num_samples=20)["z"].mean("draw").values
    gap = z[batch == 1].mean(0) - z[batch == 0].mean(0)
    within = (np.cov(z[batch == 0].T) + np.cov(z[batch == 1].T)) / 2 + 0.09 * np.eye(2)
    distance = np.sqrt(gap @ np.linalg.solve(within, gap))  # of Mahalanobis; 2.2 without adversary
    assert distance < 1.2 if hidden else distance > 2.0
    told = model.history["adversary_loss_train"].iloc[-1, 0]
    assert (told > 0.5) == hidden  # log 2 is that of a classifier that knows nothing


def probed(weight: float) -> tuple[float, float]:
    """How often a classifier tells the batches by SCVI's z, and the loss of the guide."""
    rng = np.random.default_rng(2)
    batch, kind = rng.integers(0, 2, 400), rng.integers(0, 3, 400)
    log_rate = rng.normal(0, 1, (3, 30))[kind] + rng.normal(0, 0.7, (2, 30))[batch]
    adata = AnnData(rng.poisson(2 * np.exp(log_rate)).astype(np.float32))
    adata.obs["batch"] = np.array(["a", "b"])[batch]
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata)
    options = {"n_categories": 2, "scale_adversarial_loss": weight}
    model.train(60, training_plan=AdversarialTrainingPlan, plan_kwargs=options, **QUIET)
    z = model.get_latent_representation()
    told = cross_val_score(LogisticRegression(), z, batch, cv=3).mean()
    return told, model.history["adversarial_loss_train"].iloc[-1, 0]


def test_a_large_weight_does_not_run_past_indifference():
    """Belief in the wrong batch as aim tells batches apart ever better: 0.995 at weight 50."""
    without, _ = probed(0.0)
    large, loss = probed(50.0)
    assert large < without - 0.1  # 0.62 and 0.83; chance is 0.5
    assert np.log(2) <= loss < np.log(2) + 0.05


def test_terms_move_whom_they_are_meant_for():
    adata, _ = two_batches(40)
    module = Linear(adata).module
    plan = AdversarialTrainingPlan(module, **PLAN, scale_adversarial_loss=2.0).eval()
    (minibatch,) = AnnDataLoader(Linear(adata).adata_manager, batch_size=40)
    torch.manual_seed(0)
    loss, parts, traces = plan.evaluate(minibatch, 1.0)
    total, metrics = plan.regularised(loss, parts, traces, minibatch)
    z = traces[0][1].nodes["z"]["value"]
    log_c = plan.adversary(z).log_softmax(-1)
    own = minibatch["batch"][:, 0]
    confused = -log_c.mean(-1).mean()  # cross entropy to the uniform distribution
    told = -log_c[torch.arange(40), own].mean()
    assert metrics["adversarial_loss"].item() == pytest.approx(confused.item(), rel=1e-5)
    assert metrics["adversary_loss"].item() == pytest.approx(told.item(), rel=1e-5)
    assert total.item() == pytest.approx((loss + 2 * confused + told).item(), rel=1e-5)
    theirs = list(plan.adversary.parameters())
    guides = list(module.encoder.parameters())
    found = torch.autograd.grad(total, [*theirs, *guides], retain_graph=True)
    right = [
        *torch.autograd.grad(told, theirs, retain_graph=True),
        *torch.autograd.grad(loss + 2 * confused, guides),
    ]
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)


def test_the_adversary_retires_with_the_warmup_and_goes_on_with_the_next_call():
    adata, _ = two_batches()
    model = Linear(adata)
    options = {"n_categories": 2, "n_epochs_kl_warmup": 10}
    arguments = {"training_plan": AdversarialTrainingPlan, "plan_kwargs": options, "lr": 0.02}
    model.train(10, **arguments, **QUIET)
    first = model.history["adversary_loss_train"].iloc[:, 0]
    model.train(1, **arguments, **QUIET)
    whole = model.history["adversary_loss_train"].iloc[:, 0]
    assert first.iloc[0] > 0.4 > first.iloc[-1]
    assert whole.iloc[-1] < first.iloc[-1] + 0.05  # a new one would start at log 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_categories": 1}, "at least 2 categories of 'batch'"),
        ({"n_categories": 2, "scale_adversarial_loss": -1}, "at least 0, or 'auto', got -1"),
        ({"n_categories": 2, "latent": "X"}, "'X' is observed"),
        ({"n_categories": 2, "loudness": 3}, "'loudness'.*scale_adversarial_loss"),
    ],
)
def test_bad_options(options, message):
    model = Linear(two_batches(20)[0])
    with pytest.raises(TrainingError, match=message):
        model.train(1, training_plan=AdversarialTrainingPlan, plan_kwargs=options, **QUIET)
