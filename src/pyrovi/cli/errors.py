"""Errors and warnings on the command line: one clean message each; errors exit with code 2."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from pyrovi.errors import PyroviError

EXIT_CODE = 2
"""Exit code of a wrong input, as of a wrong option."""


class CleanErrors(TyperGroup):
    """Group of commands that prints a :class:`~pyrovi.errors.PyroviError` without its traceback.

    ``--debug`` lets it through. Any other exception is a defect and always shows its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with warnings.catch_warnings():  # puts showwarning back
                warnings.showwarning = _warner()
                return super().invoke(ctx)
        except (PyroviError, TypeError, ValueError) as error:
            # Of the built-in ones, those that the options of the command line can cause.
            if ctx.params.get("debug") or not _is_about_input(error):
                raise
            typer.secho(f"{type(error).__name__}: ", fg="red", bold=True, nl=False, err=True)
            typer.echo(str(error), err=True)
            raise typer.Exit(EXIT_CODE) from error


def _is_about_input(error: Exception) -> bool:
    """Whether an error tells of a wrong option: ours, or one of Lightning, torch or a signature."""
    known = ("accelerator", "devices", "learning rate", "unexpected keyword argument")
    return isinstance(error, PyroviError) or any(part in str(error).lower() for part in known)


def _warner() -> Callable[..., None]:
    """Function that prints a warning once, without the place in the code that raised it."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        if text not in seen:
            seen.add(text)
            typer.secho("Warning: ", fg="yellow", bold=True, nl=False, err=True)
            typer.echo(text, err=True)

    return show
