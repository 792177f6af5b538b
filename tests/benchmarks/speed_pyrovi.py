"""pyrovi's side of the speed benchmark."""

from speed_tasks import run

from pyrovi.dataloaders import AnnDataLoader
from pyrovi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from pyrovi.model import SCVI

run(SCVI, AnnDataLoader, NegativeBinomial, ZeroInflatedNegativeBinomial, enable_progress_bar=False)
