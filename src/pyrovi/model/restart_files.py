"""Restarts in the files of a saved model: tensors ``restarts.<k>.<name>`` and their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrovi.model.json_codec import decode, encode
from pyrovi.model.restarts import RestartRecord

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


def encode_history(history: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, Any]]:
    """History as JSON."""
    return {
        metric: {str(epoch): encode(value, metric) for epoch, value in values.items()}
        for metric, values in history.items()
    }


def decode_history(history: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """History from JSON."""
    return {
        metric: {int(epoch): float(decode(value)) for epoch, value in values.items()}
        for metric, values in history.items()
    }


def describe_restarts(model: BaseModelClass) -> dict[str, Any]:
    """What the description of a model says of its restarts; nothing if it has none."""
    if not model._restarts:
        return {}
    return {
        "restarts": [
            {
                "seed": record.seed,
                "elbo": encode(record.elbo, "elbo"),
                "history": encode_history(record.history),
                "training": None
                if record.training is None
                else {
                    "n_obs": record.training.n_obs,
                    "epochs": record.training.epochs,
                    "stopping_reason": record.training.stopping_reason,
                },
            }
            for record in model._restart_records
        ]
    }


def restart_tensors(model: BaseModelClass) -> dict[str, Tensor]:
    """Parameters of the restarts under the names they have in the file."""
    return {
        f"restarts.{k}.{name}": value.clone(memory_format=torch.contiguous_format)
        for k, state in enumerate(model._restarts)
        for name, value in state.items()
    }


def restore_restarts(
    model: BaseModelClass, records: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> None:
    """Give a loaded model its restarts.

    Raises
    ------
    ValueError
        If the tensors of a restart are not those of the model.
    """
    from pyrovi.model.training import TrainingRecord

    own = model.module.state_dict()
    for k, record in enumerate(records):
        prefix = f"restarts.{k}."
        state = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in own.items()}:
            raise ValueError(f"the parameters of restart {k} are not those of the model")
        training = record["training"]
        model._restarts.append(state)
        model._restart_records.append(
            RestartRecord(
                int(record["seed"]),
                float(decode(record["elbo"])),
                decode_history(record["history"]),
                None
                if training is None
                else TrainingRecord(
                    n_obs=training["n_obs"],
                    epochs=training["epochs"],
                    stopping_reason=training["stopping_reason"],
                ),
            )
        )
