"""Streamed checks need no more memory for more observations."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, warnings
import anndata, numpy as np, pandas as pd, pyro, pyro.distributions as dist, torch
from scipy import sparse
from pyrovi.criticism.pit import predictive_pit
from pyrovi.criticism.predictive import posterior_predictive_checks
from pyrovi.criticism.statistics import Dropout
from pyrovi.data.fields import LayerField
from pyrovi.model import BaseModelClass
from pyrovi.module import PyroBaseModule

warnings.simplefilter("ignore")
torch.set_num_threads(1)
N, G, S = int(sys.argv[1]), 500, 200


class Module(PyroBaseModule):
    def model(self, X):
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_tensor(0.0), 1.0))
            pyro.sample("X", dist.Poisson(z.exp()[:, None].expand(-1, G)).to_event(1), obs=X)

    def guide(self, X):
        with self.obs_plate():
            pyro.sample("z", dist.Normal(X.new_tensor(0.0), 1.0))


class Model(BaseModelClass):
    def __init__(self, adata):
        super().__init__(adata)
        self.module = Module()

    @classmethod
    def setup_anndata(cls, adata):
        cls.register(adata, [LayerField("X", None)], {})


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


counts = np.random.default_rng(0).poisson(1.0, (N, G)).astype(np.float32)
obs = pd.DataFrame({"batch": ["a", "b"] * (N // 2)}, index=[f"c{i}" for i in range(N)])
adata = anndata.AnnData(sparse.csr_matrix(counts), obs=obs)
Model.setup_anndata(adata)
model = Model(adata)
posterior_predictive_checks(model, num_samples=2, indices=np.arange(10))
before = peak()
which = ["moments", "extremes", "zeros", "frequencies", "quantiles", Dropout("batch")]
posterior_predictive_checks(model, num_samples=S, statistics=which)
predictive_pit(model, num_samples=S)
print(peak() - before, N * G * S * 4 / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="resource is Unix only")
def test_peak_memory_is_bounded() -> None:
    (small, few), (large, many) = measure(300), measure(1200)
    assert many - few > 300  # MiB that the further draws are
    assert large - small < 100


def measure(n: int) -> tuple[float, float]:
    """Growth of the peak during the checks, and the size of all draws together, in MiB."""
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(n)], check=True, capture_output=True, text=True
    )
    grown, draws = map(float, found.stdout.split())
    return grown, draws
