"""``pyrovi demo``: the whole path on real cells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

SMALL = 5_000_000
"""Number of entries of the data up to which one thread is about as fast as several."""


def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="Counts: .h5ad or .zarr (default: 700 blood cells of scanpy)."),
    ] = None,
    labels_key: Annotated[
        str | None, typer.Option(help="obs column of cell types, to compare with.")
    ] = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column of batches.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer with raw counts (default: X).")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path(
        "demo_output"
    ),
    max_epochs: Annotated[int | None, typer.Option(min=1, help="Epochs (default: 400).")] = None,
    num_draws: Annotated[
        int, typer.Option(min=2, help="Replicated data sets of the predictive checks.")
    ] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of torch (default: 1 for small data, else all cores)."),
    ] = None,
) -> None:
    """Fit SCVI to real cells, check the fit, and write a report.

    Without --data, the cells are 700 peripheral blood cells that come with scanpy: nothing is
    downloaded. The folder then holds report.html with all results, the model, the latent space, a
    UMAP, predictive checks, and posterior draws for ArviZ.

    [bold]Examples[/bold]

    [cyan]$ pyrovi demo[/cyan]

    [cyan]$ pyrovi demo --data cells.h5ad --labels-key cell_type --batch-key donor \
--out results[/cyan]
    """
    from rich.console import Console

    from pyrovi._settings import settings
    from pyrovi.cli.files import read_data
    from pyrovi.demo.dataset import LABELS_KEY, bundled_pbmc
    from pyrovi.demo.job import MAX_EPOCHS, run_demo

    settings.seed = seed
    console = Console()
    if data is None:
        adata, source = bundled_pbmc(), "700 peripheral blood cells (10x Genomics, via scanpy)"
        labels_key = labels_key or LABELS_KEY
    else:
        adata, source = read_data(data), data.name
    _set_threads(threads, adata.n_obs * adata.n_vars)
    result = run_demo(
        adata,
        out,
        labels_key=labels_key,
        batch_key=batch_key,
        layer=layer,
        max_epochs=max_epochs or MAX_EPOCHS,
        num_draws=num_draws,
        source=source,
        say=lambda step: console.print(f"[cyan]·[/cyan] {step}", highlight=False),
    )
    _tell(console, result)


def _set_threads(threads: int | None, size: int) -> None:
    """Use few threads for small data: where cores are shared, more of them wait for each other."""
    import torch

    if threads is not None or size <= SMALL:
        torch.set_num_threads(threads or 1)


def _tell(console: Any, result: Any) -> None:
    console.print()
    console.print(_table("Fit: lower bounds on the log evidence per cell, in nats", result.bounds))
    if result.agreement is not None:
        console.print(_table("Cell types in the latent space", result.agreement))
    console.print(_table("Posterior predictive checks", result.checks.summary()))
    console.print(f"Written to [bold]{result.out}/[/bold]", highlight=False)
    for name, what in result.files.items():
        console.print(f"  {name:<24} {what}", highlight=False, soft_wrap=True)
    console.print(f"Took {sum(result.seconds.values()):.0f} s.", highlight=False)


def _table(title: str, frame: Any) -> Any:
    from rich.table import Table

    from pyrovi.criticism.document import format_value

    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column(str(frame.index.name))
    for column in frame.columns:
        table.add_column(str(column), justify="right")
    for name, row in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        table.add_row(str(name), *map(format_value, row))
    return table
