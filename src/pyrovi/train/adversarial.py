"""SVI with an adversary: a classifier of batches that the guide learns to leave in doubt."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._rng import stream
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import TrainingError
from pyrovi.module.base import PyroBaseModule
from pyrovi.nn import Classifier
from pyrovi.train.metrics import TracePair
from pyrovi.train.plan import SVITrainingPlan


class AdversarialTrainingPlan(SVITrainingPlan):
    r"""SVI of a latent variable that a classifier cannot tell categories by.

    The classifier :math:`c` is trained beside the module to tell the category :math:`s_n` (the
    batch) of an observation by its draw :math:`z_n` of the guide; the guide is trained to leave it
    undecided between the :math:`S` categories:

    .. math::
        \mathcal{L} = -\mathrm{ELBO}
        - \kappa\, \mathbb{E}\Big[\frac{1}{S} \sum_s \log c(s \mid z_n)\Big]
        - \mathbb{E}\big[\log c(s_n \mid \mathrm{stop}(z_n))\big],

    where the second term moves the guide alone and the third one the classifier alone. Both are
    steps of one optimiser. The second term is the cross entropy of the classifier to the uniform
    distribution. Its least value, :math:`\kappa \log S`, is that of a classifier that knows
    nothing, so that the guide has nothing to gain by going on beyond it.

    Parameters
    ----------
    module
        The model/guide pair.
    n_categories
        Number of categories :math:`S`.
    adversarial_classifier
        Network from the latent variable to logits of the categories; ``None``: two hidden layers of
        32 units.
    scale_adversarial_loss
        The weight :math:`\kappa`; ``"auto"``: one minus the KL weight, so that the adversary
        retires as the KL terms come in.
    latent
        Local site of the module that the classifier sees.
    category
        Registry key of the categories.
    kwargs
        Options of :class:`SVITrainingPlan`.

    Raises
    ------
    TrainingError
        If there are fewer than two categories, the site is none that the guide draws for every
        observation, or the weight is negative.

    Notes
    -----
    ``history`` has ``adversarial_loss_train`` (the second term without its weight) and
    ``adversary_loss_train`` (the third), in nats.

    Departure from the reference and scvi-tools: these train the guide towards the *wrong*
    categories. That has no optimum at indifference: at large weights the guide runs past it, and
    batches become easier to tell than without an adversary. Here, too, weights and learning rates
    so large that the ELBO hardly counts let the guide outrun the classifier:
    ``adversarial_loss_train`` is then far above :math:`\log S`.

    References
    ----------
    Gayoso et al.: Joint probabilistic modeling of single-cell multi-omic data with totalVI. Nature
    Methods 18, 272-282 (2021), Methods, "Missing proteins".
    """

    def __init__(
        self,
        module: PyroBaseModule,
        *,
        n_categories: int,
        adversarial_classifier: nn.Module | None = None,
        scale_adversarial_loss: float | Literal["auto"] = "auto",
        latent: str = "z",
        category: str = REGISTRY_KEYS.BATCH_KEY,
        **kwargs: Any,
    ) -> None:
        super().__init__(module, **kwargs)
        if n_categories < 2:
            raise TrainingError(
                f"An adversary needs at least 2 categories of {category!r} to tell apart, got "
                f"{n_categories}; use SVITrainingPlan."
            )
        is_weight = isinstance(scale_adversarial_loss, int | float)
        if scale_adversarial_loss != "auto" and not (is_weight and scale_adversarial_loss >= 0):
            raise TrainingError(
                "scale_adversarial_loss is a weight of at least 0, or 'auto', got "
                f"{scale_adversarial_loss!r}."
            )
        site = module.ledger[latent]
        if not site.is_local or not site.is_latent or site.event_dim != 1:
            raise TrainingError(
                f"The adversary sees a vector per observation that the guide draws; {latent!r} is "
                f"{site.role} with dimensions {site.dims}."
            )
        self.n_categories, self.latent, self.category = n_categories, latent, category
        self.scale_adversarial_loss = scale_adversarial_loss
        if adversarial_classifier is None:
            with stream("init", "adversary"):
                adversarial_classifier = Classifier(
                    int(site.shape[-1]), n_hidden=32, n_labels=n_categories, n_layers=2, logits=True
                )
        self.adversary = adversarial_classifier

    def regularised(
        self,
        loss: Tensor,
        parts: dict[str, Tensor],
        traces: list[TracePair],
        minibatch: Minibatch,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add what the guide and the classifier want of one another."""
        draws: list[Any] = [guide.nodes[self.latent]["value"] for _, guide in traces]
        z = torch.cat(draws)
        category = minibatch[self.category][:, 0].repeat(len(traces))
        fixed = {name: p.detach() for name, p in self.adversary.named_parameters()}
        seen = functional_call(self.adversary, fixed, (z,)).log_softmax(-1)
        confused = -seen.mean()  # cross entropy to the uniform distribution
        told = nn.functional.cross_entropy(self.adversary(z.detach()), category)
        weight = self.scale_adversarial_loss
        if weight == "auto":
            weight = 1 - self.kl_weight
        metrics = {"adversarial_loss": confused.detach(), "adversary_loss": told.detach()}
        return loss + weight * confused + told, parts | metrics
