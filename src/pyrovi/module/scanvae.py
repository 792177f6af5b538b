r"""SCANVAE: the model/guide pair of scANVI (Xu et al. 2021, Molecular Systems Biology 17:e9620)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovi.errors import ModelError
from pyrovi.module.vae import VAE
from pyrovi.nn import Classifier, Encoder, one_hot

_NEVER = -1e4
"""Log probability of what cannot be: exp() of it is exactly 0, and 0 times it is no NaN."""


class SCANVAE(VAE):
    r"""Variational autoencoder of counts of which some cells have a label.

    For cell :math:`n` of type :math:`c_n`, one of :math:`C`, with batch :math:`s_n`:

    .. math::
        c_n &\sim \mathrm{Categorical}(1/C, \dots, 1/C) \\
        y_n &= \begin{cases} c_n & \text{with probability } \varrho \\
               \text{not labelled} & \text{else} \end{cases} \\
        u_n &\sim \mathrm{Normal}(0, I) \\
        z_n &\sim \mathrm{Normal}(m(u_n, c_n), s(u_n, c_n)) \\
        x_n &\sim \text{as in scVI, given } z_n \text{ and } s_n
        \text{ (see \texttt{VAE})}

    with the guide

    .. math::
        q(z_n \mid x_n)\, q(c_n \mid z_n, y_n)\, q(u_n \mid z_n, c_n)

    whose second factor is a classifier for cells without a label, and a point mass at the label
    for the others. The bound is that of M1+M2 (Kingma et al. 2014) with both models fitted
    together: the expectation over :math:`c_n` is a sum over all types, nothing is drawn. The
    labels :math:`y_n` are the observed site ``labels``. That they are missing tells nothing of the
    type, so :math:`\varrho`, the share of labelled cells, moves no posterior; it lets the model
    simulate whole data sets.

    The logits of the classifier are divided by a temperature: 1 in training, and then fitted to
    held-out labels (Guo et al. 2017), as the classification loss makes it too sure of itself.

    Site ``z`` is :math:`z_n` of Xu et al. (:math:`z_1` of Kingma et al.), what scVI calls so;
    ``u`` is their :math:`u_n` (:math:`z_2`), what varies within a type; ``c`` is the type.

    Parameters
    ----------
    n_vars
        Number of genes.
    n_labels
        Number of types :math:`C`; their codes are 0 to :math:`C - 1`, and :math:`C` is the code of
        cells without a label.
    label_rate
        The share :math:`\varrho`, between 0 and 1.
    linear_classifier
        Whether the classifier has no hidden layers.
    n_hidden, n_latent, n_layers, dropout_rate
        As in :class:`~pyrovi.module.vae.VAE`; the networks of ``u``, ``z`` and the classifier have
        them, too.
    kwargs
        Further options of :class:`~pyrovi.module.vae.VAE`. With ``dispersion="gene-label"`` the
        dispersion is that of the type :math:`c_n`.

    Raises
    ------
    ModelError
        If there are no labels, the share is out of range, or an option has an unknown value.

    Notes
    -----
    scvi-tools maximises another bound: it sums over the types of labelled cells, too, as if their
    labels were not known, so that labels enter by the classification loss alone; and its KL warm-up
    leaves :math:`z` out. Here labels are evidence for :math:`z` and :math:`u`, and all KL terms are
    warmed up.
    """

    def __init__(
        self,
        n_vars: int,
        n_labels: int,
        n_batch: int = 1,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        *,
        label_rate: float = 0.5,
        linear_classifier: bool = False,
        **kwargs: Any,
    ) -> None:
        if n_labels < 1:
            raise ModelError(f"n_labels must be at least 1, got {n_labels}.")
        if not 0 < label_rate < 1:
            raise ModelError(f"label_rate must be between 0 and 1, got {label_rate}.")
        super().__init__(n_vars, n_batch, n_labels, n_hidden, n_latent, n_layers, dropout_rate,
                         **kwargs)  # fmt: skip
        self.site_dims = {**self.site_dims, "u": ("u_dim",), "labels": ("labels_dim",)}
        self.register_buffer("label_rate", torch.tensor(float(label_rate)))
        self.register_buffer("temperature", torch.tensor(1.0))
        size: dict[str, Any] = {"n_layers": n_layers, "n_hidden": n_hidden}
        of_encoder, of_decoder = (_normalisation(kwargs, of) for of in ("encoder", "decoder"))
        # Names without "encoder" and "decoder": a query of a reference leaves them as they are.
        self.z_given_u_c = Encoder(
            n_latent, n_latent, [n_labels], dropout_rate=0.0, **size, **of_decoder
        )
        self.u_given_z_c = Encoder(
            n_latent, n_latent, [n_labels], dropout_rate=dropout_rate, **size, **of_encoder
        )
        self.c_given_z = Classifier(
            n_latent, n_hidden, n_labels, 0 if linear_classifier else n_layers, dropout_rate,
            logits=True, **of_encoder,
        )  # fmt: skip

    # ------------------------------------------------------------------ the story

    def model(
        self,
        X: Tensor,
        batch: Tensor,
        labels: Tensor,
        size_factor: Tensor | None = None,
        extra_categorical_covs: Tensor | None = None,
        extra_continuous_covs: Tensor | None = None,
    ) -> None:
        """The generative story; see the class."""
        with self.obs_plate():
            c = pyro.sample("c", dist.Categorical(logits=X.new_zeros(self.n_labels)))
            pyro.sample("labels", self._labelling(c), obs=labels)
            u = pyro.sample("u", dist.Normal(X.new_zeros(self.n_latent), 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(*self.z_given_u_c(u, c[..., None])).to_event(1))
            self._generate(
                z, X, batch, c[..., None], size_factor, extra_categorical_covs,
                extra_continuous_covs,
            )  # fmt: skip

    def guide(  # type: ignore[override]
        self,
        X: Tensor,
        batch: Tensor,
        labels: Tensor,
        extra_categorical_covs: Tensor | None = None,
        extra_continuous_covs: Tensor | None = None,
    ) -> None:
        """The amortised guide: counts tell ``z``, which tells the type and what varies in it."""
        seen = self._seen(X, batch, extra_categorical_covs, extra_continuous_covs)
        with self.obs_plate():
            z = pyro.sample("z", self._posterior_of_z(seen))
            logits = self._known_or(self._type_logits(z), labels)
            c = pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("u", dist.Normal(*self.u_given_z_c(z, c[..., None])).to_event(1))
            self._guide_library(seen)

    def classify(
        self,
        X: Tensor,
        batch: Tensor,
        extra_categorical_covs: Tensor | None = None,
        extra_continuous_covs: Tensor | None = None,
    ) -> Tensor:
        r"""Logits of :math:`q(c_n \mid z_n)` for one draw of :math:`q(z_n \mid x_n)`.

        Returns
        -------
        Tensor
            Shape ``(n, n_labels)``.
        """
        seen = self._seen(X, batch, extra_categorical_covs, extra_continuous_covs)
        with self.obs_plate():
            z = pyro.sample("z", self._posterior_of_z(seen))  # of minified data: as they have it
        return self._type_logits(z)

    # ------------------------------------------------------------------ its parts

    def _labelling(self, c: Tensor) -> Any:
        """The label of each cell: its type or, with the last code, none."""
        is_type = one_hot(c[..., None], self.n_labels, self.label_rate.dtype)
        types = torch.where(is_type > 0, self.label_rate.log(), _NEVER)
        none = (1 - self.label_rate).log().expand(*types.shape[:-1], 1)
        return dist.Categorical(logits=torch.cat([types, none], -1)[..., None, :]).to_event(1)

    def _type_logits(self, z: Tensor) -> Tensor:
        logits: Tensor = self.c_given_z(z) / self.temperature
        return logits

    def _known_or(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits of the classifier; those of a point mass for cells with a label."""
        of_known = one_hot(labels, self.n_labels + 1, logits.dtype)[..., :-1]
        return torch.where(labels < self.n_labels, (1 - of_known) * _NEVER, logits)


def _normalisation(options: Mapping[str, Any], of: str) -> dict[str, Any]:
    """Which layers to put into networks of the one side or the other."""
    return {
        "use_batch_norm": options.get("use_batch_norm", "both") in (of, "both"),
        "use_layer_norm": options.get("use_layer_norm", "none") in (of, "both"),
    }
