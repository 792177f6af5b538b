"""Poisson factors with an amortised guide. This is the whole program."""

import pyro
import pyro.distributions as dist
import torch

import pyrovi as pv
from pyrovi.data.fields import LayerField, TotalField
from pyrovi.model import BaseModelClass
from pyrovi.module import PyroBaseModule


class FactorModule(PyroBaseModule):
    r"""x_n ~ Poisson(l_n softmax(b + z_n W)),  W ~ Normal(0, 1),  z_n ~ Normal(0, I)."""

    site_dims = {
        "W": ("factor", "var"),
        "z": ("factor",),
        "rho": ("var",),
        "X": ("var",),
    }

    def __init__(self, n_vars, n_factors):
        super().__init__()
        self.n_vars, self.n_factors = n_vars, n_factors
        self.b = torch.nn.Parameter(torch.zeros(n_vars))
        self.W_loc = torch.nn.Parameter(0.1 * torch.randn(n_factors, n_vars))
        self.W_log_scale = torch.nn.Parameter(torch.full((n_factors, n_vars), -2.0))
        self.encoder = pv.nn.Encoder(n_vars, n_factors, n_hidden=32)

    def model(self, X, library):
        W = pyro.sample("W", dist.Normal(torch.zeros_like(self.W_loc), 1.0).to_event(2))
        with self.obs_plate():
            z_prior = dist.Normal(X.new_zeros(self.n_factors), 1.0)
            z = pyro.sample("z", z_prior.to_event(1))
            rho = torch.softmax(self.b + z @ W, -1)
            pyro.deterministic("rho", rho, event_dim=1)
            pyro.sample("X", dist.Poisson(library * rho).to_event(1), obs=X)

    def guide(self, X, library):
        pyro.sample("W", dist.Normal(self.W_loc, self.W_log_scale.exp()).to_event(2))
        with self.obs_plate():
            pyro.sample("z", dist.Normal(*self.encoder(X.log1p())).to_event(1))


class FactorModel(BaseModelClass):
    """Poisson factor analysis of counts."""

    @classmethod
    def setup_anndata(cls, adata, layer=None):
        fields = [LayerField("X", layer), TotalField("library", layer)]
        cls.register(adata, fields, {"layer": layer})

    def __init__(self, adata, n_factors=5):
        super().__init__(adata)
        self.module = FactorModule(self.summary_stats.n_vars, n_factors)
