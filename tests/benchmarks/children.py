"""Measurements in processes of their own, and the machine they run on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def answer_of(python: str | Path, script: str | Path, *arguments: str, **options: Any) -> Any:
    """What a script prints as its last line, as JSON.

    Parameters
    ----------
    python
        The interpreter that runs it.
    script, arguments
        The script, and the rest of its command line.
    options
        Further arguments of :func:`subprocess.run`.
    """
    done = subprocess.run([python, script, *arguments], capture_output=True, text=True, **options)
    if done.returncode:
        raise SystemExit(
            f"{Path(script).name} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine() -> str:
    """Class of this machine, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, "
        f"{memory:.0f} GiB memory, no GPU, Python {platform.python_version()}"
    )
