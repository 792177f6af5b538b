"""``python -m pyrovi.cli``: the same as the command ``pyrovi``."""

from __future__ import annotations

from pyrovi.cli import main

main()
