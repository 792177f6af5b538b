"""Cost of SCVI per cell: by number of cells, of genes and of cells per minibatch; and of queries.

Counts are simulated and written to disk in pieces. Every point is a training of its own process on
all cells, from disk, long enough to see 50,000 of them; the time of a call that trains nothing is
taken off. Writes ``docs/benchmarks_scaling.md`` and its figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from children import answer_of, machine
from out_of_core import N_GENES, load, peak_gib, simulate
from peers import ROOT

PAGE = ROOT / "docs" / "benchmarks_scaling.md"
FIGURE = ROOT / "docs" / "_static" / "scaling.svg"
FEWEST = 50_000
QUERIED = 100_000
ATLAS = 100_000_000
LARGE_BATCH = 1024
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


def queries(file: str) -> dict[str, Any]:
    """Seconds and peak memory of the queries that users ask of all cells, in this order."""
    import pyrovi as pv

    pv.settings.enable_progress_bar = False
    adata = pv.data.open_store(file)
    pv.model.SCVI.setup_anndata(adata)
    model = pv.model.SCVI(adata)
    model.train(1, train_size=1.0, batch_size=1024, accelerator="cpu")
    asked = {
        "`get_latent_representation()`": model.get_latent_representation,
        "`get_normalized_expression()`, 100 genes": lambda: model.get_normalized_expression(
            gene_list=list(adata.var_names[:100])
        ),
        "`get_normalized_expression()`, all genes": model.get_normalized_expression,
        "`differential_expression()`, two groups": lambda: model.differential_expression(
            groupby="type", group1="0", group2="1", silent=True
        ),
    }
    seconds = {}
    for name, query in asked.items():
        began = time.perf_counter()
        query()
        seconds[name] = [time.perf_counter() - began, peak_gib()]
    return seconds


def measured(point: Point, folder: Path) -> dict[str, float]:
    """The training of a point in a process of its own; its data are written first."""
    data = folder / f"{point.n_cells}_{point.n_genes}"
    if not data.exists():
        data.mkdir()  # a process that simulates would pass its peak memory on to those it starts
        run_job(str(data), "simulate", str(point.n_cells), str(point.n_genes))
    return run_job(str(data / "cells.h5ad"), str(point.batch_size))


def run_job(*job: str) -> dict[str, Any]:
    """What a job finds in a process of its own."""
    return dict(answer_of(sys.executable, __file__, "--job", *job))


def flatness(results: dict[Point, dict[str, float]]) -> tuple[int, float]:
    """Largest number of cells, and the cost of one of them in units of that of one among 10,000.

    All three curves have measured the latter, at different times: their median is taken.
    """
    usual = [
        r["us"]
        for p, r in results.items()
        if (p.n_cells, p.n_genes, p.batch_size) == (10_000, N_GENES, 128)
    ]
    largest = max((p for p in results if p.curve == "cells"), key=lambda p: p.n_cells)
    return largest.n_cells, results[largest]["us"] / statistics.median(usual)


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
        axes[1, column].set_xlabel(title)
    for first, *_ in axes:  # once all that share the scale are drawn
        first.set_ylim(bottom=0)
    figure.tight_layout()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE)


def write(
    results: dict[Point, dict[str, float]],
    queried: int,
    asked: dict[str, list[float]],
    rate: float,
) -> None:
    """The page; ``rate`` is that of loading alone, in cells per second."""
    rows = "\n".join(
        f"| {p.n_cells:,} | {p.n_genes:,} | {p.batch_size:,} | {r['us']:.0f} | {r['gib']:.2f} |"
        for p, r in results.items()
    )
    n_cells, ratio = flatness(results)
    largest = Point("cells", n_cells=n_cells)
    hours = results[largest]["us"] * ATLAS / 1e6 / 3600
    tenth = Point("cells", n_cells=largest.n_cells // 10)
    growth = (results[largest]["gib"] - results[tenth]["gib"]) / (largest.n_cells - tenth.n_cells)
    smallest = min((p for p in results if p.curve == "batch"), key=lambda p: p.batch_size)
    calls = results[smallest]["us"] * smallest.batch_size / 1e3
    steps = ATLAS / LARGE_BATCH
    reading, calling = ATLAS / rate / 60, steps * calls / 6e4
    answers = "\n".join(f"| {name} | {s:.1f} | {gib:.2f} |" for name, (s, gib) in asked.items())
    text = _PAGE.format(
        rows=rows, hours=hours, answers=answers, queried=queried, machine=machine(), rate=rate,
        reading=reading, calling=calling, together=reading + calling, ratio=ratio, largest=n_cells,
        growth=growth * 2**30, memory=results[largest]["gib"] + growth * (ATLAS - n_cells),
        few=smallest.batch_size, calls=calls, steps=steps, large=LARGE_BATCH,
        eighth={"reading": reading / 8, "calling": calling / 8, "steps": steps / 8,
                "together": (reading + calling) / 8},
    )  # fmt: skip
    PAGE.write_text(text)


_PAGE = """\
# Scaling

This page is written by `tests/benchmarks/scaling.py`; do not edit it by hand.

Training of SCVI (default architecture) on simulated counts, 7 % of which are not zero, read from an
h5ad file on disk; time per cell and epoch, and the peak memory of the process.

![Time per cell, and memory](_static/scaling.svg)

| cells | genes | minibatch | µs per cell | peak GiB |
| --- | --- | --- | --- | --- |
{rows}

## An atlas

A cell among {largest:,} costs {ratio:.2f} times what one among 10,000 does (median of three
measurements), so that costs can be multiplied: an epoch of 100 million cells takes {hours:.1f}
hours on the two cores of this machine. Names, columns of `obs` and the order of an epoch stay in
memory: at most {growth:.0f} bytes a cell, by the last two points, or {memory:.0f} GiB for 100
million.

A GPU takes the computation off the processor, and two costs remain, which bound the epoch from
below:

- **Reading.** Loading alone, without training, gives {rate:,.0f} shuffled cells a second from the
  file with {largest:,} cells (which the system may have kept in memory): {reading:.0f} minutes for
  100 million. Under `devices=8` (Lightning's data-parallel training) every process reads its own
  eighth: {eighth[reading]:.1f} minutes, if disks and cores keep up. Validation on a random tenth of
  the cells reads most of the file once more: leave it out (`train_size=1.0`), or name few cells.
- **Calls.** With minibatches of {large:,}, 100 million cells are {steps:,.0f} steps on one GPU,
  and {eighth[steps]:,.0f} on each of eight, which exchange the gradients of about a million
  parameters (4 MB) at every step. A step takes {calls:.1f} ms with {few} cells, where it computes
  little: that is about what the calls from Python take, whatever the device. {calling:.0f}
  minutes, or {eighth[calling]:.0f}.

One after the other, these are {together:.0f} minutes on one GPU and {eighth[together]:.0f} on
eight, if what the GPU itself computes hides behind them. This is an estimate: no GPU was at hand.

## Queries of {queried:,} cells

One after the other, in one process, from the file on disk; the memory is the peak so far.

| query | seconds | peak GiB |
| --- | --- | --- |
{answers}

Machine: {machine}.
"""


def main() -> None:
    """Measure all points; judge that the cost of a cell is flat in their number."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1_000_000, help="largest number of cells")
    parser.add_argument("--folder", type=Path, help="where to write the data (default: temporary)")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        file, *what = options.job
        if not what:
            print(json.dumps(queries(file)))
        elif what[0] == "simulate":
            print(json.dumps(simulate(int(what[1]), Path(file), int(what[2]))))
        elif what == ["load"]:
            print(json.dumps(load(Path(file), in_memory=False)))
        else:
            print(json.dumps(train(file, int(what[0]))))
        return
    results = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for point in points(options.cells):
            results[point] = measured(point, Path(name))
            print(point, results[point], flush=True)
        queried = min(QUERIED, options.cells)
        asked = run_job(str(Path(name) / f"{queried}_{N_GENES}" / "cells.h5ad"))
        print(asked, flush=True)
        loaded = run_job(str(Path(name) / f"{options.cells}_{N_GENES}" / "cells.h5ad"), "load")
        print(loaded, flush=True)
    draw(results)
    write(results, queried, asked, loaded["cells"] / loaded["seconds"])
    print(f"Wrote {PAGE.relative_to(ROOT)}")
    largest, ratio = flatness(results)
    print(f"cost per cell, {largest:,} against 10,000 cells: {ratio:.2f} (at most {FLAT})")
    if ratio > FLAT:
        raise SystemExit("The cost of a cell grows with their number.")


if __name__ == "__main__":
    main()
