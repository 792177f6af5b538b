"""Sampling-importance-resampling of local latents: from the guide towards the true posterior."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.ledger import Role
from pyrovi.posterior.density import observation_density
from pyrovi.posterior.stories import latent_values, model_trace, proposal_trace
from pyrovi.posterior.vectorise import map_draws

_WEIGHT = "_log_weight"


def resampled_latents(
    module: PyroBaseModule, minibatch: Minibatch, values: dict[str, Tensor], num_proposals: int
) -> dict[str, Tensor]:
    r"""One draw of the latents, chosen among proposals of the guide by importance.

    For each observation :math:`n`, proposals :math:`z_{n1}, \dots, z_{nK} \sim q(z_n \mid x_n)` are
    drawn and one of them is kept, with probability proportional to
    :math:`p(x_n, z_{nk}) / q(z_{nk} \mid x_n)`. For :math:`K = 1` this is a draw from the guide; as
    :math:`K` grows it tends to a draw from the posterior of the model (Rubin 1987).

    Parameters
    ----------
    module
        The fitted pair.
    minibatch
        The observations.
    values
        One draw of the global sites.
    num_proposals
        Number of proposals ``K`` of each observation.

    Returns
    -------
    dict
        Latent site -> value, as the guide gives it.

    Raises
    ------
    ModelError
        If the model has enumerated sites, over which there is nothing to weigh.
    """
    if enumerated := module.ledger.names(Role.ENUMERATED):
        raise ModelError(
            f"Importance weights need a value of every latent, but {', '.join(enumerated)} is "
            "summed out; use weights='uniform'."
        )

    def propose(_: dict[str, Tensor]) -> dict[str, Tensor]:
        guide = proposal_trace(module, minibatch, values)
        latents = latent_values(guide)
        model = model_trace(module, minibatch, latents)
        weight = observation_density(model, minibatch, observed=True)
        weight = weight + observation_density(model, minibatch)
        return {**latents, _WEIGHT: weight - observation_density(guide, minibatch)}

    proposals = map_draws(propose, {}, num_proposals, module=module)
    log_weight = proposals.pop(_WEIGHT)
    # adding Gumbel noise and taking the largest is a draw with these (unnormalised) probabilities
    uniform = torch.rand(log_weight.shape, dtype=log_weight.dtype, device=log_weight.device)
    noise = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(uniform.dtype).tiny)))
    chosen = (log_weight + noise).argmax(0)
    rows = torch.arange(minibatch.n, device=log_weight.device)
    resampled = {}
    for name, value in proposals.items():
        axis = module.ledger[name].obs_axis
        if axis is None:
            resampled[name] = value[0]
        else:
            resampled[name] = value.movedim(axis, 1)[chosen, rows].movedim(0, axis)
    return resampled
