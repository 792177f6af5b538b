"""SVI of partly labelled data: the ELBO of all observations, a classifier of labelled ones."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import TrainingError
from pyrovi.module.base import PyroBaseModule
from pyrovi.train.metrics import EpochMean, TracePair
from pyrovi.train.plan import SVITrainingPlan


class SemiSupervisedTrainingPlan(SVITrainingPlan):
    r"""SVI with the cross entropy of a classifier that is part of the guide.

    .. math::
        \mathcal{L} = -\mathrm{ELBO} - \alpha\, \mathbb{E}_{(x, y)\ \mathrm{labelled}}
        \big[\log q(y \mid x)\big]

    The data come in pairs of minibatches: of all observations, for the ELBO, and of labelled ones,
    which are drawn anew in every epoch (see
    :class:`~pyrovi.dataloaders.SemiSupervisedDataSplitter`). Without labelled observations it is
    plain SVI.

    Parameters
    ----------
    module
        The model/guide pair, with a method ``classify`` that names the tensors it needs, like
        ``model`` and ``guide``, and returns logits of the labels, shape ``(n, n_labels)``.
    classification_ratio
        The weight :math:`\alpha`, at least 0.
    kwargs
        Options of :class:`SVITrainingPlan`.

    Raises
    ------
    TrainingError
        If the module has no ``classify``, or the weight is negative.

    Notes
    -----
    ``history`` has ``classification_loss`` (cross entropy, nats) and ``accuracy`` of labelled
    observations, for training and validation.
    """

    takes_pairs: ClassVar[bool] = True

    def __init__(
        self, module: PyroBaseModule, *, classification_ratio: float = 50.0, **kwargs: Any
    ) -> None:
        super().__init__(module, **kwargs)
        if not callable(getattr(module, "classify", None)):
            raise TrainingError(
                f"{type(module).__name__} has no `classify`: define one that returns the logits of "
                "the labels, or use SVITrainingPlan."
            )
        if classification_ratio < 0:
            raise TrainingError(
                f"classification_ratio must not be negative, got {classification_ratio}."
            )
        self.classification_ratio = classification_ratio
        self._labelled: Minibatch | None = None
        self._held_out = EpochMean()

    def training_step(self, minibatch: Any, batch_idx: int) -> Tensor:
        """One minibatch of all observations, and one of labelled ones if there are any."""
        if not isinstance(minibatch, Minibatch):
            minibatch, self._labelled = minibatch
        return super().training_step(minibatch, batch_idx)

    def regularised(
        self,
        loss: Tensor,
        parts: dict[str, Tensor],
        traces: list[TracePair],
        minibatch: Minibatch,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the cross entropy of the labelled observations."""
        if self._labelled is None:
            return loss, parts
        metrics = self._classified(self._labelled)[0]
        self._labelled = None
        loss = loss + self.classification_ratio * metrics["classification_loss"]
        return loss, parts | {name: value.detach() for name, value in metrics.items()}

    def _classified(self, minibatch: Minibatch) -> tuple[dict[str, Tensor], int]:
        """Metrics of the observations that have a label, and how many these are."""
        logits = self.module.run("classify", minibatch)
        labels = minibatch[REGISTRY_KEYS.LABELS_KEY][:, 0]
        labelled = labels < logits.shape[-1]
        logits, labels = logits[labelled], labels[labelled]
        is_right = logits.argmax(-1) == labels
        metrics = {
            "classification_loss": functional.cross_entropy(logits, labels),
            "accuracy": is_right.to(logits.dtype).mean(),
        }
        return metrics, len(labels)

    def validation_step(self, minibatch: Minibatch, batch_idx: int) -> None:
        """The objective on held-out observations, and the classifier on those with a label."""
        super().validation_step(minibatch, batch_idx)
        metrics, number = self._classified(minibatch)
        if number:
            self._held_out.update(metrics, number)

    def on_validation_epoch_end(self) -> None:
        """Record the metrics of the held-out observations."""
        super().on_validation_epoch_end()
        if not self._held_out.is_empty and not self.trainer.sanity_checking:
            self._record({f"{k}_validation": v for k, v in self._held_out.compute().items()})
