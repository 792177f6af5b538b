"""Cost of SCVI per cell: by number of cells, of genes and of cells per minibatch.

Counts are simulated and written to disk in pieces. Every point is a training of its own process on
all cells, from disk, long enough to see 50,000 of them; the time of a call that trains nothing is
taken off. Writes ``docs/benchmarks_scaling.md`` and its figure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from out_of_core import N_GENES, peak_gib, simulate
from peers import ROOT
from run import machine

PAGE = ROOT / "docs" / "benchmarks_scaling.md"
FIGURE = ROOT / "docs" / "_static" / "scaling.svg"
FEWEST = 50_000
ATLAS = 100_000_000
FLAT = 1.15
"""Largest cost of a cell among a million, in units of that of one among ten thousand."""


@dataclass(frozen=True)
class Point:
    """One training."""

    curve: str
    n_cells: int = 10_000
    n_genes: int = N_GENES
    batch_size: int = 128

    @property
    def x(self) -> int:
        """What the curve is over."""
        return {"cells": self.n_cells, "genes": self.n_genes, "batch": self.batch_size}[self.curve]


CURVES = {
    "cells": "cells",
    "genes": "genes, 10,000 cells",
    "batch": "cells per minibatch, 10,000 cells",
}


def points(largest: int) -> list[Point]:
    """All of them, the largest number of cells given."""
    cells = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= largest]
    return [
        *(Point("cells", n_cells=n) for n in cells),
        *(Point("genes", n_genes=n) for n in (500, 2_000, 5_000, 20_000)),
        *(Point("batch", batch_size=n) for n in (32, 128, 512, 2_048)),
    ]


def train(file: str, batch_size: int) -> dict[str, float]:
    """Microseconds per cell, and peak memory."""
    import pyrovi as pv

    pv.settings.enable_progress_bar = False
    adata = pv.data.open_store(file)
    pv.model.SCVI.setup_anndata(adata)
    model = pv.model.SCVI(adata)
    options: dict[str, Any] = {"train_size": 1.0, "batch_size": batch_size, "accelerator": "cpu"}
    model.train(1, limit_train_batches=1, **options)
    began = time.perf_counter()
    model.train(1, limit_train_batches=1, **options)
    start = time.perf_counter() - began
    epochs = max(1, -(-FEWEST // adata.n_obs))
    began = time.perf_counter()
    model.train(epochs, **options)
    seconds = time.perf_counter() - began - start
    return {"us": 1e6 * seconds / (epochs * adata.n_obs), "gib": peak_gib()}


def measured(point: Point, folder: Path) -> dict[str, float]:
    """The training of a point in a process of its own; its data are written first."""
    data = folder / f"{point.n_cells}_{point.n_genes}"
    if not data.exists():
        data.mkdir()
        simulate(point.n_cells, data, point.n_genes)
    command = [sys.executable, __file__, "--job", str(data / "cells.h5ad"), str(point.batch_size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{point} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def draw(results: dict[Point, dict[str, float]]) -> None:
    """Time and memory over each of the three sizes."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(9, 4.8), sharex="col", sharey="row")
    for column, (curve, title) in enumerate(CURVES.items()):
        own = {p: r for p, r in results.items() if p.curve == curve}
        for row, (key, label) in enumerate((("us", "µs per cell"), ("gib", "peak memory, GiB"))):
            axis = axes[row, column]
            axis.plot([p.x for p in own], [r[key] for r in own.values()], "o-", color="#1f6f8b")
            axis.set_xscale("log")
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
        axes[1, column].set_xlabel(title)
    axes[0, 0].set_yscale("log")
    figure.tight_layout()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE)


def write(results: dict[Point, dict[str, float]]) -> None:
    """The page."""
    rows = "\n".join(
        f"| {p.n_cells:,} | {p.n_genes:,} | {p.batch_size:,} | {r['us']:.0f} | {r['gib']:.2f} |"
        for p, r in results.items()
    )
    largest = max((p for p in results if p.curve == "cells"), key=lambda p: p.n_cells)
    hours = results[largest]["us"] * ATLAS / 1e6 / 3600
    PAGE.write_text(_PAGE.format(rows=rows, hours=hours, machine=machine()))


_PAGE = """\
# Scaling

This page is written by `tests/benchmarks/scaling.py`; do not edit it by hand.

Training of SCVI (default architecture) on simulated counts, 7 % of which are not zero, read from an
h5ad file on disk; time per cell and epoch, and the peak memory of the process.

![Time per cell, and memory](_static/scaling.svg)

| cells | genes | minibatch | µs per cell | peak GiB |
| --- | --- | --- | --- | --- |
{rows}

The cost of a cell does not depend on how many there are, so that it can be multiplied: an epoch of
100 million cells takes {hours:.1f} hours on this machine.

Machine: {machine}.
"""


def main() -> None:
    """Measure all points; judge that the cost of a cell is flat in their number."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1_000_000, help="largest number of cells")
    parser.add_argument("--folder", type=Path, help="where to write the data (default: temporary)")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(train(options.job[0], int(options.job[1]))))
        return
    results = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for point in points(options.cells):
            results[point] = measured(point, Path(name))
            print(point, results[point], flush=True)
    draw(results)
    write(results)
    print(f"Wrote {PAGE.relative_to(ROOT)}")
    by_cells = {p.n_cells: r["us"] for p, r in results.items() if p.curve == "cells"}
    ratio = by_cells[max(by_cells)] / by_cells[10_000]
    print(f"cost per cell, {max(by_cells):,} against 10,000 cells: {ratio:.2f} (at most {FLAT})")
    if ratio > FLAT:
        raise SystemExit("The cost of a cell grows with their number.")


if __name__ == "__main__":
    main()
