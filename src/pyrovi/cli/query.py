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
    predict: Annotated[
        Path | None,
        typer.Option(
            help="Write the most probable label of each cell, and the probability of every label, "
            "of a model that predicts labels: .csv, .h5ad or .npy (probabilities only)."
        ),
    ] = None,
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
        int,
        typer.Option(min=1, help="Posterior draws of the statistics, predictions and the ELBO."),
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

    The cell types that SCANVI or CellAssign find, with their probabilities:

    [cyan]$ pyrovi query model cells.h5ad --predict types.csv[/cyan]
    """
    import numpy as np
    from rich.console import Console

    from pyrovi._settings import settings
    from pyrovi.cli.classes import import_module, known_models
    from pyrovi.cli.files import check_table, read_data, select_rows
    from pyrovi.errors import ModelError
    from pyrovi.model.persistence import load_any

    if import_ is not None:
        import_module(import_)
    tables = _sites(site or [])
    if normalized_expression is not None:
        tables["rho"] = normalized_expression
    for path in [*tables.values(), *([latent] if latent else []), *([predict] if predict else [])]:
        check_table(path)
    if not (tables or latent or predict or elbo):
        raise ModelError(
            "Nothing was asked for: give --latent FILE, --normalized-expression FILE, "
            "--site SITE=FILE, --predict FILE or --elbo."
        )
    settings.seed = seed
    loaded = load_any(model)
    _check_sites(loaded, list(tables))
    if predict is not None and not hasattr(loaded, "predict"):
        raise ModelError(
            f"{type(loaded).__name__} predicts no labels. Models that do: "
            f"{', '.join(known_models(having='predict'))}; or a class of your own with a predict()."
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
        names = _latent_names(loaded, values)
        _write(console, latent, np.asarray(values), adata.obs_names[rows], names)
    for name, path in tables.items():
        draws = loaded.sample_posterior(name, num_samples=num_samples, reduce=statistic, **options)[
            name
        ]
        _write_site(console, path, name, draws, adata.obs_names[rows])
    if predict is not None:
        probabilities = _probabilities(loaded, num_samples=num_samples, **options)
        columns = [str(label) for label in probabilities.columns]
        labels = np.array(columns, dtype=object)[probabilities.to_numpy().argmax(1)]
        table = probabilities.to_numpy()
        _write(console, predict, table, adata.obs_names[rows], columns, labels)
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


def _check_sites(model: Any, names: list[str]) -> None:
    """Refuse names of no site, and sites without statistics."""
    from pyrovi.errors import ModelError
    from pyrovi.model.discrete import check_no_categories

    if unknown := [name for name in names if name not in model.sites]:
        raise ModelError(
            f"{type(model).__name__} has no site {', '.join(map(repr, unknown))}; its sites are: "
            f"{', '.join(model.sites)}."
        )
    try:
        check_no_categories(model, (model.sites[name] for name in names))
    except ModelError as error:
        here = " On the command line: --predict FILE." if hasattr(model, "predict") else ""
        raise ModelError(f"{error}{here}") from error


def _latent_names(model: Any, values: Any) -> list[str]:
    """Names of the latent dimensions: those of the table, of the loadings, or numbers."""
    from pyrovi.model.loadings import factor_names

    if hasattr(values, "columns"):
        return list(map(str, values.columns))
    n_latent = values.shape[1]
    if hasattr(model, "get_loadings"):
        return factor_names(n_latent)
    return [f"latent_{i}" for i in range(n_latent)]


def _probabilities(model: Any, **options: Any) -> Any:
    """Table of the probabilities of labels: what ``predict`` returns, softly if it can.

    Raises
    ------
    ModelError
        If it is none, as of a class of the user's own.
    """
    import inspect

    import pandas as pd

    from pyrovi.errors import ModelError

    soft = {"soft": True} if "soft" in inspect.signature(model.predict).parameters else {}
    found = model.predict(**soft, **options)
    if not isinstance(found, pd.DataFrame):
        raise ModelError(
            f"{type(model).__name__}.predict() gave a {type(found).__name__}. Expected a DataFrame "
            "of probabilities, observations x labels (if asked for soft=True, where it takes it)."
        )
    return found


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


def _write(
    console: Any, path: Path, values: Any, rows: Any, columns: Any, labels: Any = None
) -> None:
    from pyrovi.cli.files import write_table

    write_table(path, values, rows, columns, labels)
    shape = " x ".join(f"{size:,}" for size in values.shape)
    console.print(f"{shape} -> [bold]{path}[/bold]", highlight=False, soft_wrap=True)
