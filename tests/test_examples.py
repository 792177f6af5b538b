"""Every example runs, and says what it has shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHOWS = {
    "ddp": "2 processes, the same",
    "own_model": "theta[gene_0]",
    "published_model": "saved and loaded: the same latent space",
    "resume": "the same parameters as without the stop",
}


def test_every_example_is_run() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(SHOWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWS)
def test_example(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), "--tiny"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert SHOWS[name] in done.stdout
    assert not list(tmp_path.iterdir()), "an example leaves files behind"
