"""Data-parallel training: two processes on one machine, which end with the same parameters.

Lightning starts the second process by running this script once more. Each process works on its
share of the cells; the gradients are averaged after every minibatch.

Run: python examples/ddp.py [--tiny]
"""

from __future__ import annotations

import argparse
import warnings

import torch
import torch.distributed

import pyrovi as pv


def main(tiny: bool) -> None:
    adata = pv.data.synthetic_iid(batch_size=60 if tiny else 400, n_genes=30 if tiny else 200)
    pv.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = pv.model.SCVI(adata)
    model.train(
        max_epochs=2 if tiny else 20,
        batch_size=32,  # of each process
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        enable_progress_bar=False,
    )

    parameters = torch.cat([value.flatten() for value in model.module.parameters()]).detach()
    everyone = [torch.empty_like(parameters) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everyone, parameters)
    assert torch.equal(*everyone), "the processes disagree"
    if torch.distributed.get_rank() == 0:
        elbo = -model.history["elbo_train"].iloc[-1, 0]
        print(f"{len(everyone)} processes, the same {len(parameters):,} parameters")
        print(f"training ELBO per cell, over all processes: {elbo:.2f} nats")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few seconds, for tests")
    warnings.filterwarnings("ignore", ".*nested tensors.*")
    main(parser.parse_args().tiny)
