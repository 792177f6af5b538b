"""Pyro's optimisers as specifications."""

from functools import partial

import pyro.optim
import pytest
import torch
from tests.train.toys import QUIET, Amortised, toy
from torch import nn

from pyrovi.errors import TrainingError
from pyrovi.train.optim import build_optimizer, same_options

DEFAULTS = {"lr": 0.1, "eps": 0.01, "weight_decay": 1e-6}


def named():
    return [("encoder.weight", nn.Parameter(torch.ones(2))),
            ("scale_unconstrained", nn.Parameter(torch.ones(3)))]  # fmt: skip


def lr_of(optimizer, parameter):
    return next(g["lr"] for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def test_default_is_adam_with_the_given_options():
    plan = build_optimizer(None, named(), DEFAULTS, {"eps": 0.5})
    group = plan.optimizer.param_groups[0]
    assert isinstance(plan.optimizer, torch.optim.Adam)
    assert (group["lr"], group["eps"], group["weight_decay"]) == (0.1, 0.5, 1e-6)


def test_torch_optimiser_takes_the_defaults_it_knows():
    plan = build_optimizer(torch.optim.SGD, named(), DEFAULTS, {"momentum": 0.5})
    assert plan.optimizer.param_groups[0]["momentum"] == 0.5
    assert plan.optimizer.param_groups[0]["lr"] == 0.1


def test_wrong_specifications_are_refused():
    with pytest.raises(TrainingError, match="cannot be made"):
        build_optimizer(torch.optim.SGD, named(), DEFAULTS, {"eps": 0.1})
    with pytest.raises(TrainingError, match="must be a torch optimiser class"):
        build_optimizer("adam", named(), DEFAULTS, {})
    with pytest.raises(TrainingError, match="nothing to train"):
        build_optimizer(None, [("a", nn.Parameter(torch.ones(1), requires_grad=False))], {}, {})


def test_per_parameter_options_by_one_argument():
    seen = []

    def options(name):
        seen.append(name)
        return {"lr": 0.5 if name == "scale" else 0.25}

    parameters = named()
    plan = build_optimizer(pyro.optim.Adam(options), parameters, DEFAULTS, {})
    assert sorted(seen) == ["encoder.weight", "scale"]
    assert lr_of(plan.optimizer, parameters[0][1]) == 0.25
    assert lr_of(plan.optimizer, parameters[1][1]) == 0.5
    assert plan.learning_rates() == {"lr-Adam/pg1": 0.25, "lr-Adam/pg2": 0.5}


def test_per_parameter_options_by_two_arguments():
    parameters = named()
    spec = pyro.optim.Adam(lambda module, name: {"lr": 0.5 if module == "encoder" else 0.25})
    plan = build_optimizer(spec, parameters, DEFAULTS, {})
    assert lr_of(plan.optimizer, parameters[0][1]) == 0.5
    assert lr_of(plan.optimizer, parameters[1][1]) == 0.25


def test_gradients_are_scaled_and_clipped_as_in_pyro():
    (_, p), (_, q) = parameters = named()
    spec = pyro.optim.SGD({"lr": 1.0}, lambda name: {"clip_norm": 1.0} if name == "scale" else {})
    plan = build_optimizer(spec, parameters, DEFAULTS, {})
    p.grad, q.grad = torch.full((2,), 0.5), torch.full((3,), 0.5)
    plan.prepare_gradients(10)
    assert torch.allclose(p.grad, torch.full((2,), 5.0))
    assert q.grad.norm().item() == pytest.approx(1.0, rel=1e-4)
    value = build_optimizer(pyro.optim.SGD({"lr": 1.0}, {"clip_value": 0.2}), parameters, {}, {})
    value.prepare_gradients(10)
    assert p.grad.max() == pytest.approx(0.2)


def _same(options, name):
    return options


def after_steps(spec, steps=5):
    parameters = [(str(i), nn.Parameter(torch.linspace(-1.0, 1.0, i))) for i in (2, 7)]
    plan = build_optimizer(spec, parameters, DEFAULTS, {})
    for step in range(steps):
        for _, p in parameters:
            p.grad = torch.sin(p.detach() * (step + 1))
        plan.optimizer.step()
    return plan.optimizer.param_groups, torch.cat([p.detach() for _, p in parameters])


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_optimisers_are_fused_and_take_the_same_steps(name):
    options = {"lr": 0.1, "weight_decay": 0.01} | ({"momentum": 0.5} if name == "SGD" else {})
    make = getattr(pyro.optim, name)
    ends = []
    for way, fused in (({}, True), ({"fused": False}, False), ({"foreach": True}, None)):
        arguments = {**options, **way}
        inner = {"optimizer": getattr(torch.optim, name), "optim_args": arguments}
        for spec in (
            make(arguments),
            make(partial(_same, arguments)),
            pyro.optim.ExponentialLR({**inner, "gamma": 0.5}),
        ):
            groups, end = after_steps(spec)
            assert [group["fused"] for group in groups] == [fused]
            ends.append(end)
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-5, atol=1e-6)
    assert after_steps(getattr(torch.optim, name))[0][0]["fused"]


def test_what_cannot_be_fused_is_not():
    """One group of parameters decides for all, and so does clipping."""
    mixed = pyro.optim.Adam(lambda name: {"lr": 0.1} | ({"foreach": True} if name == "2" else {}))
    clipped = pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0})
    for spec in (mixed, clipped, pyro.optim.ClippedAdam({"lr": 0.1})):
        assert not any(group.get("fused") for group in after_steps(spec)[0])


def rates(optim, epochs=3, **plan_kwargs):
    model = toy(Amortised)
    model.train(
        epochs, batch_size=11, train_size=0.9, plan_kwargs={"optim": optim, **plan_kwargs}, **QUIET
    )
    name = next(n for n in model.history if n.startswith("lr-"))
    final = model._training.state["optimizer"]["param_groups"][0]["lr"]
    return model.history[name][name].tolist(), final


def scheduler(cls, lr=0.01, **options):
    return cls({"optimizer": torch.optim.Adam, "optim_args": {"lr": lr}, **options})


def test_exponential_decay_by_epoch():
    history, final = rates(scheduler(pyro.optim.ExponentialLR, gamma=0.1))
    assert history == pytest.approx([0.01, 0.001, 0.0001])
    assert final == pytest.approx(0.01 * 0.1**3)


def test_one_cycle_by_step():
    """Two minibatches an epoch: the same rates as torch's scheduler after 0, 2 and 4 steps."""
    history, final = rates(
        scheduler(pyro.optim.OneCycleLR, max_lr=0.1, total_steps=7), scheduler_interval="step"
    )
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=0.01)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=7)
    expected = []
    for _ in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 7:
            reference.step()
    assert history == pytest.approx(expected[:6:2])
    assert final == pytest.approx(expected[6])


def test_reduce_on_plateau_as_pyro_optimiser_and_as_option():
    """With a threshold no epoch can reach, every epoch after the first is without improvement."""
    history, _ = rates(
        scheduler(pyro.optim.ReduceLROnPlateau, factor=0.5, patience=0, threshold=1e9,
                  threshold_mode="abs"), epochs=4,
    )  # fmt: skip
    assert history == pytest.approx([0.01, 0.01, 0.005, 0.0025])
    history, _ = rates(
        None, 4, lr=0.01, reduce_lr_on_plateau=True, lr_factor=0.5, lr_patience=0,
        lr_threshold=1e9, lr_min=0.004,
    )  # fmt: skip
    assert history == pytest.approx([0.01, 0.01, 0.005, 0.004])


def test_clipped_adam_decays():
    _, final = rates(pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.9}))
    assert final == pytest.approx(0.01 * 0.9**6)


def test_plateau_on_a_metric_that_is_not_logged():
    with pytest.raises(TrainingError, match="'nonsense' has not been logged"):
        rates(None, 2, reduce_lr_on_plateau=True, lr_scheduler_metric="nonsense")


def test_options_are_compared_by_what_they_mean():
    def per_parameter(name):
        return {"lr": 0.1}

    def decaying(gamma=0.5, lr=0.1):
        inner = {"optimizer": torch.optim.Adam, "optim_args": {"lr": lr}}
        return pyro.optim.ExponentialLR({**inner, "gamma": gamma})

    def adam(lr=0.1, clip=None):
        return pyro.optim.Adam({"lr": lr}, clip)

    same = [adam, decaying, lambda: pyro.optim.Adam(per_parameter), lambda: torch.optim.SGD]
    for make in same:
        assert same_options({"optim": make(), "lr": 1.0}, {"optim": make(), "lr": 1.0})
    different = [
        adam(), adam(0.2), adam(clip={"clip_norm": 1.0}), pyro.optim.SGD({"lr": 0.1}),
        pyro.optim.Adam(per_parameter), pyro.optim.Adam(lambda name: {"lr": 0.1}),
        decaying(), decaying(0.6), decaying(lr=0.2), torch.optim.Adam, None,
    ]  # fmt: skip
    for i, one in enumerate(different):
        for j, other in enumerate(different):
            assert same_options({"optim": one}, {"optim": other}) == (i == j), (one, other)
    assert not same_options({"lr": 1.0}, {})
