"""Training from disk against training in memory: speed and peak resident memory.

Counts of ``--cells`` cells x 2,000 genes are simulated and written to disk in pieces. An epoch of
minibatches of 128 is then loaded, and SCVI trained for an epoch, from disk (the h5ad file as it is,
and the shuffled zarr store made of it) and in memory, each in a process of its own, in turn. The
goals are those of training; the speed of loading alone is for information.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from children import answer_of, machine
from peers import ROOT

N_GENES = 2000
BATCH_SIZE = 128
PIECE = 10_000
N_TYPES = 8
GOALS = {"ratio": 0.7, "gib": 3.0}
PAGE = ROOT / "docs" / "benchmarks_disk.md"
STORES = ("cells.h5ad", "cells.zarr")


def simulate(n_cells: int, folder: Path, n_genes: int = N_GENES) -> dict[str, Any]:
    """Sparse counts, 7 % of them not zero, sorted by cell type; written piece by piece."""
    import h5py
    import pandas as pd
    from anndata.io import write_elem

    rng = np.random.default_rng(0)
    probabilities = rng.beta(0.7, 9.3, size=(N_TYPES, n_genes)).astype(np.float32)
    types = np.arange(n_cells) * N_TYPES // n_cells
    with h5py.File(folder / "cells.h5ad", "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        names = pd.Index([f"cell{i}" for i in range(n_cells)])
        write_elem(file, "obs", pd.DataFrame({"type": types.astype(str)}, index=names))
        write_elem(file, "var", pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))
        group = file.create_group("X")
        shape = [n_cells, n_genes]
        group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape}
        )
        options = {"shape": (0,), "maxshape": (None,), "chunks": (2**16,)}
        data = group.create_dataset("data", dtype=np.float32, **options)
        indices = group.create_dataset("indices", dtype=np.int32, **options)
        ends = [np.zeros(1, dtype=np.int64)]
        for start in range(0, n_cells, PIECE):
            own = types[start : start + PIECE]
            found = rng.random((len(own), n_genes), dtype=np.float32) < probabilities[own]
            found[:, 0] = True  # no cell is empty
            rows, columns = np.nonzero(found)
            first = int(ends[-1][-1])
            for array, values in ((data, rng.geometric(0.6, len(rows))), (indices, columns)):
                array.resize((first + len(rows),))
                array[first:] = values
            ends.append(first + np.cumsum(found.sum(1)))
        narrow = ends[-1][-1] <= np.iinfo(np.int32).max  # as SciPy would have it
        group["indptr"] = np.concatenate(ends).astype(np.int32 if narrow else np.int64)
        return {"non_zero": float(ends[-1][-1] / (n_cells * n_genes))}


def shuffle(folder: Path) -> dict[str, Any]:
    """The converter."""
    import pyrovi as pv

    pv.data.shuffled_store(folder / "cells.h5ad", folder / "cells.zarr")
    return {}


def opened(store: Path, in_memory: bool) -> Any:
    """The data, and a model class that they are set up for."""
    import anndata

    import pyrovi as pv

    adata = anndata.read_h5ad(store) if in_memory else pv.data.open_store(store)
    pv.model.SCVI.setup_anndata(adata)
    return adata


def load(store: Path, in_memory: bool) -> dict[str, Any]:
    """One epoch of shuffled minibatches."""
    import pyrovi as pv
    from pyrovi.dataloaders import AnnDataLoader

    manager = pv.model.SCVI(opened(store, in_memory)).adata_manager
    loader = AnnDataLoader(manager, batch_size=BATCH_SIZE, shuffle=True)
    began = time.perf_counter()
    seen = sum(batch.n for batch in loader)
    return {"cells": seen, "seconds": time.perf_counter() - began}


def train(store: Path, in_memory: bool) -> dict[str, Any]:
    """One epoch of SCVI on 90 % of the cells, and its validation."""
    import pyrovi as pv

    pv.settings.enable_progress_bar = False
    adata = opened(store, in_memory)
    model = pv.model.SCVI(adata)
    began = time.perf_counter()
    model.train(max_epochs=1, batch_size=BATCH_SIZE)
    seconds = time.perf_counter() - began
    elbo = float(model.history["elbo_validation"].iloc[-1, 0])
    return {"cells": adata.n_obs, "seconds": seconds, "elbo_validation": elbo}


def peak_gib() -> float:
    """Largest resident memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def run(job: str, *arguments: Any) -> dict[str, Any]:
    """A job in a process of its own."""
    whole = json.dumps([job, *map(str, arguments)])
    return dict(answer_of(sys.executable, __file__, "--job", whole))


def work(job: str, *arguments: str) -> None:
    """What :func:`run` starts."""
    began = time.perf_counter()
    if job == "simulate":
        result = simulate(int(arguments[0]), Path(arguments[1]))
    elif job == "shuffle":
        result = shuffle(Path(arguments[0]))
    else:
        task = {"load": load, "train": train}[job]
        result = task(Path(arguments[0]), arguments[1] == "memory")
    result["gib"] = peak_gib()
    result.setdefault("seconds", time.perf_counter() - began)
    print(json.dumps(result))


def compare(task: str, folder: Path, rounds: int) -> tuple[list[str], bool]:
    """Speeds of a task from each store against memory; whether the goals are met."""
    results: dict[str, list[dict[str, Any]]] = {"memory": [], **{name: [] for name in STORES}}
    for _ in range(rounds):
        results["memory"].append(run(task, folder / STORES[0], "memory"))
        for name in STORES:
            results[name].append(run(task, folder / name, "disk"))
    rows, passed = [], True
    for name, found in results.items():
        rates = [r["cells"] / r["seconds"] for r in found]
        ratios = [
            b["seconds"] / a["seconds"] for a, b in zip(found, results["memory"], strict=True)
        ]
        gib, ratio = max(r["gib"] for r in found), statistics.median(ratios)
        judged = task == "train" and name != "memory"
        passed &= not judged or (ratio >= GOALS["ratio"] and gib <= GOALS["gib"])
        elbo = found[-1].get("elbo_validation")
        rows.append(
            f"| {task} | {name} | {statistics.median(rates):,.0f} | {ratio:.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {gib:.2f} | "
            f"{'' if elbo is None else f'{elbo:.2f}'} |"
        )
        print(rows[-1], flush=True)
    return rows, passed


def main() -> None:
    """Simulate, measure, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds")
    parser.add_argument("--folder", type=Path, help="where to write the data (default: temporary)")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        work(*json.loads(options.job))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        written = run("simulate", options.cells, folder)
        print(f"Written in {written['seconds']:.0f} s", flush=True)
        made = run("shuffle", folder)
        print(f"Shuffled in {made['seconds']:.0f} s", flush=True)
        tables = [compare(task, folder, options.rounds) for task in ("load", "train")]
    text = _PAGE.format(
        cells=options.cells, genes=N_GENES, non_zero=written["non_zero"], batch=BATCH_SIZE,
        rows="\n".join(row for rows, _ in tables for row in rows), rounds=options.rounds,
        seconds=made["seconds"], gib=made["gib"], machine=machine(), goals=GOALS,
    )  # fmt: skip
    PAGE.write_text(text)
    print(f"Wrote {PAGE.relative_to(ROOT)}")
    if not all(passed for _, passed in tables):
        raise SystemExit(f"not reached: {GOALS['ratio']}x of memory within {GOALS['gib']} GiB")


_PAGE = """\
# Data on disk

This page is written by `make bench` (`tests/benchmarks/out_of_core.py`); do not edit it by hand.

{cells:,} simulated cells with {genes:,} genes, {non_zero:.1%} of whose counts are not zero: loading
all of them in a random order, and an epoch of SCVI with its validation, in minibatches of {batch},
from files on disk and with the counts in memory. Every run is a process of its own.

| task | data | cells per second | ratio to memory | peak GiB | validation loss |
| --- | --- | --- | --- | --- | --- |
{rows}

Ratios are medians over {rounds} round(s). From disk, training has to reach {goals[ratio]:g} of the
speed in memory within {goals[gib]:g} GiB. `shuffled_store` wrote the shuffled file in
{seconds:.0f} s, with {gib:.2f} GiB at most.

Machine: {machine}.
"""


if __name__ == "__main__":
    main()
