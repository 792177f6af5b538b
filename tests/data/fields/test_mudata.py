from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Iterator
from typing import Any

import mudata
import numpy as np
import pytest

from pyrovi._constants import UUID_KEY
from pyrovi.data import AnnDataManager, AnnDataManagerValidationCheck, fields, synthetic_iid
from pyrovi.data.synthetic import no_pull_on_update
from pyrovi.errors import DataError, MissingKeyError, RegistryError, UnseenCategoryError

# Subsets are small: that some genes and categories are rare in them is not the matter here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fewer than 3 rows"),
    pytest.mark.filterwarnings("ignore:.*without a single count"),
]

PLAIN = [
    cls
    for name, cls in vars(fields).items()
    if inspect.isclass(cls) and not name.startswith("MuData") and cls is not fields.AnnDataField
]


@pytest.fixture(autouse=True)
def _coming_defaults() -> Iterator[None]:
    with no_pull_on_update(mudata):
        yield


@pytest.fixture
def mdata() -> mudata.MuData:
    mdata = synthetic_iid(
        batch_size=15, n_genes=12, n_proteins=5, n_regions=4, dropout_ratio=0.3, return_mudata=True
    )
    rng = np.random.default_rng(0)
    rna = mdata["rna"]
    rna.obs["batch"] = mdata.obs["batch"].to_numpy()
    rna.obs["cat1"] = rng.integers(0, 3, mdata.n_obs)
    rna.obs["cont1"] = rng.normal(size=mdata.n_obs)
    return mdata


def make_fields() -> list[fields.AnnDataField]:
    batch = fields.MuDataCategoricalObsField("batch", "batch", mod_key="rna")
    return [
        batch,
        fields.MuDataLayerField("X", None, mod_key="rna", is_count_data=True, mod_required=True),
        fields.MuDataLayerField("atac", mod_key="accessibility", allow_empty_obs=True),
        fields.MuDataCategoricalObsField("labels", "labels"),
        fields.MuDataCategoricalJointObsField("cats", ["cat1"], mod_key="rna"),
        fields.MuDataNumericalJointObsField("conts", ["cont1"], mod_key="rna"),
        fields.MuDataNumericalObsField("size_factor", None, required=False),
        fields.MuDataProteinLayerField(
            "proteins",
            None,
            mod_key="protein_expression",
            mod_required=True,
            use_batch_mask=True,
            batch_field=batch,
        ),
    ]


def make_manager(mdata: Any, *args: Any, **kwargs: Any) -> AnnDataManager:
    manager = AnnDataManager(make_fields())
    manager.register_fields(mdata, *args, **kwargs)
    return manager


@pytest.mark.parametrize("cls", PLAIN)
def test_each_field_has_a_mudata_form(cls: type) -> None:
    form = getattr(fields, f"MuData{cls.__name__}")
    assert issubclass(form, fields.MuDataField)
    assert form.field_class is cls
    assert form.axis == cls.axis
    assert cls.__name__ in form.__doc__
    assert pickle.loads(pickle.dumps(form)) is form


def test_data_come_from_the_modality(mdata: mudata.MuData) -> None:
    manager = make_manager(mdata)
    assert manager.get_from_registry("X") is mdata["rna"].X
    assert manager.get_from_registry("proteins") is mdata["protein_expression"].X
    codes = mdata["rna"].obs["batch"].astype("category").cat.codes.to_numpy()
    np.testing.assert_array_equal(manager.get_from_registry("batch").ravel(), codes)
    np.testing.assert_array_equal(
        manager.get_from_registry("labels").ravel(), mdata.obs["labels"].cat.codes
    )
    np.testing.assert_array_equal(manager.get_from_registry("conts"), mdata["rna"].obs[["cont1"]])
    assert dict(manager.summary_stats) == {
        "n_obs": 30,
        "n_batch": 2,
        "n_vars": 12,
        "n_cells": 30,
        "n_atac": 4,
        "n_labels": 3,
        "n_cats": 1,
        "n_conts": 1,
        "n_proteins": 5,
    }
    assert manager.var_names.equals(mdata["rna"].var_names)
    place = {"attr_name": "X", "attr_key": None, "mod_key": "rna"}
    assert manager.data_registry["X"] == place
    assert manager.data_registry["labels"].mod_key is None


def test_only_the_id_is_written(mdata: mudata.MuData) -> None:
    before, obs, var = mdata.copy(), mdata.obs.copy(), mdata.var.copy()
    objects = {name: id(mdata[name].X) for name in mdata.mod}
    manager = make_manager(mdata)
    for key in manager.data_registry:
        manager.get_from_registry(key)
    assert mdata.uns == {UUID_KEY: manager.adata_uuid}
    assert mdata.obs.equals(obs)
    assert mdata.var.equals(var)
    assert {name: id(mdata[name].X) for name in mdata.mod} == objects
    for name in mdata.mod:
        assert mdata[name].obs.equals(before[name].obs)
        assert mdata[name].uns == before[name].uns
        np.testing.assert_array_equal(mdata[name].X, before[name].X)


def test_registry_round_trip(mdata: mudata.MuData) -> None:
    manager = make_manager(mdata)
    registry = json.loads(json.dumps(manager.registry))
    assert registry == manager.registry
    again = make_manager(mdata.copy(), registry)
    assert again.summary_stats == manager.summary_stats
    assert again.adata_uuid != manager.adata_uuid


def test_protein_mask_uses_the_batches_of_another_modality(mdata: mudata.MuData) -> None:
    first = (mdata["rna"].obs["batch"] == "batch_0").to_numpy()
    mdata["protein_expression"].X[first, 2] = 0
    manager = make_manager(mdata)
    mask = manager.get_state_registry("proteins").protein_batch_mask
    assert mask["0"].tolist() == [True, True, False, True, True]
    assert mask["1"].all()
    query = manager.transfer_fields(mdata[first].copy())
    assert query.get_state_registry("proteins").protein_batch_mask["1"].all()


def test_transfer(mdata: mudata.MuData) -> None:
    manager = make_manager(mdata)
    other = mdata.copy()
    other["rna"].obs["batch"] = "batch_1"
    assert (manager.transfer_fields(other).get_from_registry("batch") == 1).all()
    other["rna"].obs["batch"] = "batch_9"
    message = r"mdata\['rna'\]\.obs\['batch'\] holds the category 'batch_9'"
    with pytest.raises(UnseenCategoryError, match=message):
        manager.transfer_fields(other)
    assert manager.transfer_fields(other, extend_categories=True).summary_stats.n_batch == 3
    other["rna"].obs["batch"] = "batch_0"
    other["rna"].var_names = [f"other_{i}" for i in range(12)]
    with pytest.raises(RegistryError, match=r"mdata\['rna'\]\.var_names"):
        manager.transfer_fields(other)


def test_views(mdata: mudata.MuData) -> None:
    manager = make_manager(mdata)
    view = mdata[::2]
    query = manager.transfer_fields(view)
    assert view.is_view
    np.testing.assert_array_equal(query.get_from_registry("X"), mdata["rna"].X[::2])
    other = mdata[5:10]
    assert make_manager(other).adata_uuid != manager.adata_uuid
    assert mdata.uns[UUID_KEY] == manager.adata_uuid


def test_errors(mdata: mudata.MuData) -> None:
    adata = synthetic_iid(batch_size=10)
    with pytest.raises(DataError, match=r"'X' got no modality.*mod_key="):
        fields.MuDataLayerField("X")
    with pytest.raises(DataError, match="'batch' got no modality"):
        fields.MuDataCategoricalObsField("batch", "batch", mod_required=True)
    with pytest.raises(DataError, match="MuDataCategoricalObsField, the data are an AnnData"):
        make_manager(adata)
    with pytest.raises(DataError, match=r"AnnData.*use LayerField"):
        fields.MuDataLayerField("X", mod_key="rna").register_field(adata)
    plain = AnnDataManager([fields.LayerField("X")])
    with pytest.raises(DataError, match=r"LayerField, the data are a MuData.*MuData form"):
        plain.register_fields(mdata)
    with pytest.raises(MissingKeyError, match=r"'dna' is no modality.*'rna'"):
        fields.MuDataLayerField("X", mod_key="dna").register_field(mdata)
    with pytest.raises(MissingKeyError, match=r"'none' not found in mdata\['rna'\]\.obs"):
        fields.MuDataCategoricalObsField("b", "none", mod_key="rna").register_field(mdata)
    mdata["rna"].X[3, 4] = 0.5
    with pytest.raises(DataError, match=r"mdata\['rna'\]\.X holds 0\.5"):
        make_manager(mdata)


def test_modalities_must_be_paired() -> None:
    rna = synthetic_iid(batch_size=10, n_proteins=0, n_regions=0)
    protein = synthetic_iid(batch_size=10, n_genes=4, n_proteins=0, n_regions=0)
    protein.var_names = [f"protein_{i}" for i in range(4)]

    def manager(part: Any, **kwargs: Any) -> AnnDataManager:
        data = mudata.MuData({"rna": rna, "protein": part})
        made = AnnDataManager([fields.MuDataLayerField("X", mod_key="rna")], **kwargs)
        made.register_fields(data)
        return made

    manager(protein)
    with pytest.raises(
        DataError, match=r"'protein'.*10 observations.*lacks 10 of them.*intersect_obs"
    ):
        manager(protein[:10].copy())
    with pytest.raises(DataError, match=r"'protein'.*another order"):
        manager(protein[::-1].copy())
    lenient = AnnDataManagerValidationCheck(check_fully_paired_mudata=False)
    manager(protein[:10].copy(), validation_checks=lenient)
