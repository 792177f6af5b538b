"""The command line: ``pyrovi train``, ``query``, ``info`` and ``demo``."""

from __future__ import annotations

from typing import Annotated

import typer

from pyrovi.cli.demo import demo
from pyrovi.cli.errors import CleanErrors
from pyrovi.cli.info import info
from pyrovi.cli.query import query
from pyrovi.cli.train import train

app = typer.Typer(
    name="pyrovi",
    cls=CleanErrors,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"pyrovi {version('pyrovi')}")
        raise typer.Exit


@app.callback()
def _pyrovi(
    debug: Annotated[  # read by CleanErrors
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Probabilistic programming for annotated data matrices.

    A model is trained on counts in a file, saved to a folder, and queried from there:

    [cyan]$ pyrovi train cells.h5ad --batch-key donor --out model[/cyan]

    [cyan]$ pyrovi info model[/cyan]

    [cyan]$ pyrovi query model cells.h5ad --latent latent.csv[/cyan]

    [cyan]$ pyrovi demo[/cyan]   (all of it on real cells, with a report)

    [cyan]pyrovi COMMAND --help[/cyan] explains a command, with examples.
    """


for _command in (train, query, info, demo):
    app.command(no_args_is_help=_command is not demo)(_command)


def main() -> None:
    """Entry point of the ``pyrovi`` command."""
    app()
