"""Training: SVI plans, trainer, callbacks and loggers. Importing it imports Lightning."""

from __future__ import annotations

from pyrovi.train.adversarial import AdversarialTrainingPlan
from pyrovi.train.averaging import IterateAveraging
from pyrovi.train.callbacks import (
    BestCheckpoint,
    ELBOConvergence,
    LoudEarlyStopping,
    NaNGuard,
)
from pyrovi.train.checkpoint import AtomicCheckpointIO, SaveCheckpoint
from pyrovi.train.converge import convergence_defaults
from pyrovi.train.loggers import HistoryLogger
from pyrovi.train.low_level import LowLevelTrainingPlan
from pyrovi.train.manual_plan import ManualSVITrainingPlan
from pyrovi.train.plan import SVITrainingPlan
from pyrovi.train.progress import TrainingProgressBar
from pyrovi.train.runner import TrainRunner
from pyrovi.train.scaled_adam import ScaledAdam
from pyrovi.train.semi_supervised import SemiSupervisedTrainingPlan
from pyrovi.train.trainer import Trainer

__all__ = [
    "AdversarialTrainingPlan",
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "ELBOConvergence",
    "HistoryLogger",
    "IterateAveraging",
    "LoudEarlyStopping",
    "LowLevelTrainingPlan",
    "ManualSVITrainingPlan",
    "NaNGuard",
    "SVITrainingPlan",
    "SaveCheckpoint",
    "ScaledAdam",
    "SemiSupervisedTrainingPlan",
    "TrainRunner",
    "Trainer",
    "TrainingProgressBar",
    "convergence_defaults",
]
