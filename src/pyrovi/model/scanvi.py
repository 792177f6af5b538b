"""SCANVI: cell types of all cells from labels of some (Xu et al. 2021)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from anndata import AnnData

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data.fields import LabelsWithUnlabeledObsField
from pyrovi.errors import DataError, ModelError, RegistryError, TrainingError
from pyrovi.model import label_prediction, training
from pyrovi.model.scvi import SCVI, count_fields
from pyrovi.model.setup import check_size_factor
from pyrovi.module.scanvae import SCANVAE

if TYPE_CHECKING:
    from pyrovi.dataloaders import DataSplitter
    from pyrovi.train import SVITrainingPlan


class SCANVI(SCVI):
    """Cell types of all cells, and all that :class:`SCVI` gives, from labels of some cells.

    The generative story and its symbols are those of :class:`~pyrovi.module.scanvae.SCANVAE`.
    Training adds the classification loss of the labelled cells
    (:class:`~pyrovi.train.SemiSupervisedTrainingPlan`), and then calibrates the classifier by the
    labels of the validation cells.

    Parameters
    ----------
    adata
        AnnData that was set up with :meth:`setup_anndata`, or a registry.
    n_hidden, n_latent, n_layers, dropout_rate
        Size of the networks.
    dispersion, gene_likelihood, latent_distribution, use_observed_lib_size
        The story's options.
    kwargs
        Further options of :class:`~pyrovi.module.scanvae.SCANVAE` (``linear_classifier``) and
        :class:`~pyrovi.module.vae.VAE`.

    References
    ----------
    Xu, Lopez, Mehlman, Regier, Jordan, Yosef: Probabilistic harmonization and annotation of
    single-cell transcriptomics data with deep generative models. Molecular Systems Biology 17,
    e9620 (2021).

    Kingma, Rezende, Mohamed, Welling: Semi-supervised learning with deep generative models. NeurIPS
    (2014).

    Examples
    --------
    >>> SCVI.setup_anndata(adata, layer="counts", batch_key="batch", labels_key="cell_type")
    >>> scvi = SCVI(adata)
    >>> scvi.train()
    >>> model = SCANVI.from_scvi_model(scvi, unlabeled_category="Unknown")
    >>> model.train()
    >>> adata.obs["predicted"] = model.predict()
    """

    _is_pretrained = False

    def _make_module(self, **options: Any) -> SCANVAE:
        # a file that is loaded, or a reference, overwrites the rate
        rate = 0.5 if self._adata_manager is None else self._label_rate()
        n_labels = self.summary_stats.n_labels - 1  # the last category is "not labelled"
        if n_labels < 1:
            raise DataError(
                "No cell has a label: the column holds nothing but the category of cells without "
                f"one ({self.unlabeled_category!r}). Expected labels of some cells: look at "
                "labels_key and unlabeled_category of setup_anndata, or use SCVI."
            )
        return SCANVAE(n_labels=n_labels, label_rate=rate, **options)

    def _label_rate(self) -> float:
        """Share of labelled cells, by the rule of succession: never 0 nor 1."""
        codes = np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY))
        labelled = codes < self.summary_stats.n_labels - 1
        return float((labelled.sum() + 1) / (labelled.size + 2))

    @property
    def unlabeled_category(self) -> Any:
        """The category of cells without a label."""
        return self.get_state_registry(REGISTRY_KEYS.LABELS_KEY)["unlabeled_category"]

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData,
        labels_key: str,
        unlabeled_category: str | int | bool,
        layer: str | None = None,
        batch_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        is_count_data: bool = True,
    ) -> None:
        """Declare which parts of an AnnData the model uses.

        Parameters
        ----------
        adata
            The data; only an id is written, to ``adata.uns``.
        labels_key
            Column of ``obs`` with the labels.
        unlabeled_category
            Its category of cells without a label.
        layer, batch_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
            As in :meth:`SCVI.setup_anndata`.
        is_count_data
            As in :meth:`SCVI.setup_anndata`.

        Raises
        ------
        DataError, MissingKeyError
            If the data are not raw counts, or a column is missing.
        """
        arguments = locals()
        check_size_factor(adata, size_factor_key)
        key = REGISTRY_KEYS.LABELS_KEY
        labels = LabelsWithUnlabeledObsField(key, labels_key, unlabeled_category)
        cls.register(adata, count_fields(arguments, labels), arguments)

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        unlabeled_category: str | int | bool,
        labels_key: str | None = None,
        adata: AnnData | None = None,
        **kwargs: Any,
    ) -> Self:
        """Model that begins with the encoder and decoder of a fitted :class:`SCVI`.

        Parameters
        ----------
        scvi_model
            The fitted model; it is left as it is.
        unlabeled_category
            Category of the labels' column of cells without a label.
        labels_key
            Column of ``obs`` with the labels; ``None`` for the one that ``scvi_model`` was set up
            with.
        adata
            The data; ``None`` for those of ``scvi_model``. They are set up for this class.
        kwargs
            Options that :class:`SCVI` does not have (``linear_classifier``).

        Returns
        -------
        SCANVI
            A model whose :meth:`train` needs few epochs.

        Raises
        ------
        ModelError
            If ``scvi_model`` is none, has dispersions of labels (its labels are others), there is
            no column of labels, or an option would change what is taken over.
        RegistryError
            If the data have other genes, batches or covariates.

        Warns
        -----
        UserWarning
            If ``scvi_model`` is not trained.
        """
        _check_scvi_model(scvi_model, kwargs)
        setup = dict(scvi_model.registry["setup_args"])
        key = setup.pop("labels_key") if labels_key is None else labels_key
        setup.pop("labels_key", None)
        if key is None:
            raise ModelError(
                "The SCVI model was set up without labels; name their column with labels_key=."
            )
        adata = scvi_model.adata if adata is None else adata
        cls.setup_anndata(adata, labels_key=key, unlabeled_category=unlabeled_category, **setup)
        model = cls(adata, **{**scvi_model._init_arguments, **kwargs})
        _check_same_fields(model.registry, scvi_model.registry)
        own = model.module.state_dict()
        model.module.load_state_dict({**own, **scvi_model.module.state_dict()})
        model.to_device(scvi_model.device)
        model._is_pretrained = True
        return model

    def training_plan_class(self) -> type[SVITrainingPlan]:
        """SVI and the classification loss of labelled cells."""
        from pyrovi.train import SemiSupervisedTrainingPlan

        return SemiSupervisedTrainingPlan

    def data_splitter_class(self) -> type[DataSplitter]:
        """Splits by the same fractions of labelled and unlabelled cells."""
        from pyrovi.dataloaders import SemiSupervisedDataSplitter

        return SemiSupervisedDataSplitter

    def train(  # type: ignore[override]
        self,
        max_epochs: int | None = None,
        *,
        n_samples_per_label: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Fit the model; see :meth:`BaseModelClass.train`.

        Parameters
        ----------
        max_epochs
            Epochs of this call. ``None``: as for :class:`SCVI`, and after :meth:`from_scvi_model` a
            third of these, at least 2 and at most 10.
        n_samples_per_label
            Labelled cells of each label that an epoch's classification loss is of, drawn anew for
            every epoch; ``None`` for all. Rare types then weigh as much as frequent ones.
        kwargs
            As in :meth:`BaseModelClass.train`. ``plan_kwargs={"classification_ratio": 50}`` weighs
            the classification loss.
        """
        if self._is_pretrained and kwargs.get("method", "svi") == "svi":
            if kwargs.get("n_restarts", 1) != 1:
                raise TrainingError(
                    "This model begins with the weights of one SCVI model, and restarts with "
                    "others. Use n_restarts=1, and from_scvi_model of several SCVI models."
                )
            if max_epochs is None:
                third = training.max_epochs_heuristic(self.adata_manager.n_obs) / 3
                max_epochs = min(10, max(2, round(third)))
        if n_samples_per_label is not None:
            splitting = {"n_samples_per_label": n_samples_per_label}
            kwargs["datasplitter_kwargs"] = splitting | dict(
                kwargs.get("datasplitter_kwargs") or {}
            )
        before, calibrated = self._training, self.module.temperature.clone()
        try:
            super().train(max_epochs, **kwargs)
        except BaseException:
            if self._training is before:  # the classifier is still the one it was fitted to
                self.module.temperature.copy_(calibrated)
            else:
                self.finish_training()
            raise

    def prepare_training(self) -> None:
        """Classification losses are of logits as they are."""
        if self._trains_classifier:
            self.module.temperature.fill_(1.0)

    def finish_training(self) -> None:
        """Calibrate the classifier by the labels of the validation cells."""
        if self._trains_classifier:
            found = label_prediction.fit_temperature(self, self.validation_indices)
            self.module.temperature.fill_(found)

    @property
    def _trains_classifier(self) -> bool:
        """Not where it is that of a reference."""
        module: Any = self.module
        return any(p.requires_grad for p in module.c_given_z.parameters())

    predict = label_prediction.predict


def _check_scvi_model(scvi_model: Any, options: Mapping[str, Any]) -> None:
    if type(scvi_model) is not SCVI:  # a subclass has other networks
        raise ModelError(f"Expected a fitted SCVI model, got a {type(scvi_model).__name__}.")
    if taken := [name for name in options if name in scvi_model._init_arguments]:
        raise ModelError(
            f"{', '.join(map(repr, taken))} is given by the SCVI model, whose weights are taken "
            "over. Leave it out, or make and fit an SCVI model with it."
        )
    if scvi_model.module.dispersion == "gene-label":
        raise ModelError(
            "The SCVI model has a dispersion of each label, 'not labelled' among them, which is "
            "none here. Fit it with another dispersion, or make a SCANVI model from the beginning."
        )
    if not scvi_model.is_trained:
        warnings.warn(
            "The SCVI model is not trained: the weights taken over are initial ones.", stacklevel=3
        )


def _check_same_fields(registry: Mapping[str, Any], source: Mapping[str, Any]) -> None:
    """Codes of batches and covariates have to mean the same in both models."""
    for key, entry in source["field_registries"].items():
        if key == REGISTRY_KEYS.LABELS_KEY:
            continue
        state, other = entry["state_registry"], registry["field_registries"][key]["state_registry"]
        differ = [k for k in state if k != "n_obs" and state[k] != other.get(k)]
        if differ:
            raise RegistryError(
                f"The data do not match those of the SCVI model: {differ[0]!r} of {key!r} is "
                f"{str(other.get(differ[0]))[:80]}, expected {str(state[differ[0]])[:80]}. Pass "
                "data with the same genes, batches and covariates, or take the SCVI model to the "
                "new data first (SCVI.load_query_data)."
            )
