"""The joint k-hat of a guide: against posteriors that are known exactly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from tests.train.toys import QUIET, Local, Mean, toy

import pyrovi as pv
from pyrovi.criticism.diagnose_joint import (
    JOINT_KHAT,
    joint_check,
    joint_log_weights,
    judged,
)
from pyrovi.criticism.diagnosis import diagnose


def exact_mean(widen: float = 1.0):
    """``mu | x ~ N(sum x / (N + 1), 1 / (N + 1))``, or as much too narrow."""
    model = toy(Mean, n=60)
    model.train(1, **QUIET)
    X = torch.as_tensor(model.adata.X)[np.sort(model.train_indices)]
    with torch.no_grad():
        model.module.loc.copy_(X.sum(0) / (len(X) + 1))
        model.module.scale = torch.full((2,), widen * (len(X) + 1) ** -0.5)
    return model, X.double()


def test_weights_of_the_exact_posterior_are_the_evidence() -> None:
    model, X = exact_mean()
    weights = joint_log_weights(model, 20)
    n = len(X)
    covariance = torch.eye(n, dtype=torch.float64) + 1
    evidence = dist.MultivariateNormal(torch.zeros(n).double(), covariance).log_prob(X.T).sum()
    np.testing.assert_allclose(weights, float(evidence), atol=1e-3)
    found = joint_check(model, None)
    assert found.verdict == "pass"
    assert "worth 1000 of the posterior's" in found.text


def test_a_guide_that_is_four_times_too_narrow_fails() -> None:
    model, _ = exact_mean(0.25)
    found = joint_check(model, None)
    assert found.verdict == "fail"
    assert "method='nuts'" in found.advice
    assert JOINT_KHAT in diagnose(model).failed


def test_local_latents_count() -> None:
    model = toy(Local, n=10)
    model.train(1, **QUIET)
    guide = model.module.guide
    X = torch.as_tensor(model.adata.X)
    with torch.no_grad():  # z | x ~ N(0.8 x, 0.2)
        guide.locs.z.copy_(0.8 * X.reshape(guide.locs.z.shape))
        guide.scales.z = torch.full_like(guide.scales.z, 0.2**0.5)
    weights = joint_log_weights(model, 20)
    trained = X[np.sort(model.train_indices)]
    evidence = dist.Normal(0.0, 1.25**0.5).log_prob(trained).double().sum()
    np.testing.assert_allclose(weights, float(evidence), atol=1e-3)


def test_enumerated_sites_are_summed_out() -> None:
    y = np.random.default_rng(0).normal(size=12) + 1

    def story(y):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(shift + k, 1.0), obs=y)

    model = pv.from_pyro(story, pd.DataFrame({"y": y}), guide="mvn")
    model.train(max_epochs=300, accelerator="cpu", enable_progress_bar=False)
    weights = joint_log_weights(model, 1000)
    grid = torch.linspace(-8, 8, 4001).double()
    data = torch.as_tensor(y)[:, None]
    two = torch.stack([dist.Normal(grid + k, 1.0).log_prob(data) for k in (0.0, 1.0)])
    joint = dist.Normal(0.0, 1.0).log_prob(grid) + (two.logsumexp(0) - np.log(2)).sum(0)
    evidence = float(joint.logsumexp(0) + np.log(16 / 4000))
    found = np.logaddexp.reduce(weights) - np.log(len(weights))
    assert found == pytest.approx(evidence, abs=0.05)


def test_what_cannot_be_judged_says_why() -> None:
    points = toy(Mean, n=30, guide="delta")
    points.train(1, **QUIET)
    assert "single values" in joint_check(points, None).advice
    large = toy(Local, n=300)
    large.train(1, **QUIET)
    found = joint_check(large, None)
    assert found.verdict == "not available"
    assert "more than 500" in found.advice


def test_a_tail_that_weighs_nothing_is_no_fault() -> None:
    assert judged(1.1, 0.95, 2, "").verdict == "pass"
    assert judged(0.8, 0.2, 2, "").verdict == "warn"
    assert judged(0.8, 0.02, 2, "").verdict == "fail"
    assert judged(1.1, 0.2, 2, "").verdict == "fail"
    assert judged(0.6, 0.2, 2, "").verdict == "pass"
