"""``pyrovi info``: what a saved model is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def info(
    model: Annotated[Path, typer.Argument(help="Folder of the saved model.", metavar="DIR")],
    import_: Annotated[
        str | None,
        typer.Option("--import", help="Module that defines the class of the model, if your own."),
    ] = None,
) -> None:
    """Show what a saved model is: class, arguments, data, training, sites, versions.

    [bold]Examples[/bold]

    [cyan]$ pyrovi info model[/cyan]

    The sites of a class of your own are shown if its module is named:

    [cyan]$ pyrovi info model --import my_models[/cyan]
    """
    from rich.console import Console

    from pyrovi.cli.classes import import_module
    from pyrovi.errors import SaveLoadError
    from pyrovi.model.files import read_tensors
    from pyrovi.model.persistence import load_any, read_description

    console = Console()
    if import_ is not None:
        import_module(import_)
    description = read_description(model)
    saved = f"saved {description.get('saved_at', 'at an unknown time')}"
    console.print(f"[bold]{description['class']}[/bold] in {model}, {saved}", highlight=False)
    for title, rows in _facts(description).items():
        console.print(_table(title, rows))
    read_tensors(model)  # a damaged model is an error, a class not imported is none
    try:
        loaded = load_any(model)
    except SaveLoadError as error:
        console.print(f"Sites: {error}", highlight=False)
        return
    console.print(_sites(loaded))


def _facts(description: dict[str, Any]) -> dict[str, dict[str, Any]]:
    registry = description["registry"]
    setup = {k: v for k, v in registry.get("setup_args", {}).items() if v is not None}
    training = description.get("training") or {}
    history = description.get("history", {})
    facts: dict[str, Any] = {
        "trained": "yes" if description.get("is_trained") else "no",
        "training observations": training.get("n_obs"),
        "epochs": training.get("epochs"),
    }
    for key, name in (("elbo_train", "ELBO, training"), ("elbo_validation", "ELBO, held out")):
        if history.get(key):
            last = max(history[key], key=int)
            facts[f"{name} (nats per observation)"] = _bound(history[key][last])
    return {
        "Arguments": description["arguments"],
        "Set up with": setup or {"": "no arguments"},
        "Data": {
            key: size
            for entry in registry["field_registries"].values()
            for key, size in entry["summary_stats"].items()
        },
        "Training": facts,
        "Versions": description.get("versions", {}),
    }


def _bound(loss: Any) -> str:
    return f"{-loss:.2f}" if isinstance(loss, int | float) else str(loss)


def _table(title: str, rows: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold cyan", box=None)
    table.show_header = False
    for name, value in rows.items():
        table.add_row(Text(str(name)), Text("–" if value is None else str(value)))
    return table


def _sites(model: Any) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Sites", title_justify="left", title_style="bold cyan", box=None)
    for column in ("name", "role", "plates", "shape"):
        table.add_column(column)
    for site in model.sites.values():
        shape = ", ".join(map(str, site.shape)) or "one number"
        table.add_row(*map(Text, (site.name, str(site.role), ", ".join(site.plates) or "–", shape)))
    return table
