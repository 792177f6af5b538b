"""A model of one's own: negative binomial factors with a guide written by hand.

The module says how the counts come about and how the latent variables are inferred; the model class
says where the data are. Training, queries under the data's names, checks and saving come with them.

Run: python examples/own_model.py [--tiny]
"""

from __future__ import annotations

import argparse

import arviz as az
import pyro
import pyro.distributions as dist
import torch

import pyrovi as pv
from pyrovi.data.fields import LayerField
from pyrovi.distributions import NegativeBinomial
from pyrovi.model import BaseModelClass
from pyrovi.module import PyroBaseModule


class FactorModule(PyroBaseModule):
    """X_ng ~ NB(mean = library_n rho_ng, theta_g) with rho_n = softmax(b + z_n W)."""

    def __init__(self, n_vars: int, n_factors: int) -> None:
        super().__init__()
        self.n_vars, self.n_factors = n_vars, n_factors
        self.site_dims = {"z": ("factor",), "rho": ("var",), "X": ("var",)}
        self.W = torch.nn.Parameter(0.1 * torch.randn(n_factors, n_vars))
        self.b = torch.nn.Parameter(torch.zeros(n_vars))
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(n_vars, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2 * n_factors)
        )
        self.theta = torch.nn.Parameter(torch.zeros(n_vars))  # location of log theta in the guide

    def model(self, X):
        with pv.plate("var", self.n_vars, dim=-1):
            theta = pyro.sample("theta", dist.LogNormal(X.new_tensor(1.0), 1.0))
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(self.n_factors), 1.0).to_event(1))
            rho = pyro.deterministic("rho", (self.b + z @ self.W).softmax(-1), event_dim=1)
            counts = NegativeBinomial(mu=X.sum(-1, keepdim=True) * rho, theta=theta)
            pyro.sample("X", counts.to_event(1), obs=X)

    def guide(self, X):
        with pv.plate("var", self.n_vars, dim=-1):
            pyro.sample("theta", dist.LogNormal(self.theta, 0.1))
        location, log_scale = self.encoder(X.log1p()).chunk(2, -1)
        with self.obs_plate():
            pyro.sample("z", dist.Normal(location, log_scale.exp()).to_event(1))


class NBFactors(BaseModelClass):
    """Negative binomial factor analysis."""

    def __init__(self, adata, n_factors: int = 5) -> None:
        super().__init__(adata)
        self.module = FactorModule(self.summary_stats.n_vars, n_factors)

    @classmethod
    def setup_anndata(cls, adata, layer: str | None = None) -> None:
        cls.register(adata, [LayerField("X", layer, is_count_data=True)], locals())


def main(tiny: bool) -> None:
    adata = pv.data.synthetic_iid(batch_size=50 if tiny else 400, n_genes=20 if tiny else 200)
    NBFactors.setup_anndata(adata)
    model = NBFactors(adata, n_factors=3)
    model.train(5 if tiny else 100, accelerator="cpu", enable_progress_bar=False, lr=5e-3)
    print(f"held-out ELBO per cell: {model.get_elbo(indices=model.validation_indices):.2f} nats")

    # ArviZ under the names of genes and cells
    idata = model.to_arviz(sites=["theta", "z"], num_samples=200, indices=[0, 1])
    genes = list(adata.var_names[:3])
    print(az.summary(idata, var_names=["theta"], coords={"var": genes}, kind="stats"))
    print(az.summary(idata, var_names=["z"], coords={"obs": adata.obs_names[:1]}, kind="stats"))

    checks = pv.criticism.posterior_predictive_checks(model, num_samples=20)
    print(checks.summary().to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few seconds, for tests")
    main(parser.parse_args().tiny)
