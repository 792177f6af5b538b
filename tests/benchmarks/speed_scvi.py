"""scvi-tools' side of the speed benchmark; runs in its own environment."""

import warnings

from scvi.dataloaders import AnnDataLoader
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi.model import SCVI
from speed_tasks import run

warnings.filterwarnings("ignore")
run(
    SCVI, AnnDataLoader, NegativeBinomial, ZeroInflatedNegativeBinomial,
    enable_progress_bar=False, logger=False,
)  # fmt: skip
