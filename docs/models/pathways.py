"""Pathway activities: negative binomial factors whose loadings follow known gene sets."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

import pyrovi as pv
from pyrovi.data.fields import CategoricalObsField, LayerField, TotalField, VarmField
from pyrovi.errors import DataError
from pyrovi.model import BaseModelClass
from pyrovi.module import PyroBaseModule


class PathwayModule(PyroBaseModule):
    r"""Counts as pathways that are switched up and down.

    For cell :math:`n` of batch :math:`s_n`, gene :math:`g` and pathway :math:`p` with genes
    :math:`M_{gp} \in \{0, 1\}`:

    .. math::
        w_{gp} &\sim \mathrm{LogNormal}(-0.5, 0.5) \\
        z_n &\sim \mathrm{Normal}(0, I) \\
        \rho_n &= \mathrm{softmax}(b_{s_n} + (M \circ w) z_n) \\
        x_{ng} &\sim \mathrm{NB}(l_n \rho_{ng}, \theta_g)

    with library size :math:`l_n`. The guide is :math:`q(w)\, q(z_n \mid x_n)`.
    """

    site_dims = {"w": ("var", "pathways"), "z": ("pathways",), "rho": ("var",), "X": ("var",)}

    def __init__(self, n_vars: int, n_pathways: int, n_batch: int = 1, n_hidden: int = 64) -> None:
        super().__init__()
        self.shape = (n_vars, n_pathways)
        self.b = torch.nn.Parameter(torch.zeros(n_batch, n_vars))
        self.log_theta = torch.nn.Parameter(torch.ones(n_vars))
        self.w_loc = torch.nn.Parameter(torch.full(self.shape, -0.5))
        self.w_log_scale = torch.nn.Parameter(torch.full(self.shape, -0.7))  # log 0.5, as the prior
        self.encoder = pv.nn.Encoder(n_vars, n_pathways, n_hidden=n_hidden)

    def model(self, X, library, batch, pathways):
        w = pyro.sample("w", self._weights(pathways, dist.LogNormal(-0.5, 0.5)))
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(self.shape[1]), 1.0).to_event(1))
            rho = torch.softmax(self.b[batch[:, 0]] + z @ (pathways * w).mT, -1)
            pyro.deterministic("rho", rho, event_dim=1)
            mean = library * rho + 1e-8
            likelihood = pv.distributions.NegativeBinomial(mu=mean, theta=self.log_theta.exp())
            pyro.sample("X", likelihood.to_event(1), obs=X)

    def guide(self, X, pathways):
        own = dist.LogNormal(self.w_loc, self.w_log_scale.exp())
        pyro.sample("w", self._weights(pathways, own))
        with self.obs_plate():
            pyro.sample("z", dist.Normal(*self.encoder(X.log1p())).to_event(1))

    def _weights(self, pathways, weights):
        """Only genes of a pathway count in the ELBO; the others have no part in the story."""
        return weights.expand(self.shape).mask(pathways.bool()).to_event(2)


class Pathways(BaseModelClass):
    """Activities of known gene sets in single cells.

    Parameters
    ----------
    adata
        AnnData that was set up with :meth:`setup_anndata`, or a registry.
    n_hidden
        Width of the encoder.
    """

    @classmethod
    def setup_anndata(cls, adata, pathways_key, layer=None, batch_key=None):
        """Declare counts, batches, and gene sets: a 0/1 DataFrame in ``adata.varm``."""
        arguments = locals()  # before there are other local variables
        sets = adata.varm[pathways_key]
        if not sets.isin([0, 1]).all(axis=None):
            raise DataError(
                f"adata.varm[{pathways_key!r}] has values other than 0 and 1. Expected 1 for the "
                "genes of a pathway and 0 for all others."
            )
        fields = [
            LayerField("X", layer),
            TotalField("library", layer),
            CategoricalObsField("batch", batch_key),
            VarmField("pathways", pathways_key),
        ]
        cls.register(adata, fields, arguments)

    def __init__(self, adata, n_hidden=64):
        super().__init__(adata)
        stats = self.summary_stats
        self.module = PathwayModule(stats.n_vars, stats.n_pathways, stats.n_batch, n_hidden)

    def get_activities(self, adata=None, indices=None):
        """Posterior means of the activities: a DataFrame, cells by pathways."""
        draws = self.sample_posterior(
            "z", adata=adata, indices=indices, num_samples=100, reduce="mean"
        )
        return draws["z"].to_pandas()
