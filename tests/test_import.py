"""`import pyrovi` is light: what it loads, and how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = [
    "arviz",
    "lightning",
    "matplotlib",
    "mudata",
    "numba",
    "optuna",
    "pytorch_lightning",
    "rich",
    "scanpy",
    "sklearn",
    "tensorboard",
    "typer",
    "umap",
]


def run(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a statement imports."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    return {name.partition(".")[0] for name in json.loads(run(code).splitlines()[-1])}


def seconds(statement: str, repeats: int = 5) -> float:
    """Shortest time of an import over several fresh interpreters."""
    code = (
        "from time import perf_counter\n"
        "start = perf_counter()\n"
        f"{statement}\n"
        "print(perf_counter() - start)"
    )
    return min(float(run(code).splitlines()[-1]) for _ in range(repeats))


def test_import_loads_no_heavy_or_optional_package() -> None:
    # Whatever torch, pyro and anndata load by themselves is not ours to avoid.
    ours = loaded_by("import pyrovi") - loaded_by("import torch, pyro, anndata")
    assert "pyrovi" in ours
    assert ours.isdisjoint(HEAVY), f"import pyrovi loads {sorted(ours.intersection(HEAVY))}"


@pytest.mark.slow
def test_import_costs_little_more_than_torch_pyro_and_anndata() -> None:
    base = seconds("import torch, pyro, anndata")
    assert seconds("import pyrovi") <= 1.2 * base


def test_package_declares_its_types() -> None:
    from importlib.resources import files

    assert files("pyrovi").joinpath("py.typed").is_file()
