"""A model of one's own: negative binomial factors, from nothing but the generative story.

The story says how the counts come about. Its guide (an encoder for the cells, a normal distribution
for the genes), training, queries under the data's names, checks and saving come with it.

Run: python examples/own_model.py [--tiny]
"""

from __future__ import annotations

import argparse

import arviz as az
import pyro
import pyro.distributions as dist
import torch

import pyrovi as pv
from pyrovi.distributions import NegativeBinomial

SITE_DIMS = {"z": ["factor"], "rho": ["var"]}


def nb_factors(X, library, *, n_vars, n_factors=3):
    """X_ng ~ NB(mean = library_n rho_ng, theta_g) with rho_n = softmax(b + z_n W)."""
    genes = pv.plate("var", n_vars, dim=-1)
    with genes:
        theta = pyro.sample("theta", dist.LogNormal(1.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pv.plate("factor", n_factors, dim=-2), genes:
        W = pyro.sample("W", dist.Normal(0.0, 0.5))
    with pv.obs_plate():
        z = pyro.sample("z", dist.Normal(torch.zeros(n_factors), 1.0).to_event(1))
        rho = pyro.deterministic("rho", (b + z @ W).softmax(-1), event_dim=1)
        pyro.sample("X", NegativeBinomial(mu=library * rho, theta=theta).to_event(1), obs=X)


def main(tiny: bool) -> None:
    adata = pv.data.synthetic_iid(batch_size=50 if tiny else 400, n_genes=20 if tiny else 200)
    fields = {"X": pv.fields.layer(), "library": pv.fields.total()}
    model = pv.from_pyro(nb_factors, adata, fields, guide="amortized", site_dims=SITE_DIMS)
    print(model.sites)
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
