"""The objective, its metrics, its random numbers and its modes."""

from __future__ import annotations

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from tests.train.toys import (
    QUIET,
    Amortised,
    Local,
    Mean,
    _Toy,
    assert_same,
    counts,
    differ,
    parameters,
    scvi,
    toy,
)
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovi import settings
from pyrovi.dataloaders import AnnDataLoader
from pyrovi.errors import TrainingError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.handlers import AnnealKL
from pyrovi.train import SVITrainingPlan
from pyrovi.train import plan as plans


def batches(model, size):
    return list(AnnDataLoader(model.adata_manager, batch_size=size))


def gaussian_kl(loc, scale):
    return (scale.pow(2) + loc.pow(2) - 1 - 2 * scale.log()).sum(-1) / 2


# ---------------------------------------------------------------------- objective


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_annealed_loss_is_reconstruction_plus_weighted_kl(weight):
    model = toy(Amortised)
    module = model.module
    with torch.no_grad():
        module.weight.fill_(0.3)
    plan = SVITrainingPlan(module, loss_fn=TraceMeanField_ELBO())
    (batch,) = batches(model, 24)
    loss, parts = plan.objective(batch, weight)
    kl = gaussian_kl(0.3 * batch["X"], module.scale.expand(24, -1)).mean()
    assert parts["kl_local"].item() == pytest.approx(kl.item(), rel=1e-6)
    reconstruction = parts["reconstruction_loss"]
    assert loss.item() == pytest.approx((reconstruction + weight * kl).item(), rel=1e-6)
    assert parts["elbo"].item() == pytest.approx((reconstruction + kl).item(), rel=1e-6)


class CoinsModule(PyroBaseModule):
    """Local draws that carry no gradient next to some that do."""

    def __init__(self):
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(0.3))
        self.loc = torch.nn.Parameter(torch.tensor(0.2))

    def model(self, X):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with self.obs_plate():
            k = pyro.sample("k", dist.Bernoulli(0.4))
            pyro.sample("X", dist.Normal(mu + k, 1.0), obs=X[..., 0])

    def guide(self, X):
        pyro.sample("mu", dist.Normal(self.loc, 0.5))
        with self.obs_plate():
            pyro.sample("k", dist.Bernoulli(logits=self.logit.expand(X.shape[-2])))


class Coins(_Toy):
    def __init__(self, adata):
        super().__init__(adata)
        self.module = CoinsModule()


class OwnDrawsModule(PyroBaseModule):
    """Draws made by hand, without a gradient; a factor holds their density."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(0.2))

    def model(self, X):
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("X", dist.Normal(z, 1.0), obs=X[..., 0])

    def guide(self, X):
        with self.obs_plate():
            q = dist.Normal(self.loc.expand(X.shape[-2]), 1.0)
            z = q.sample()
            pyro.sample("z", dist.Delta(z))
            pyro.factor("q", q.log_prob(z), has_rsample=False)


class OwnDraws(_Toy):
    def __init__(self, adata):
        super().__init__(adata)
        self.module = OwnDrawsModule()


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize(
    ("make", "elbo"),
    [
        (scvi, TraceMeanField_ELBO(max_plate_nesting=1)),
        (scvi, Trace_ELBO(num_particles=2, max_plate_nesting=1)),
        (lambda: toy(Coins), Trace_ELBO(max_plate_nesting=1)),
        (lambda: toy(OwnDraws), Trace_ELBO(max_plate_nesting=1)),
    ],
)
def test_loss_and_gradients_are_those_of_pyro(make, elbo, weight, validate):
    model = make()
    plan = SVITrainingPlan(model.module, loss_fn=elbo)
    batch = batches(model, 8)[0]
    found = []
    for ours in (True, False):
        pyro.set_rng_seed(0)
        model.module.zero_grad()
        if ours:
            with pyro.validation_enabled(validate):
                loss = plan.objective(batch, weight)[0]
        else:
            pair = model.module.run_model, model.module.run_guide
            with AnnealKL(weight):
                loss = elbo.differentiable_loss(*pair, batch) / batch.n_obs
        loss.backward()
        gradients = [p.grad.clone() for p in model.module.parameters() if p.grad is not None]
        found.append([loss.detach(), *gradients])
    assert len(found[0]) > 1
    assert all(gradient.abs().sum() > 0 for gradient in found[0][1:])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class NoNumbers(TorchDispatchMode):
    """Refuse what makes an accelerator wait: reading a number of a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_a_step_reads_no_number_of_the_device(likelihood):
    model = scvi(gene_likelihood=likelihood)
    plan = SVITrainingPlan(model.module)
    batch = batches(model, 8)[0]
    with pyro.validation_enabled(False), NoNumbers():
        loss, parts = plan.objective(batch, 0.5)
        loss.backward()
        plan.means["train"].update(parts, batch.n)
    assert not plan.means["train"].is_empty


@pytest.mark.parametrize("vectorize", [False, True])
def test_metrics_average_over_particles(vectorize):
    model = toy(Amortised)
    elbo = Trace_ELBO(num_particles=400, vectorize_particles=vectorize)
    (batch,) = batches(model, 24)
    loss, parts = SVITrainingPlan(model.module, loss_fn=elbo).objective(batch, 1.0)
    assert parts["elbo"].item() == pytest.approx(loss.item(), rel=1e-5)
    one = SVITrainingPlan(model.module, loss_fn=TraceMeanField_ELBO()).objective(batch, 1.0)[1]
    assert parts["kl_local"].item() == pytest.approx(one["kl_local"].item(), abs=0.1)


@pytest.mark.parametrize("size", [1, 7, 24])
def test_minibatch_objective_and_gradient_are_unbiased(size):
    """Weighted by their sizes, the minibatches of an epoch give the full-batch value exactly."""
    model = toy(Mean, guide="delta")
    plan = SVITrainingPlan(model.module)
    leaves = list(model.module.parameters())

    def value_and_gradient(batch):
        loss, _ = plan.objective(batch, 1.0)
        return torch.cat([loss[None], *torch.autograd.grad(loss, leaves)])

    full = value_and_gradient(batches(model, 24)[0])
    mean = sum(value_and_gradient(b) * b.n / 24 for b in batches(model, size))
    assert torch.allclose(full, mean, atol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 24])
def test_minibatch_objective_and_gradient_of_local_latents_are_unbiased(size):
    """Averaged over the noise, too: 24 observations, the last minibatch of 7 is short."""
    model = toy(Amortised)
    with torch.no_grad():
        model.module.weight.fill_(0.4)
    leaves = list(model.module.parameters())
    plan = SVITrainingPlan(model.module)

    def one_epoch(batches):
        total = torch.zeros(1 + sum(leaf.numel() for leaf in leaves))
        for batch in batches:
            loss, _ = plan.objective(batch, 1.0)
            gradients = [g.flatten() for g in torch.autograd.grad(loss, leaves)]
            total += torch.cat([loss.detach()[None], *gradients]) * batch.n / 24
        return total

    def draws(batch_size, n):
        loader = batches(model, batch_size)
        found = torch.stack([one_epoch(loader) for _ in range(n)]).double()
        return found.mean(0), found.var(0) / n

    torch.manual_seed(1)
    mean, variance = draws(size, 80 if size == 1 else 400)
    full, full_variance = draws(24, 400)
    z = (mean - full) / (variance + full_variance).sqrt()
    assert z.abs().max() < 4
    # and the truth: E_q of the quadratic, and the entropy
    x, s = torch.as_tensor(model.adata.X), model.module.scale.detach()
    spread = s.square()
    reconstruction = ((0.6 * x) ** 2 + spread) / (2 * 0.25) + np.log(0.5) + np.log(2 * np.pi) / 2
    exact = reconstruction.sum(-1).mean() + gaussian_kl(0.4 * x, s.expand(24, -1)).mean()
    assert abs(mean[0] - exact) < 4 * variance[0].sqrt()


def test_steps_are_those_of_classic_svi():
    """Same model, same noise, same Pyro optimiser: the same parameters as ``pyro.infer.SVI``."""
    model = toy(Mean)
    options = {"lr": 0.02, "clip_norm": 3.0, "eps": 0.5, "weight_decay": 0.1, "lrd": 0.9}
    model.train(
        5, batch_size=None, train_size=1.0,
        plan_kwargs={"optim": pyro.optim.ClippedAdam(options), "n_epochs_kl_warmup": 0}, **QUIET,
    )  # fmt: skip
    X = torch.as_tensor(model.adata.X)

    def story(X):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("obs", 24):
            pyro.sample("X", dist.Normal(mu, 1.0).to_event(1), obs=X)

    def guide(X):
        loc = pyro.param("loc", torch.zeros(2))
        scale = pyro.param("scale", torch.full((2,), 0.5), dist.constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale).to_event(1))

    from pyrovi._rng import derive_seed

    with torch.random.fork_rng(), pyro.get_param_store().scope():
        svi = SVI(story, guide, pyro.optim.ClippedAdam(options), Trace_ELBO())
        for epoch in range(5):
            torch.manual_seed(derive_seed("train", epoch, 0, 0))
            svi.step(X)
        expected = {name: pyro.param(name).detach().clone() for name in ("loc", "scale")}
    for name, value in expected.items():
        assert torch.allclose(getattr(model.module, name), value, atol=1e-6), name


@pytest.mark.slow
def test_conjugate_posterior_by_minibatches_and_full_batch():
    for size in (None, 8):
        model = toy(Mean)
        model.train(
            300, batch_size=size, train_size=1.0, lr=0.05,
            plan_kwargs={
                "loss_fn": Trace_ELBO(num_particles=8, vectorize_particles=True),
                "optim": pyro.optim.ExponentialLR(
                    {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.985}
                ),
            }, **QUIET,
        )  # fmt: skip
        posterior_mean = torch.as_tensor(model.adata.X.sum(0) / 25)
        assert torch.allclose(model.module.loc, posterior_mean, atol=0.03), size
        assert torch.allclose(model.module.scale, torch.tensor(0.2), atol=0.03), size


class MixtureModule(PyroBaseModule):
    """x_n ~ sum_c 1/2 N(m_c, 1), the assignments summed out."""

    def model(self, X):
        m = pyro.sample("m", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        with self.obs_plate():
            c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("X", dist.Normal(m[c][..., None], 1.0).to_event(1), obs=X[:, :1])

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))

    def guide(self, X):
        pyro.sample("m", dist.Delta(self.loc).to_event(1))


class Mixture(_Toy):
    def __init__(self, adata):
        super().__init__(adata)
        self.module = MixtureModule()


def test_enumerated_model_is_measured_by_its_marginal_likelihood():
    model = toy(Mixture)
    assert isinstance(model.module.default_elbo(), TraceEnum_ELBO)
    model.train(1, lr=1e-9, batch_size=None, train_size=1.0, **QUIET)
    x = torch.as_tensor(model.adata.X[:, :1])
    m = torch.tensor([-1.0, 1.0])
    marginal = (torch.distributions.Normal(m, 1).log_prob(x).logsumexp(-1) - np.log(2)).mean()
    prior = torch.distributions.Normal(m, 1).log_prob(m).sum() / 24
    value = {k: v.iloc[-1, 0] for k, v in model.history.items()}
    assert value["reconstruction_loss_train"] == pytest.approx(-marginal.item(), rel=1e-5)
    assert value["elbo_train"] == pytest.approx(-(marginal + prior).item(), rel=1e-5)
    assert value["kl_weight"] == 1
    with pytest.raises(TrainingError, match="enumerated"):
        model.train(1, plan_kwargs={"n_epochs_kl_warmup": 3}, **QUIET)


# ---------------------------------------------------------------------- metrics

STILL = {"plan_kwargs": {"optim": torch.optim.SGD, "lr": 0.0}}


def test_metrics_do_not_depend_on_the_batch_size():
    """24 observations: the last minibatch of 7 is short, and counts as much as it holds."""
    found = []
    for size in (1, 7, 24):
        model = toy(Mean, guide="delta")
        model.train(
            1, batch_size=size,
            datasplitter_kwargs={"external_indexing": [range(16), range(16, 24)]}, **STILL, **QUIET,
        )  # fmt: skip
        found.append({k: v.iloc[-1, 0] for k, v in model.history.items()})
    for metric in ("elbo", "reconstruction_loss", "kl_global"):
        for split in ("train", "validation"):
            values = [f[f"{metric}_{split}"] for f in found]
            assert values == pytest.approx([values[0]] * 3, rel=1e-6), metric


def test_metrics_are_those_of_get_elbo():
    model = toy(Mean, guide="delta")
    model.train(1, batch_size=5, **STILL, **QUIET)
    value = {k: v.iloc[-1, 0] for k, v in model.history.items()}
    for split, indices in (
        ("train", model.train_indices),
        ("validation", model.validation_indices),
    ):
        assert value[f"elbo_{split}"] == pytest.approx(-model.get_elbo(indices=indices), rel=1e-5)
    x = model.adata.X[model.train_indices]
    mu = model.sample_posterior("mu", num_samples=1)["mu"].values[0]
    exact = 0.5 * ((x - mu) ** 2).sum(1).mean() + np.log(2 * np.pi)
    assert value["reconstruction_loss_train"] == pytest.approx(exact, rel=1e-5)


def test_metrics_are_not_annealed():
    """Nothing moves, so the metrics are the same in every epoch, whatever the KL weight."""
    model = toy(Amortised)
    with torch.no_grad():
        model.module.weight.fill_(0.5)
    model.train(
        4, batch_size=None, train_size=1.0,
        plan_kwargs={
            "optim": torch.optim.SGD, "lr": 0.0, "n_epochs_kl_warmup": 4,
            "loss_fn": TraceMeanField_ELBO(),
        }, **QUIET,
    )  # fmt: skip
    assert model.history["kl_weight"]["kl_weight"].tolist() == [0.0, 0.25, 0.5, 0.75]
    kl = model.history["kl_local_train"]["kl_local_train"]
    assert kl.nunique() == 1
    assert kl.iloc[0] > 0.1


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 400])
def test_default_warmup_completes(epochs):
    model = toy(Mean, n=4, guide="delta")
    model.train(epochs, batch_size=None, train_size=1.0, **QUIET)
    weights = model.history["kl_weight"]["kl_weight"]
    assert weights.iloc[-1] == 1
    assert (weights < 1).sum() == epochs // 2


def test_validation_does_not_disturb_training():
    split = [range(50), range(50, 80)]
    ends = []
    for indexing, options in (
        (split, {}),
        (split[:1], {}),
        (split, {"check_val_every_n_epoch": 2}),
    ):
        model = scvi()
        model.train(
            4,
            batch_size=16,
            datasplitter_kwargs={"external_indexing": indexing},
            **options,
            **QUIET,
        )
        ends.append(parameters(model))
    assert_same(ends[0], ends[1])
    assert_same(ends[0], ends[2])


def test_validation_uses_common_random_numbers():
    """Nothing moves (no batch norm, whose running means would): validation is the same number."""
    model = toy(Amortised)
    model.train(3, batch_size=8, **STILL, **QUIET)
    assert model.history["elbo_validation"]["elbo_validation"].nunique() == 1
    assert model.history["elbo_train"]["elbo_train"].nunique() == 3


def test_history_is_appended():
    model = toy(Amortised)
    model.train(2, **QUIET)
    first = model.history["elbo_train"]["elbo_train"].tolist()
    model.train(3, **QUIET)
    both = model.history["elbo_train"]["elbo_train"]
    assert both.tolist()[:2] == first
    assert both.index.tolist() == [0, 1, 2, 3, 4]


def test_what_others_log_is_in_the_history():
    class LogsOwn(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.log("own", 2.0 * trainer.current_epoch)

    model = toy(Amortised)
    model.train(3, callbacks=[LogsOwn()], **QUIET)
    assert model.history["own"]["own"].tolist() == [0, 2, 4]


# ---------------------------------------------------------------------- random numbers and modes


def test_global_state_of_the_process_is_left_alone():
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    pyro.enable_validation(True)
    model = scvi()
    model.train(2, batch_size=20, **QUIET)
    assert pyro.infer.util.is_validation_enabled()
    assert torch.distributions.Distribution._validate_args
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
    assert random.random() == expected[2]
    assert len(pyro.get_param_store()) == 0
    with pyro.validation_enabled(False):
        model.train(1, **QUIET)
        assert not pyro.infer.util.is_validation_enabled()


def test_same_seed_same_bits_other_seed_other_bits():
    ends = []
    for seed, user_seed in ((0, 1), (0, 2), (3, 1)):
        settings.seed = 0
        model = scvi(counts())
        settings.seed = seed
        torch.manual_seed(user_seed), np.random.seed(user_seed)
        model.train(2, batch_size=20, train_size=1.0, **QUIET)
        ends.append(parameters(model))
    assert_same(ends[0], ends[1])
    assert differ(ends[0], ends[2])


def test_modules_are_in_training_mode_when_training(tmp_path):
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(all(m.training for m in pl_module.module.modules()))

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(not any(m.training for m in pl_module.module.modules()))

    model = scvi()
    model.train(1, callbacks=[Look()], **QUIET)
    model.get_latent_representation()
    model.train(1, callbacks=[Look()], **QUIET)
    model.save(tmp_path / "m")
    loaded = type(model).load(tmp_path / "m", model.adata)
    loaded.train(1, callbacks=[Look()], **QUIET)
    assert len(seen) >= 6
    assert all(seen)
    assert not any(m.training for m in model.module.modules())


# ---------------------------------------------------------------------- rows


@pytest.mark.slow
def test_rows_fit_minibatched_and_full_to_the_exact_posterior():
    for size in (None, 8):
        model = toy(Local)
        model.train(
            400, batch_size=size, train_size=1.0,
            plan_kwargs={
                "loss_fn": Trace_ELBO(num_particles=4, vectorize_particles=True),
                "optim": pyro.optim.ExponentialLR(
                    {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.99}
                ),
            }, **QUIET,
        )  # fmt: skip
        z = model.sample_posterior("z", num_samples=500)["z"]
        assert np.allclose(z.mean("draw"), 0.8 * model.adata.X, atol=0.12), size
        assert float(z.std("draw").mean()) == pytest.approx(0.2**0.5, abs=0.05), size


def test_rows_are_refused_on_several_devices(monkeypatch):
    plan = SVITrainingPlan(toy(Local).module)
    plan._trainer = type("Trainer", (), {"world_size": 2})()
    with pytest.raises(TrainingError, match="not data-parallel"):
        plan.setup("fit")


@pytest.mark.parametrize(
    ("batch_size", "seen_by_calls"),
    [(24, [True, False, False]), (3, [True] * 5 + [False] * 19)],  # one, and eight, per epoch
)
def test_validation_is_for_the_first_steps_of_all(monkeypatch, batch_size, seen_by_calls):
    """Of the first epoch, and at most ``VALIDATED_STEPS``."""
    assert plans.VALIDATED_STEPS == 100
    monkeypatch.setattr(plans, "VALIDATED_STEPS", 5)
    seen = []
    evaluate = SVITrainingPlan.evaluate

    def spy(plan, *arguments):
        seen.append(pyro.infer.util.is_validation_enabled())
        return evaluate(plan, *arguments)

    monkeypatch.setattr(SVITrainingPlan, "evaluate", spy)
    model = toy(Mean)
    before = pyro.infer.util.is_validation_enabled()
    for epochs in (2, 1):
        model.train(epochs, train_size=1.0, batch_size=batch_size, **QUIET)
    assert seen == seen_by_calls
    assert pyro.infer.util.is_validation_enabled() == before


def test_an_optimiser_with_a_zero_grad_of_its_own_is_asked():
    class Counting(torch.optim.Adam):
        calls = 0

        def zero_grad(self, set_to_none=True):
            Counting.calls += 1
            super().zero_grad(set_to_none)

    toy(Mean, guide="delta").train(
        2, batch_size=8, plan_kwargs={"optim": Counting}, enable_progress_bar=False
    )
    assert Counting.calls > 2
