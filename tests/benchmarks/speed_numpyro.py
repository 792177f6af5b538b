"""NumPyro's side of the speed benchmark: SCVI as a step compiled by XLA; in its own environment."""

from __future__ import annotations

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import linen as nn
from jax.scipy.special import gammaln
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, TraceMeanField_ELBO
from speed_common import Job, answer, measure

LATENT, HIDDEN = 10, 128


class Layers(nn.Module):
    """A hidden layer. Layer norm stands for batch norm, whose running means are no parameters."""

    rate: float

    @nn.compact
    def __call__(self, x, key):  # type: ignore[no-untyped-def]
        x = nn.relu(nn.LayerNorm()(nn.Dense(HIDDEN)(x)))
        return nn.Dropout(self.rate, deterministic=False)(x, rng=key) if self.rate else x


class EncoderNet(nn.Module):
    @nn.compact
    def __call__(self, x, key):  # type: ignore[no-untyped-def]
        h = Layers(0.1)(jnp.log1p(x), key)
        return nn.Dense(LATENT)(h), jnp.exp(nn.Dense(LATENT)(h) / 2) + 1e-4


class ZINB(dist.Distribution):
    """Zero-inflated negative binomial; NumPyro's own goes through a mixture, and takes longer."""

    support = dist.constraints.nonnegative_integer

    def __init__(self, mu, theta, logits):  # type: ignore[no-untyped-def]
        self.mu, self.theta, self.logits = mu, theta, logits
        super().__init__(batch_shape=mu.shape)

    def log_prob(self, x):  # type: ignore[no-untyped-def]
        mu, theta = self.mu, self.theta
        log_all = jnp.log(theta + mu)
        zero = theta * (jnp.log(theta) - log_all)
        counted = x * (jnp.log(mu) - log_all) + gammaln(x + theta) - gammaln(theta)
        counted = zero + counted - gammaln(x + 1)
        inflated = jnp.where(x == 0, jnp.logaddexp(self.logits, zero), counted)
        return inflated - nn.softplus(self.logits)


class DecoderNet(nn.Module):
    n_vars: int

    @nn.compact
    def __call__(self, z):  # type: ignore[no-untyped-def]
        h = Layers(0.0)(z, None)
        return nn.softmax(nn.Dense(self.n_vars)(h)), nn.Dense(self.n_vars)(h)


def model(x, key, n_obs):  # type: ignore[no-untyped-def]
    decoder = flax_module("decoder", DecoderNet(x.shape[1]), input_shape=(1, LATENT))
    theta = jnp.exp(numpyro.param("log_theta", jnp.zeros(x.shape[1])))
    with numpyro.plate("obs", n_obs, subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT), 1).to_event(1))
        rho, logits = decoder(z)
        mu = x.sum(-1, keepdims=True) * rho + 1e-8
        numpyro.sample("X", ZINB(mu, theta, logits).to_event(1), obs=x)


def guide(x, key, n_obs):  # type: ignore[no-untyped-def]
    encoder = flax_module("encoder", EncoderNet(), x=x[:1], key=key)
    with numpyro.plate("obs", n_obs, subsample_size=len(x)):
        loc, scale = encoder(x, key)
        numpyro.sample("z", dist.Normal(loc, scale).to_event(1))


def epoch(job: Job) -> None:
    counts = anndata.read_h5ad(job.data).X.tocsr()
    n = counts.shape[0]
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), TraceMeanField_ELBO())
    key = jax.random.PRNGKey(0)
    first = jnp.asarray(counts[: job.batch_size].toarray())
    state = svi.init(key, first, key, n)
    update = jax.jit(lambda state, x, key: svi.update(state, x, key, n))
    random = np.random.default_rng(0)

    def once() -> None:
        nonlocal state, key
        order = random.permutation(n)[: n // job.batch_size * job.batch_size]
        for rows in order.reshape(-1, job.batch_size):
            key, used = jax.random.split(key)
            state, loss = update(state, jnp.asarray(counts[rows].toarray()), used)
        loss.block_until_ready()

    answer(measure(once, job.repeats))


epoch(Job.given())
