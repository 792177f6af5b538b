"""Minified data: moments of the local latents in the place of the counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import DataError
from pyrovi.module.handlers import is_deterministic, is_factor, is_latent

PREFIX = "minified_"
"""First part of the names of the tensors that minified data have."""


def moment_keys(site: str) -> tuple[str, str]:
    """Names of the tensors with the mean (or the value) and the variance of a site."""
    return f"{PREFIX}{site}_mean", f"{PREFIX}{site}_variance"


def is_minified(tensors: Mapping[str, Any]) -> bool:
    """Whether a minibatch (or a registry of fields) is of minified data."""
    return any(name.startswith(PREFIX) for name in tensors)


def no_counts(what: str, instead: str = "") -> DataError:
    """The error of a query that needs the counts that minified data do not have."""
    return DataError(
        f"{what} needs the counts, and these data are minified: they have posterior moments of the "
        "latent variables in their place. Use the full data: pass them as adata=, or load a model "
        f"that was saved before minify_adata(). {instead}".rstrip()
    )


class Minified(Messenger):
    """Run a model or guide on minified observations.

    A latent site with stored moments is drawn from the normal distribution that has them, and a
    deterministic site takes its stored value: what the function would compute from the counts is
    not used. Observed counts can be drawn, but have no density.

    Parameters
    ----------
    minibatch
        The observations.
    """

    def __init__(self, minibatch: Minibatch) -> None:
        super().__init__()
        self.minibatch = minibatch

    def _pyro_sample(self, msg: Any) -> None:
        mean, variance = moment_keys(msg["name"])
        if mean in self.minibatch:
            event_dim, value = msg["fn"].event_dim, self.minibatch[mean]
            if is_latent(msg):
                moments = dist.Normal(value, self.minibatch[variance].sqrt())
                msg["fn"] = moments.to_event(event_dim)
            elif is_deterministic(msg):
                msg["fn"], msg["value"] = dist.Delta(value, event_dim=event_dim).mask(False), value
        elif msg["is_observed"] and not is_deterministic(msg) and not is_factor(msg):
            msg["fn"] = _WithoutCounts(msg["fn"], msg["name"])


class _WithoutCounts:
    """A distribution that can be drawn from; the density of what was observed is not known."""

    def __init__(self, fn: Any, site: str) -> None:
        self.base_dist, self._site = fn, site

    def __getattr__(self, name: str) -> Any:
        if name == "base_dist":
            raise AttributeError(name)
        return getattr(self.base_dist, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        drawn: Tensor = self.base_dist(*args, **kwargs)
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """There is none."""
        raise no_counts(f"The density of {self._site!r}")

    def expand(self, batch_shape: Any) -> _WithoutCounts:
        """The same with a larger batch shape."""
        return _WithoutCounts(self.base_dist.expand(batch_shape), self._site)
