from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pyrovi as pv
from pyrovi.data import synthetic_iid
from pyrovi.errors import MissingKeyError
from pyrovi.model import SCVI


@pytest.fixture(scope="module")
def model() -> SCVI:
    adata = synthetic_iid(batch_size=20, n_genes=8, n_proteins=0, n_regions=0)
    SCVI.setup_anndata(adata, batch_key="batch", labels_key="labels")
    return SCVI(adata, n_hidden=4, n_latent=2)


def test_the_registry_under_familiar_names(model: SCVI, tmp_path: Path) -> None:
    assert model.data_registry["batch"]["attr_key"] == "batch"
    assert list(model.get_state_registry("batch").categorical_mapping) == ["batch_0", "batch_1"]
    assert model.get_setup_arg("labels_key") == "labels"
    assert list(model.get_var_names()) == list(model.adata.var_names)
    assert model.get_from_registry(None, "X") is model.adata.X
    with pytest.raises(MissingKeyError, match="no argument 'colour'"):
        model.get_setup_arg("colour")
    model.save(tmp_path / "m")
    assert SCVI.load_registry(tmp_path / "m") == model.registry


def test_managers_of_other_data(model: SCVI) -> None:
    other = synthetic_iid(batch_size=6, n_genes=8, n_proteins=0, n_regions=0, seed=3, n_batches=3)
    with pytest.raises(pv.errors.UnseenCategoryError, match="batch_2"):
        model.get_anndata_manager(other)
    manager = model.transfer_fields(other, extend_categories=True)
    assert manager.summary_stats.n_batch == 3
    codes = np.asarray(manager.get_from_registry("batch"))[:, 0]
    assert codes.tolist() == np.repeat([0, 1, 2], 6).tolist()
