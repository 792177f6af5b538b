"""Names shared by the whole package: registry keys and the id written to ``uns``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Final


class _RegistryKeys(SimpleNamespace):
    """Registry keys: the names under which fields reach a module's ``model`` and ``guide``."""

    X_KEY: Final = "X"
    ATAC_X_KEY: Final = "atac"
    BATCH_KEY: Final = "batch"
    SAMPLE_KEY: Final = "sample"
    LABELS_KEY: Final = "labels"
    PROTEIN_EXP_KEY: Final = "proteins"
    CAT_COVS_KEY: Final = "extra_categorical_covs"
    CONT_COVS_KEY: Final = "extra_continuous_covs"
    INDICES_KEY: Final = "ind_x"
    SIZE_FACTOR_KEY: Final = "size_factor"
    MINIFY_TYPE_KEY: Final = "minify_type"
    LATENT_QZM_KEY: Final = "latent_qzm"
    LATENT_QZV_KEY: Final = "latent_qzv"
    OBSERVED_LIB_SIZE: Final = "observed_lib_size"


REGISTRY_KEYS: Final = _RegistryKeys()

UUID_KEY: Final = "_pyrovi_uuid"
"""The only key that pyrovi writes into ``adata.uns``."""
