"""Environments of the packages that pyrovi is measured against."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONSTRAINTS = HERE / "peer_scvi_constraints.txt"
MARK = ".pyrovi-peer"


def peer_python() -> Path:
    """Interpreter of the scvi-tools environment, which is made where it is missing.

    The environment is ``.venv-peers/scvi``, or the folder that ``PYROVI_PEER_SCVI`` names; an
    environment that the variable names and that exists is used as it is.
    """
    given = os.environ.get("PYROVI_PEER_SCVI")
    folder = Path(given) if given else ROOT / ".venv-peers" / "scvi"
    python = folder / "bin" / "python"
    if given and python.exists():
        return python
    mark = folder / MARK
    wanted = CONSTRAINTS.read_text()
    if python.exists() and mark.exists() and mark.read_text() == wanted:
        return python
    print(f"Making the environment {folder} of scvi-tools", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    # torch first and by itself: nothing that comes later can then bring another build of it
    for package in ("torch", "scvi-tools"):
        pip = [python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, package]
        subprocess.run(pip, check=True)
    mark.write_text(wanted)
    return python
