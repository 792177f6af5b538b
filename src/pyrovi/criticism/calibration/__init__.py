"""Calibration: whether posteriors and predictions have the probabilities that they claim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrovi._lazy import lazy_attributes

if TYPE_CHECKING:
    from pyrovi.criticism.calibration.encoder import encoder_sbc
    from pyrovi.criticism.calibration.prediction import LooPit, loo_pit
    from pyrovi.criticism.calibration.refits import SBC, sbc
    from pyrovi.criticism.calibration.result import Calibration

__all__ = ["SBC", "Calibration", "LooPit", "encoder_sbc", "loo_pit", "sbc"]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "SBC": "pyrovi.criticism.calibration.refits",
        "Calibration": "pyrovi.criticism.calibration.result",
        "LooPit": "pyrovi.criticism.calibration.prediction",
        "encoder_sbc": "pyrovi.criticism.calibration.encoder",
        "loo_pit": "pyrovi.criticism.calibration.prediction",
        "sbc": "pyrovi.criticism.calibration.refits",
    },
)
