"""model.render: sites, plates and dependencies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi as pv
from pyrovi.errors import ModelError
from pyrovi.module.ledger import Role


def story(x: Any, group: Any, y: Any, *, n_group: int) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pv.plate("group", n_group):
        a = pyro.sample("a", dist.Normal(mu, tau))
    with pv.obs_plate():
        eta = pyro.deterministic("eta", a[group] + x)
        pyro.sample("y", dist.Normal(eta, 1.0), obs=y)
    pyro.sample("alone", dist.Normal(0.0, 1.0))


@pytest.fixture
def model() -> Any:
    frame = pd.DataFrame({"x": np.arange(6.0), "group": list("aabbcc"), "y": np.ones(6)})
    return pv.from_pyro(story, frame)


def test_every_arrow_and_no_other(model: Any) -> None:
    graph = model.render()
    assert graph.parents == {
        "mu": (),
        "tau": (),
        "a": ("mu", "tau"),
        "eta": ("a",),
        "y": ("eta",),
        "alone": (),
    }


def test_nodes_and_plates(model: Any) -> None:
    graph = model.render()
    assert graph.nodes["a"] == (Role.GLOBAL, "Normal", ("group",))
    assert graph.nodes["y"] == (Role.OBSERVED, "Normal", ("obs",))
    assert graph.nodes["eta"] == (Role.DETERMINISTIC, "", ("obs",))
    assert graph.sizes == {"group": 3, "obs": 6}


def test_text(model: Any) -> None:
    assert repr(model.render()).splitlines() == [
        "mu ~ Normal",
        "tau ~ HalfNormal",
        "alone ~ Normal",
        "plate group (3):",
        "  a ~ Normal | mu, tau",
        "plate obs (6):",
        "  eta = | a",
        "  y ~ Normal | eta  [observed]",
    ]


def test_rendering_does_not_disturb_the_random_state(model: Any) -> None:
    before = torch.get_rng_state()
    model.render()
    assert torch.equal(torch.get_rng_state(), before)


def test_crossed_plates() -> None:
    def crossed() -> None:
        rows, columns = pv.plate("row", 2, dim=-2), pv.plate("column", 3, dim=-1)
        with rows:
            r = pyro.sample("r", dist.Normal(0.0, 1.0))
        with columns:
            c = pyro.sample("c", dist.Normal(0.0, 1.0))
        with rows, columns:
            pyro.sample("x", dist.Normal(r + c, 1.0), obs=torch.zeros(2, 3))

    graph = pv.from_pyro(crossed, {}).render()
    assert graph.parents["x"] == ("r", "c")
    assert graph.nodes["x"][2] == ("row", "column")
    assert graph.to_dot().count("subgraph") == 3


def test_files(model: Any, tmp_path: Path) -> None:
    model.render(str(tmp_path / "g.txt"))
    assert (tmp_path / "g.txt").read_text() == model.render().to_text()
    model.render(str(tmp_path / "g.dot"))
    assert '"mu" -> "a";' in (tmp_path / "g.dot").read_text()
    with pytest.raises(ModelError, match="cannot write"):
        model.render("g.doc")


def test_without_graphviz(model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert model.render().to_svg() is None
    assert "<pre>mu ~ Normal" in model.render()._repr_html_()
    with pytest.raises(ModelError, match="needs Graphviz"):
        model.render("g.svg")
