"""``pyrovi query``: ask a saved model about data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def query(
    model: Annotated[Path, typer.Argument(help="Folder of the saved model.", metavar="DIR")],
    data: Annotated[
        Path, typer.Argument(help="Data with the model's variables: .h5ad, .h5mu or .zarr.")
    ],
    latent: Annotated[
        Path | None, typer.Option(help="Write the latent space: .csv, .npy or .h5ad.")
    ] = None,
    normalized_expression: Annotated[
        Path | None,
        typer.Option(help="Write the normalised expression (posterior mean): .csv, .npy or .h5ad."),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Write a statistic of any site of the model, SITE=FILE; repeat for more.",
            metavar="SITE=FILE",
        ),
    ] = None,
    statistic: Annotated[
        str, typer.Option(help="Statistic of --site: mean, sd, median, q05, q95, ...")
    ] = "mean",
    elbo: Annotated[
        bool, typer.Option("--elbo", help="Print the evidence lower bound per observation.")
    ] = False,
    indices: Annotated[
        Path | None,
        typer.Option(help="Text file: positions of the cells to query, one a line, from 0."),
    ] = None,
    obs_names: Annotated[
        Path | None, typer.Option(help="Text file: names of the cells to query, one a line.")
    ] = None,
    backed: Annotated[
        bool,
        typer.Option(
            "--backed", help="Leave the matrices on disk: for .h5ad and .zarr larger than memory."
        ),
    ] = False,
    num_samples: Annotated[
        int, typer.Option(min=1, help="Posterior draws of the statistics and the ELBO.")
    ] = 25,
    batch_size: Annotated[int, typer.Option(min=1, help="Cells per minibatch.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    import_: Annotated[
        str | None,
        typer.Option("--import", help="Module that defines the class of the model, if your own."),
    ] = None,
) -> None:
    """Query a saved model about data: its own, a part of them, or new cells.

    [bold]Examples[/bold]

    The latent space of all cells, and how well the model describes them:

    [cyan]$ pyrovi query model cells.h5ad --latent latent.csv --elbo[/cyan]

    Normalised expression of the cells that a file names:

    [cyan]$ pyrovi query model cells.h5ad --obs-names b_cells.txt \
--normalized-expression b_cells.h5ad[/cyan]

    The 5 % quantile of any site (see [cyan]pyrovi info[/cyan] for their names):

    [cyan]$ pyrovi query model cells.h5ad --site mu=low.npy --statistic q05[/cyan]
    """
    from rich.console import Console

    from pyrovi._settings import settings
    from pyrovi.cli.classes import import_module
    from pyrovi.cli.files import check_table, read_data, select_rows
    from pyrovi.errors import ModelError
    from pyrovi.model.persistence import load_any

    if import_ is not None:
        import_module(import_)
    tables = _sites(site or [])
    if normalized_expression is not None:
        tables["rho"] = normalized_expression
    for path in [*tables.values(), *([latent] if latent else [])]:
        check_table(path)
    if not (tables or latent or elbo):
        raise ModelError(
            "Nothing was asked for: give --latent FILE, --normalized-expression FILE, "
            "--site SITE=FILE or --elbo."
        )
    settings.seed = seed
    loaded = load_any(model)
    unknown = [name for name in tables if name not in loaded.sites]
    if unknown:
        raise ModelError(
            f"{type(loaded).__name__} has no site {', '.join(map(repr, unknown))}; its sites are: "
            f"{', '.join(loaded.sites)}."
        )
    if latent is not None and not hasattr(loaded, "get_latent_representation"):
        raise ModelError(
            f"{type(loaded).__name__} has no latent representation; ask for a site: "
            f"--site SITE=FILE with SITE one of {', '.join(loaded.sites)}."
        )
    adata = read_data(data, backed=backed)
    rows = select_rows(adata, indices, obs_names)
    options: dict[str, Any] = {"adata": adata, "indices": rows, "batch_size": batch_size}
    console = Console()
    if latent is not None:
        values = loaded.get_latent_representation(**options)
        names = [f"latent_{i}" for i in range(values.shape[1])]
        _write(console, latent, values, adata.obs_names[rows], names)
    for name, path in tables.items():
        draws = loaded.sample_posterior(name, num_samples=num_samples, reduce=statistic, **options)[
            name
        ]
        _write_site(console, path, name, draws, adata.obs_names[rows])
    if elbo:
        bound = loaded.get_elbo(num_samples=num_samples, **options)
        console.print(
            f"ELBO {bound:.4f} nats per observation, over {len(rows):,} observations "
            "(a lower bound on the log evidence)",
            highlight=False,
            soft_wrap=True,
        )


def _sites(pairs: list[str]) -> dict[str, Path]:
    from pyrovi.errors import ModelError

    tables: dict[str, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise ModelError(f"--site takes SITE=FILE, e.g. mu=mu.csv; got {pair!r}.")
        tables[name] = Path(path)
    return tables


def _write_site(console: Any, path: Path, name: str, values: Any, obs_names: Any) -> None:
    """Write a labelled result with at most two dimensions; its first one gives the rows."""
    from pyrovi.errors import ModelError

    if values.ndim > 2:
        raise ModelError(
            f"Site {name!r} has dimensions {values.dims}; only tables of two can be written."
        )
    array = values.to_numpy()
    if values.ndim == 0:
        array = array[None]
    labels = [list(map(str, values[dim].to_numpy())) for dim in values.dims]
    rows = labels[0] if labels else [name]
    if values.dims[:1] == ("obs",):
        rows = list(obs_names)
    columns = labels[1] if values.ndim == 2 else [name]
    _write(console, path, array.reshape(len(rows), -1), rows, columns)


def _write(console: Any, path: Path, values: Any, rows: Any, columns: Any) -> None:
    from pyrovi.cli.files import write_table

    write_table(path, values, rows, columns)
    shape = " x ".join(f"{size:,}" for size in values.shape)
    console.print(f"{shape} -> [bold]{path}[/bold]", highlight=False, soft_wrap=True)
