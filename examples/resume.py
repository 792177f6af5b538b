"""Stop a training run and resume it: the result is that of a run without the stop, bit for bit.

Run: python examples/resume.py [--tiny]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

import pyrovi as pv


class StopAfter(Callback):
    """Stands for a power cut: ends training after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def main(tiny: bool) -> None:
    adata = pv.data.synthetic_iid(batch_size=50 if tiny else 400, n_genes=30 if tiny else 200)
    pv.model.SCVI.setup_anndata(adata, batch_key="batch")
    epochs = 6 if tiny else 40
    options = {"max_epochs": epochs, "accelerator": "cpu", "enable_progress_bar": False}

    straight = pv.model.SCVI(adata)
    straight.train(**options)

    with tempfile.TemporaryDirectory() as folder:
        stopped = pv.model.SCVI(adata)
        stopped.train(
            **options,
            enable_checkpointing=True,
            default_root_dir=folder,
            callbacks=[StopAfter(epochs // 2)],
        )
        print(f"stopped after {len(stopped.history['elbo_train'])} of {epochs} epochs")

        # a new model, as in a new process: everything it needs is in the checkpoint
        resumed = pv.model.SCVI(adata)
        resumed.train(**options, ckpt_path=Path(folder) / "last.ckpt")

    pairs = zip(
        straight.module.state_dict().values(), resumed.module.state_dict().values(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    print(f"resumed and trained to epoch {epochs}: the same parameters as without the stop")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few seconds, for tests")
    main(parser.parse_args().tiny)
