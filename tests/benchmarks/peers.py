"""Environments of the packages that pyrovi is measured against."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = {"scvi": ("torch", "scvi-tools"), "numpyro": ("numpyro", "flax", "anndata")}
"""Name of a peer -> packages of its environment. torch goes first and by itself: nothing that comes
later can then bring another build of it."""
MARK = ".pyrovi-peer"


def peer_python(peer: str = "scvi") -> Path:
    """Interpreter of the environment of a peer, which is made where it is missing.

    The environment is ``.venv-peers/scvi``, or the folder that ``PYROVI_PEER_SCVI`` names; an
    environment that the variable names and that exists is used as it is. For NumPyro alike.
    """
    given = os.environ.get(f"PYROVI_PEER_{peer.upper()}")
    folder = Path(given) if given else ROOT / ".venv-peers" / peer
    constraints = HERE / f"peer_{peer}_constraints.txt"
    python = folder / "bin" / "python"
    if given and python.exists():
        return python
    mark = folder / MARK
    wanted = constraints.read_text()
    if python.exists() and mark.exists() and mark.read_text() == wanted:
        return python
    print(f"Making the environment {folder} of {peer}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    for package in PACKAGES[peer]:
        pip = [python, "-m", "pip", "install", "-q", "-c", constraints, package]
        subprocess.run(pip, check=True)
    mark.write_text(wanted)
    return python
