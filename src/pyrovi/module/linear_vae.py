r"""LinearVAE: the model/guide pair of LDVAE (Svensson et al. 2020, Bioinformatics 36:3418)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrovi.errors import ModelError
from pyrovi.module.vae import VAE
from pyrovi.nn import LinearDecoderSCVI


class LinearVAE(VAE):
    r"""Variational autoencoder of counts whose decoder is linear: a factor model of counts.

    The story of :class:`VAE` with

    .. math::
        \rho_n = \mathrm{softmax}(\mathrm{BN}(W [z_n, \mathrm{onehot}(s_n)])),

    without hidden layers or activations, so that the log ratio of two genes is linear in
    :math:`z_n`. Batch normalisation :math:`\mathrm{BN}` gives each gene an offset and a gain. The
    effect of the latent variables, gain included, is :meth:`loadings`. Further covariates enter as
    the batch does. Under ``gene_likelihood="zinb"`` the logits of the extra zeros are linear, too.
    The guide is the non-linear encoder of :class:`VAE`.

    The buffer ``from_reference`` says whether the decoder is that of a reference: no start replaces
    it then.

    Arguments are those of :class:`VAE`; ``n_layers``, ``n_hidden``, ``dropout_rate`` and
    ``deeply_inject_covariates`` are of the encoders alone.

    Raises
    ------
    ModelError
        As :class:`VAE`, for ``dispersion="gene-cell"``, which a linear decoder does not predict,
        and for size factors: the softmax makes proportions, which need a library size.
    """

    decoder: LinearDecoderSCVI
    from_reference: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("from_reference", torch.tensor(False))

    def start_at(self, loadings: Tensor, log_shares: Tensor) -> None:
        """Put the decoder near given loadings.

        Parameters
        ----------
        loadings
            Shape ``(n_vars, n_latent)``.
        log_shares
            Log proportion of each gene in each batch, shape ``(n_batch, n_vars)``.
        """
        if self.batch_embedding is not None:
            log_shares = log_shares.mean(0, keepdim=True)
        self.decoder.start_at(loadings, log_shares)

    def _make_decoder(self, n_input: int, n_output: int, **options: Any) -> nn.Module:
        if self.dispersion == "gene-cell":
            raise ModelError(
                "dispersion='gene-cell' is predicted by hidden layers of a decoder, which a linear "
                "one does not have. Use 'gene', 'gene-batch' or 'gene-label', or SCVI."
            )
        if self.use_size_factor_key:
            raise ModelError(
                "A linear decoder makes proportions of genes, which a size factor cannot scale to "
                "counts. Leave use_size_factor_key out."
            )
        shared = ("n_cat_list", "n_cont", "use_batch_norm", "use_layer_norm", "zero_inflation")
        return LinearDecoderSCVI(n_input, n_output, **{name: options[name] for name in shared})

    def loadings(self) -> Tensor:
        """Effect of each latent variable on each gene before the softmax, ``(n_vars, n_latent)``.

        With running statistics of batch normalisation, as in evaluation. A number added to all
        genes of a column has no effect: only differences between genes count.
        """
        return self.decoder.loadings()[:, : self.n_latent]
