"""scvi-tools' side of the benchmark of posterior draws; runs in its own environment."""

from __future__ import annotations

import json
import sys
import time

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal, init_to_mean
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField, NumericalObsField
from scvi.model.base import BaseModelClass, PyroSampleMixin, PyroSviTrainMixin
from scvi.module.base import PyroBaseModuleClass


class FactorPyroModel(pyro.nn.PyroModule):
    """The factor model of ``draws_pyrovi.py``."""

    def __init__(self, n_obs: int, n_vars: int, n_factors: int) -> None:
        super().__init__()
        self.n_obs, self.n_vars, self.n_factors = n_obs, n_vars, n_factors

    def create_plates(self, x: torch.Tensor, idx: torch.Tensor) -> pyro.plate:
        return pyro.plate("obs", size=self.n_obs, dim=-2, subsample=idx)

    def list_obs_plate_vars(self) -> dict[str, object]:
        return {
            "name": "obs",
            "input": [0],
            "input_transform": [lambda x: x],
            "sites": {"z": self.n_factors},
        }

    @staticmethod
    def _get_fn_args_from_batch(tensors: dict[str, torch.Tensor]) -> tuple[tuple, dict]:
        return (tensors["X"], tensors["ind_x"].long().squeeze()), {}

    def forward(self, x: torch.Tensor, idx: torch.Tensor) -> None:
        zeros = torch.zeros(self.n_factors, self.n_vars)
        W = pyro.sample("W", dist.Normal(zeros, 1.0).to_event(2))
        with self.create_plates(x, idx):
            # scvi-tools finds the axis of the observations in dim -2 of the batch shape
            z = pyro.sample("z", dist.Normal(torch.zeros(1, self.n_factors), 1.0))
            mu = pyro.deterministic("mu", z @ W)
            pyro.sample("X", dist.Normal(mu, 1.0), obs=x)


class FactorModule(PyroBaseModuleClass):
    """Model and guide."""

    def __init__(self, n_obs: int, n_vars: int, n_factors: int) -> None:
        super().__init__()
        self._model = FactorPyroModel(n_obs, n_vars, n_factors)
        self._guide = AutoNormal(
            self._model, init_loc_fn=init_to_mean, create_plates=self._model.create_plates
        )
        self._get_fn_args_from_batch = self._model._get_fn_args_from_batch

    @property
    def model(self) -> FactorPyroModel:
        return self._model

    @property
    def guide(self) -> AutoNormal:
        return self._guide

    @property
    def list_obs_plate_vars(self) -> dict[str, object]:
        return self.model.list_obs_plate_vars()


class Factors(PyroSviTrainMixin, PyroSampleMixin, BaseModelClass):
    """The model class."""

    def __init__(self, adata: anndata.AnnData, n_factors: int) -> None:
        super().__init__(adata)
        self.module = FactorModule(adata.n_obs, adata.n_vars, n_factors)

    @classmethod
    def setup_anndata(cls, adata: anndata.AnnData) -> None:
        setup = cls._get_setup_method_args(**locals())
        adata.obs["_indices"] = np.arange(adata.n_obs)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, None, is_count_data=False),
            NumericalObsField(REGISTRY_KEYS.INDICES_KEY, "_indices"),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup)
        manager.register_fields(adata)
        cls.register_manager(manager)


def main() -> None:
    """Print the median seconds of three calls, after one that warms up."""
    job = json.loads(sys.argv[1])
    rng = np.random.default_rng(0)
    X = rng.normal(size=(job["n_obs"], job["n_vars"])).astype(np.float32)
    adata = anndata.AnnData(X)
    Factors.setup_anndata(adata)
    model = Factors(adata, job["n_factors"])
    model.train(max_epochs=1, batch_size=job["batch_size"], train_size=1.0, accelerator="cpu",
                enable_progress_bar=False)  # fmt: skip
    options = {
        "return_sites": job["sites"], "batch_size": job["batch_size"], "return_samples": True,
        "summary_fun": {"mean": np.mean},
    }  # fmt: skip
    model.sample_posterior(num_samples=2, **options)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model.sample_posterior(num_samples=job["num_samples"], **options)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": sorted(seconds)[1]}))


main()
