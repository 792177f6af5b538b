"""``pyrovi train``: from a file of counts to a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_DATA, _MODEL, _TRAINING = "What to read from the data", "The model", "Training"


def train(
    data: Annotated[Path, typer.Argument(help="Data: .h5ad, .h5mu or .zarr.", metavar="DATA")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the saved model.")],
    model: Annotated[
        str,
        typer.Option(
            help="Class: one of pyrovi's, or module:Class of your own.", rich_help_panel=_MODEL
        ),
    ] = "SCVI",
    backed: Annotated[
        bool,
        typer.Option(
            "--backed",
            help="Leave the matrices on disk: for .h5ad and .zarr larger than memory.",
            rich_help_panel=_DATA,
        ),
    ] = False,
    layer: Annotated[
        str | None, typer.Option(help="Layer with raw counts (default: X).", rich_help_panel=_DATA)
    ] = None,
    batch_key: Annotated[
        str | None, typer.Option(help="obs column of batches.", rich_help_panel=_DATA)
    ] = None,
    labels_key: Annotated[
        str | None, typer.Option(help="obs column of cell types.", rich_help_panel=_DATA)
    ] = None,
    size_factor_key: Annotated[
        str | None, typer.Option(help="obs column of size factors.", rich_help_panel=_DATA)
    ] = None,
    categorical_covariate: Annotated[
        list[str] | None,
        typer.Option(help="obs column to correct for; repeat for more.", rich_help_panel=_DATA),
    ] = None,
    continuous_covariate: Annotated[
        list[str] | None,
        typer.Option(help="obs column to correct for; repeat for more.", rich_help_panel=_DATA),
    ] = None,
    setup_argument: Annotated[
        list[str] | None,
        typer.Option(
            "--setup",
            "-s",
            help="Further argument of the setup method of the class, name=value; repeat for more.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    n_latent: Annotated[
        int | None, typer.Option(min=1, help="Latent dimensions.", rich_help_panel=_MODEL)
    ] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(
            "--argument",
            "-a",
            help="Further argument of the class, name=value; repeat for more.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    max_epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs (default: by data size).", rich_help_panel=_TRAINING),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cells per minibatch (default: the model's).", rich_help_panel=_TRAINING
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate.", rich_help_panel=_TRAINING)
    ] = None,
    train_size: Annotated[
        float | None,
        typer.Option(help="Share of the cells to train on.", rich_help_panel=_TRAINING),
    ] = None,
    early_stopping: Annotated[
        bool,
        typer.Option(
            "--early-stopping",
            help="Stop when the held-out ELBO has stopped improving; keep the best parameters.",
            rich_help_panel=_TRAINING,
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of everything random.", rich_help_panel=_TRAINING)
    ] = 0,
    accelerator: Annotated[
        str, typer.Option(help="cpu, gpu, auto, ...", rich_help_panel=_TRAINING)
    ] = "auto",
    devices: Annotated[
        int, typer.Option(min=1, help="Number of devices.", rich_help_panel=_TRAINING)
    ] = 1,
    save_data: Annotated[
        bool, typer.Option("--save-data", help="Save the data with the model.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model saved there before.")
    ] = False,
) -> None:
    """Train a model on raw counts and save it to a folder.

    [bold]Examples[/bold]

    SCVI on the counts in X, corrected for donors:

    [cyan]$ pyrovi train cells.h5ad --batch-key donor --out model[/cyan]

    Counts in a layer, 20 latent dimensions, a negative binomial likelihood, early stopping:

    [cyan]$ pyrovi train cells.h5ad --layer counts --n-latent 20 -a gene_likelihood=nb \
--early-stopping --out model[/cyan]

    A class of your own, [italic]Factors[/italic] in my_models.py of this folder:

    [cyan]$ pyrovi train cells.h5ad --model my_models:Factors --out model[/cyan]

    RNA and proteins, whose counts are in obsm:

    [cyan]$ pyrovi train cells.h5ad --model TOTALVI -s protein_expression_obsm_key=proteins \
--out model[/cyan]

    [bold]Next[/bold]

    [cyan]$ pyrovi query model cells.h5ad --latent latent.csv[/cyan]
    """
    from rich.console import Console

    from pyrovi._settings import settings
    from pyrovi.cli.classes import accepted, model_class, parse_arguments, setup_method
    from pyrovi.cli.files import read_data
    from pyrovi.dataloaders import distributed_rank_and_size
    from pyrovi.model.files import check_target

    settings.seed = seed
    check_target(out, overwrite)
    cls = model_class(model)
    columns = {
        "layer": layer,
        "batch_key": batch_key,
        "labels_key": labels_key,
        "size_factor_key": size_factor_key,
        "categorical_covariate_keys": categorical_covariate or None,
        "continuous_covariate_keys": continuous_covariate or None,
    }
    options = {"n_latent": n_latent} | parse_arguments(argument or [])
    options = accepted(cls.__init__, options, cls.__name__, "-a")
    training: dict[str, Any] = {"lr": lr, "train_size": train_size, "batch_size": batch_size}
    training["early_stopping"] = early_stopping or None  # what is not given, the model decides
    training = {name: value for name, value in training.items() if value is not None}

    console = Console()
    prepare = setup_method(cls, data)
    columns |= parse_arguments(setup_argument or [])
    setup = accepted(prepare, columns, f"{cls.__name__}.{prepare.__name__}", "-s")
    adata = read_data(data, backed=backed)
    prepare(adata, **setup)
    made = cls(adata, **options)
    console.print(
        f"Training [bold]{cls.__name__}[/bold] on {adata.n_obs:,} observations x "
        f"{adata.n_vars:,} variables"
    )
    made.train(
        max_epochs,
        accelerator=accelerator,
        devices=devices,
        **training,
    )
    if distributed_rank_and_size()[0] > 0:  # every rank runs the command; one speaks and saves
        return
    made.save(out, overwrite=overwrite, save_anndata=save_data)
    _tell_fit(console, made)
    console.print(f"Saved to [bold]{out}[/bold]", highlight=False)


def _tell_fit(console: Any, model: Any) -> None:
    history = model.history
    epochs = len(history["elbo_train"])
    parts = [f"{epochs} epochs"]
    for key, name in (("train", "training"), ("validation", "held out")):
        if f"elbo_{key}" in history:
            bound = -history[f"elbo_{key}"].iloc[-1, 0]
            parts.append(f"{name} ELBO {bound:.2f}")
    console.print(", ".join(parts) + " nats per observation (lower bounds)", highlight=False)
    if (record := model._training) is not None and record.stopping_reason:
        console.print(f"Stopped early: {record.stopping_reason}", highlight=False)
