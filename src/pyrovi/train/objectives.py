"""Which objectives fit which models and guides."""

from __future__ import annotations

from pyro.infer import ELBO, RenyiELBO, TraceMeanField_ELBO

from pyrovi.errors import TrainingError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.ledger import Role
from pyrovi.train.kl import KLWarmup


def check_objective(elbo: ELBO, module: PyroBaseModule) -> None:
    """Refuse objectives that are wrong for a guide, without an error from Pyro.

    Raises
    ------
    TrainingError
        If closed-form KL terms are asked for and the guide has auxiliary sites. It then draws the
        sites of the model as point masses that carry the density of a transform, which the
        closed form of Pyro leaves out.
    """
    if isinstance(elbo, TraceMeanField_ELBO) and module.auxiliary_sites:
        raise TrainingError(
            "TraceMeanField_ELBO is wrong for guides with auxiliary sites, as automatic guides "
            f"have ({', '.join(module.auxiliary_sites)}): its closed-form KL terms leave out the "
            "density of the transform from them to the sites of the model. Use Trace_ELBO."
        )


def choose_warmup(
    elbo: ELBO,
    module: PyroBaseModule,
    n_epochs: int | None,
    n_steps: int | None,
    max_weight: float,
    min_weight: float,
) -> KLWarmup:
    """The KL warm-up asked for; none where KL terms cannot be weighted.

    Raises
    ------
    TrainingError
        If a warm-up is asked for and the model has enumerated sites, which are summed out, or the
        objective is :class:`~pyro.infer.RenyiELBO`, whose terms are inside a logarithm.
    """
    reason = None
    if module.ledger.names(Role.ENUMERATED):
        reason = "of a model with enumerated sites cannot be weighted (the sites are summed out)"
    elif isinstance(elbo, RenyiELBO):
        reason = "cannot be weighted inside the logarithm of RenyiELBO, which is then no bound"
    if reason is None:
        return KLWarmup(n_epochs, n_steps, max_weight, min_weight)
    if n_epochs or n_steps or max_weight != 1:
        raise TrainingError(f"The KL terms {reason}: leave out the options of the KL warm-up.")
    return KLWarmup(n_epochs=0)
