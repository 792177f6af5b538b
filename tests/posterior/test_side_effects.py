"""Stories that leave something behind are looped over, and leave nothing dead."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovi.data.fields import LayerField
from pyrovi.model.base import BaseModelClass
from pyrovi.module import PyroBaseModule
from pyrovi.posterior.vectorise import DrawMapper

X = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)


class Keeper(PyroBaseModule):
    """Keeps the latest draw in a buffer, an attribute and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(()))
        self.seen: list[Tensor] = []

    def model(self, X: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        self.last = w.detach()
        self.latest = w
        self.seen.append(w)
        pyro.deterministic("twice", 2 * w)
        with self.obs_plate():
            pyro.sample("X", dist.Normal(w, 1.0).expand([2]).to_event(1), obs=X)

    def guide(self) -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0))


class Kept(BaseModelClass):
    @classmethod
    def setup_anndata(cls, adata: Any) -> None:
        cls.register(adata, [LayerField("X", None, is_count_data=False)], locals())

    def __init__(self, adata: Any) -> None:
        super().__init__(adata)
        self.module = Keeper()


def test_a_story_that_stores_its_values_leaves_living_ones(tmp_path: Path) -> None:
    adata = anndata.AnnData(X.copy())
    Kept.setup_anndata(adata)
    model = Kept(adata)
    draws = model.sample_posterior(["w", "twice"], num_samples=5)
    np.testing.assert_allclose(draws["twice"], 2 * draws["w"])
    last = float(draws["w"][-1])
    assert model.module.last.item() == pytest.approx(last)
    assert model.module.latest.item() == pytest.approx(last)
    assert [float(w) for w in model.module.seen[-5:]] == pytest.approx(list(draws["w"].values))
    model.save(tmp_path / "kept")


@pytest.mark.parametrize("source", ["numpy", "python"])
def test_foreign_randomness_is_drawn_for_every_draw(source: str) -> None:
    def draw() -> float:
        return np.random.normal() if source == "numpy" else random.gauss(0, 1)

    def story(_: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": torch.zeros(()) + draw(), "y": torch.randn(())}

    np.random.seed(0)
    random.seed(0)
    expected = [draw() for _ in range(4)]
    np.random.seed(0)
    random.seed(0)
    mapper = DrawMapper()
    np.testing.assert_allclose(mapper(story, {}, 4)["x"], expected, rtol=1e-6)
    assert not mapper.vectorise
