"""Guides by name in a model: saved and loaded, and asked about new observations."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovi.data.fields import LayerField
from pyrovi.model import BaseModelClass
from pyrovi.module import PyroBaseModule
from pyrovi.module.guides import make_guide

NAMES = ("normal", "lowrank", "mvn", "flow", "delta", "laplace", "amortized")


class NamedModule(PyroBaseModule):
    def __init__(self, guide: str) -> None:
        super().__init__()
        self.guide = make_guide(guide, self.model)

    def model(self, X: Tensor) -> None:
        W = pyro.sample("W", dist.Normal(torch.zeros(2, 4), 1.0).to_event(2))
        s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("X", dist.Normal(z @ W, s).to_event(1), obs=X)


class NamedModel(BaseModelClass):
    @classmethod
    def setup_anndata(cls, adata: Any) -> None:
        cls.register(adata, [LayerField("X", None, is_count_data=False)], {})

    def __init__(self, adata: Any, guide: str = "normal") -> None:
        super().__init__(adata)
        self.module = NamedModule(guide)


def data(n: int, seed: int) -> anndata.AnnData:
    return anndata.AnnData(np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32))


@pytest.mark.parametrize("guide", NAMES)
def test_saved_loaded_and_asked(guide: str, tmp_path: Any) -> None:
    adata, new = data(11, 0), data(3, 1)
    new.obs_names = [f"new{i}" for i in range(3)]
    NamedModel.setup_anndata(adata)
    model = NamedModel(adata, guide)
    model.train(max_epochs=2, batch_size=5, train_size=1.0, enable_progress_bar=False)
    model.save(tmp_path / "model")
    loaded = NamedModel.load(tmp_path / "model", adata)
    for batch_size in (4, 11):
        one = model.sample_posterior(num_samples=5, batch_size=batch_size, seed=1)
        assert one.identical(loaded.sample_posterior(num_samples=5, batch_size=batch_size, seed=1))
    assert model.sample_posterior("z", adata=new, num_samples=5)["z"].shape == (5, 3, 2)
    if guide == "amortized":
        assert int(model.module.guide.locals.standardise.count) == 22  # two epochs
        assert not model.module.row_parameters
