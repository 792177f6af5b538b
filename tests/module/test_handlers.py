"""Handlers do one thing to the sites they are for."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from tests.module.stories import example

from pyrovi.module import obs_plate
from pyrovi.module.handlers import (
    AnnealKL,
    Substitute,
    Uncondition,
    VmapSampling,
    is_latent,
)
from pyrovi.module.plates import minibatch_scope


def story() -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("p", 12), poutine.scale(scale=3.0):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        mu = pyro.deterministic("mu", z + c)
        pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.full((12,), 100.0))
        pyro.factor("f", torch.tensor(2.0))


def test_kl_weight_scales_latents_only() -> None:
    with AnnealKL(0.25, summed_out=["c"]):
        nodes = poutine.trace(story).get_trace().nodes
    scales = {name: node["scale"] for name, node in nodes.items() if node["type"] == "sample"}
    assert scales == {"p": 1.0, "w": 0.25, "z": 0.75, "c": 3.0, "mu": 3.0, "y": 3.0, "f": 3.0}
    assert nodes["z"]["infer"]["unannealed_scale"] == 3.0
    assert is_latent(nodes["z"])


def test_uncondition_samples_data_and_keeps_shapes() -> None:
    """poutine.uncondition turns mu, and then y, into shape (12, 12)."""
    with Uncondition():
        nodes = poutine.trace(story).get_trace().nodes
    assert nodes["mu"]["value"].shape == (12,)
    assert nodes["y"]["value"].shape == (12,)
    assert nodes["y"]["value"].abs().max() < 50
    assert nodes["y"]["is_observed"]
    assert nodes["y"]["infer"]["observed"].unique().item() == 100.0
    torch.testing.assert_close(nodes["mu"]["value"], nodes["z"]["value"] + nodes["c"]["value"])
    assert nodes["f"]["fn"].log_prob(nodes["f"]["value"]).unique().item() == 2.0


def test_substitute_gives_values_and_leaves_data() -> None:
    values = {"w": torch.tensor(5.0), "y": torch.zeros(12), "unknown": torch.zeros(1)}
    with Substitute(values):
        nodes = poutine.trace(story).get_trace().nodes
    assert nodes["w"]["value"] == 5.0
    assert nodes["y"]["value"].unique().item() == 100.0
    assert nodes["w"]["fn"].log_prob(nodes["w"]["value"]) == pytest.approx(-13.4189, abs=1e-3)


def test_binomial_counts_of_the_data_are_drawn_without_a_warning() -> None:
    counts, probability = torch.tensor([5.0, 40.0]), torch.tensor([[0.1], [0.5], [0.9]])

    def one(p: torch.Tensor) -> torch.Tensor:
        with VmapSampling():
            return pyro.sample("k", dist.Binomial(counts, p).expand([4000, 2]))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = torch.func.vmap(one, randomness="different")(probability)
    expected = counts * probability
    assert torch.allclose(draws.mean(1), expected, atol=0.25)
    assert torch.allclose(draws.var(1), expected * (1 - probability), rtol=0.15)


def test_handlers_work_inside_the_observation_plate() -> None:
    def inside() -> None:
        with obs_plate():
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=torch.ones(4, 2))

    with minibatch_scope(example()(4)), Uncondition():
        node = poutine.trace(inside).get_trace().nodes["x"]
    assert node["value"].shape == (4, 2)
    assert node["scale"] == 2.5
