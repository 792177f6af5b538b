"""Latent sites as the potential needs them: continuous, of fixed support, unconstrained."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.handlers import is_enumerated, is_latent
from pyrovi.module.ledger import Role


def refuse_sites(module: PyroBaseModule) -> None:
    """Refuse latent sites that have no gradient, or no fixed support.

    Raises
    ------
    ModelError
        Naming the site and what to write instead.
    """
    ledger = module.ledger
    for name in ledger.names(Role.GLOBAL, Role.LOCAL):
        site = ledger[name]
        if site.is_discrete:
            raise ModelError(
                f"The latent site {name!r} is discrete: it has no gradient to follow. If it takes "
                'finitely many values, mark it with infer={"enumerate": "parallel"} and it is '
                "summed out exactly; if not, marginalise it by hand (a gamma-Poisson mixture is a "
                "negative binomial)."
            )
        if site.support_varies:
            raise ModelError(
                f"The support of site {name!r} depends on other latent sites, so there is no fixed "
                "map from real numbers into it. Draw a variable of fixed support and transform it: "
                f'for `Uniform(0, 1 - a)`, `u = pyro.sample("u", dist.Uniform(0, 1))` and '
                f'`{name} = pyro.deterministic("{name}", u * (1 - a))`.'
            )


class StartAtZero(Messenger):
    """Give latent sites the value of unconstrained zeros, and note the bijections.

    Attributes
    ----------
    transforms
        Site -> bijection from real numbers into its support.
    unconstrained
        Site -> zeros of the shape of its unconstrained value.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.transforms: dict[str, Any] = {}
        self.unconstrained: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg):
            return
        name = msg["name"]
        if is_enumerated(msg):
            if msg["infer"]["enumerate"] != "parallel":
                raise ModelError(
                    f"Site {name!r} is enumerated one value after the other; use "
                    'infer={"enumerate": "parallel"}.'
                )
            return
        try:
            transform = biject_to(msg["fn"].support)
            zeros = torch.zeros(transform.inverse_shape(msg["fn"].shape()), device=self.device)
            value = transform(zeros)
        except NotImplementedError as error:
            raise ModelError(
                f"There is no map from real numbers into the support of site {name!r} "
                f"({msg['fn'].support}). Draw a variable of another support and transform it with "
                "pyro.deterministic."
            ) from error
        self.transforms[name], self.unconstrained[name] = transform, zeros
        msg["value"], msg["done"] = value, True
