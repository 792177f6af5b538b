"""Every snippet of the README runs, in the order in which they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_readme_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyrovi.model.training.max_epochs_heuristic", lambda n_obs: 1)
    for steps in ("STEPS", "STEPS_NEAR"):
        monkeypatch.setattr(f"pyrovi.train.converge.{steps}", 20)
    monkeypatch.setattr("pyrovi.settings.enable_progress_bar", False)
    namespace: dict[str, object] = {"__name__": "readme"}
    python = snippets("python")
    assert len(python) >= 3
    for code in python:
        exec(compile(code, "README.md", "exec"), namespace)
    assert {p.name for p in tmp_path.iterdir()} == {"my_model", "report.html", "report.json"}

    from typer.testing import CliRunner

    from pyrovi.cli import app

    namespace["pv"].data.synthetic_iid(n_genes=20).write_h5ad("cells.h5ad")
    commands = [
        line
        for block in snippets("bash")
        for line in block.splitlines()
        if line.startswith("pyrovi ")
    ]
    assert len(commands) == 3
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "latent.csv").is_file()
