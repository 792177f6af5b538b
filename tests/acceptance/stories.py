"""Posteriors of posteriordb (Magnusson et al. 2024) as stories, with the names of their draws.

Each function takes the data of a case and returns what :func:`pyrovi.from_pyro` is given: the
story, the data (a dict of arrays where observations are exchangeable, ``{}`` otherwise).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

import pyrovi as pv

Case = tuple[Callable[..., Any], Any]

FLAT = dist.ImproperUniform(constraints.real, (), ())
FLAT_POSITIVE = dist.ImproperUniform(constraints.positive, (), ())


def tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def regression(X: np.ndarray, y: np.ndarray, coefficient: Any, scale: Any) -> Case:
    """y ~ N(X beta, sigma), with one prior for all coefficients."""

    def story(X: torch.Tensor, y: torch.Tensor, *, n_X: int) -> None:
        beta = pyro.sample("beta", coefficient.expand([n_X]).to_event(1))
        sigma = pyro.sample("sigma", scale)
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)

    return story, {"X": X, "y": y}


def design(*columns: Any) -> np.ndarray:
    return np.column_stack([np.asarray(column, dtype=float) for column in columns])


def eight_schools_centered(data: Any) -> Case:
    y, sigma = tensor(data["y"]), tensor(data["sigma"])

    def story() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pv.plate("school", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return story, {}


def eight_schools_noncentered(data: Any) -> Case:
    y, sigma = tensor(data["y"]), tensor(data["sigma"])

    def story() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pv.plate("school", len(y)):
            theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + tau * theta_trans)
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return story, {}


def kidscore_momiq(data: Any) -> Case:
    X = design(np.ones(data["N"]), data["mom_iq"])
    return regression(X, np.asarray(data["kid_score"]), FLAT, dist.HalfCauchy(2.5))


def logmesquite(data: Any) -> Case:
    logs = ("diam1", "diam2", "canopy_height", "total_height", "density")
    X = design(np.ones(data["N"]), *(np.log(data[name]) for name in logs), data["group"])
    return regression(X, np.log(data["weight"]), FLAT, FLAT_POSITIVE)


def nes(data: Any) -> Case:
    age = np.asarray(data["age_discrete"])
    X = design(
        np.ones(data["N"]), data["real_ideo"], data["race_adj"],
        age == 2, age == 3, age == 4, data["educ1"], data["gender"], data["income"],
    )  # fmt: skip
    return regression(X, np.asarray(data["partyid7"]), FLAT, FLAT_POSITIVE)


def logearn_interaction_z(data: Any) -> Case:
    height, male = np.asarray(data["height"], dtype=float), np.asarray(data["male"])
    z = (height - height.mean()) / height.std(ddof=1)
    X = design(np.ones(data["N"]), z, male, z * male)
    return regression(X, np.log(data["earn"]), FLAT, FLAT_POSITIVE)


def blr(data: Any) -> Case:
    return regression(
        np.asarray(data["X"]), np.asarray(data["y"]), dist.Normal(0.0, 10.0), dist.HalfNormal(10.0)
    )


def diamonds(data: Any) -> Case:
    X = np.asarray(data["X"])[:, 1:]

    def story(X: torch.Tensor, Y: torch.Tensor, *, n_X: int) -> None:
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([n_X]).to_event(1))
        intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
        # a half-Student-t is the Student-t restricted to positive numbers
        sigma = pyro.sample("sigma", FLAT_POSITIVE)
        pyro.factor("half_student_t", dist.StudentT(3.0, 0.0, 10.0).log_prob(sigma))
        with pv.obs_plate():
            pyro.sample("Y", dist.Normal(intercept + X @ b, sigma), obs=Y)

    return story, {"X": X - X.mean(0), "Y": np.asarray(data["Y"])}


def arK(data: Any) -> Case:
    y, K = tensor(data["y"]), int(data["K"])
    lagged = torch.stack([y[K - k - 1 : len(y) - k - 1] for k in range(K)], -1)

    def story() -> None:
        alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([K]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        with pv.plate("time", len(y) - K):
            pyro.sample("y", dist.Normal(alpha + lagged @ beta.to(lagged.dtype), sigma), obs=y[K:])

    return story, {}


def low_dim_gauss_mix(data: Any) -> Case:
    def story(y: torch.Tensor) -> None:
        # ordered means: the lower one, and its positive distance from the upper one
        mu0 = pyro.sample("mu0", FLAT)
        gap = pyro.sample("gap", FLAT_POSITIVE)
        mu = pyro.deterministic("mu", torch.stack([mu0, mu0 + gap], -1), event_dim=1)
        pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
        theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
        weights = dist.Categorical(torch.stack([theta, 1 - theta], -1))
        with pv.obs_plate():
            pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)

    return story, {"y": np.asarray(data["y"])}


def hmm_example(data: Any) -> Case:
    y = tensor(data["y"])

    def story() -> None:
        theta1 = pyro.sample("theta1", dist.Dirichlet(torch.ones(2)))
        theta2 = pyro.sample("theta2", dist.Dirichlet(torch.ones(2)))
        mu0 = pyro.sample("mu0", FLAT_POSITIVE)
        gap = pyro.sample("gap", FLAT_POSITIVE)
        mu = pyro.deterministic("mu", torch.stack([mu0, mu0 + gap], -1), event_dim=1)
        prior = dist.Normal(torch.tensor([3.0, 10.0]), 1.0)
        pyro.factor("mu_prior", prior.log_prob(mu).sum(-1))
        # Pyro's chain makes a transition before its first observation: the first one stands alone
        first = dist.Normal(mu, 1.0).log_prob(y[0].to(mu.dtype))
        pyro.factor("first", first.logsumexp(-1))
        rows = torch.stack([theta1, theta2], -2).log()
        chain = dist.DiscreteHMM(first, rows, dist.Normal(mu, 1.0))
        pyro.sample("y", chain, obs=y[1:].to(mu.dtype))

    return story, {}


def gp_regr(data: Any) -> Case:
    x, y = tensor(data["x"]), tensor(data["y"])

    def story() -> None:
        rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
        alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        square = (x[:, None] - x[None]) ** 2
        K = alpha**2 * torch.exp(-square / (2 * rho**2)) + sigma * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)).to(K), K), obs=y.to(K))

    return story, {}


CASES: dict[str, Callable[[Any], Case]] = {
    "arK-arK": arK,
    "diamonds-diamonds": diamonds,
    "earnings-logearn_interaction_z": logearn_interaction_z,
    "eight_schools-eight_schools_centered": eight_schools_centered,
    "eight_schools-eight_schools_noncentered": eight_schools_noncentered,
    "gp_pois_regr-gp_regr": gp_regr,
    "hmm_example-hmm_example": hmm_example,
    "kidiq-kidscore_momiq": kidscore_momiq,
    "low_dim_gauss_mix-low_dim_gauss_mix": low_dim_gauss_mix,
    "mesquite-logmesquite": logmesquite,
    "nes1980-nes": nes,
    "sblrc-blr": blr,
}
"""Name of the folder -> function of its data that returns story and data."""

REGRESSIONS = (
    "diamonds-diamonds",
    "earnings-logearn_interaction_z",
    "kidiq-kidscore_momiq",
    "mesquite-logmesquite",
    "nes1980-nes",
    "sblrc-blr",
)
"""Cases of exchangeable observations and global latents only: minibatches must agree."""
