from __future__ import annotations

import copy
import gc
import json
import pickle
import weakref
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from pyrovi._constants import REGISTRY_KEYS, UUID_KEY
from pyrovi.data import AnnDataManager, AnnDataManagerValidationCheck, synthetic_iid
from pyrovi.data.fields import (
    AnnDataField,
    CategoricalJointObsField,
    CategoricalObsField,
    LabelsWithUnlabeledObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
    ObsmField,
    ProteinObsmField,
    StringUnsField,
    VarmField,
)
from pyrovi.errors import (
    DataError,
    MissingKeyError,
    NotSetUpError,
    RegistryError,
    UnseenCategoryError,
)

# Subsets are small: that some genes and categories are rare in them is not the matter here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fewer than 3 rows"),
    pytest.mark.filterwarnings("ignore:.*without a single count"),
]


@pytest.fixture
def adata() -> anndata.AnnData:
    adata = synthetic_iid(batch_size=20, n_genes=15, n_proteins=6, n_regions=5, dropout_ratio=0.3)
    rng = np.random.default_rng(0)
    adata.layers["raw"] = sparse.csr_matrix(adata.X)
    adata.obs["cat1"] = rng.integers(0, 3, adata.n_obs)
    adata.obs["cat2"] = rng.integers(0, 2, adata.n_obs).astype(bool)
    adata.obs["cont1"] = rng.normal(size=adata.n_obs)
    adata.obs["cont2"] = rng.normal(size=adata.n_obs).astype(np.float32)
    adata.obs["donor"] = pd.array(np.where(adata.obs["cat2"], "d1", "d2"), dtype="string")
    adata.obsm["frame"] = pd.DataFrame(
        rng.normal(size=(adata.n_obs, 2)), index=adata.obs_names, columns=["p", "q"]
    )
    adata.varm["loadings"] = rng.normal(size=(adata.n_vars, 3))
    adata.uns["how"] = "full"
    return adata


def make_fields(**changes: AnnDataField) -> list[AnnDataField]:
    batch = CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, "batch")
    fields: dict[str, AnnDataField] = {
        "X": LayerField("X"),
        "atac": LayerField("atac", "raw"),
        "batch": batch,
        "labels": LabelsWithUnlabeledObsField("labels", "labels", "label_0"),
        "sample": CategoricalObsField("sample", "donor"),
        "size_factor": NumericalObsField("size_factor", None, required=False),
        "cats": CategoricalJointObsField("extra_categorical_covs", ["cat1", "cat2"]),
        "conts": NumericalJointObsField("extra_continuous_covs", ["cont1", "cont2"]),
        "proteins": ProteinObsmField(
            "proteins", "protein_expression", batch_field=batch, colnames_uns_key="protein_names"
        ),
        "frame": ObsmField("frame", "frame"),
        "loadings": VarmField("loadings", "loadings"),
        "how": StringUnsField("how", "how"),
    }
    return list({**fields, **changes}.values())


def make_manager(adata: anndata.AnnData, *args: Any, **kwargs: Any) -> AnnDataManager:
    setup = {"model_name": "M", "setup_method_name": "setup_anndata", "setup_args": {"layer": None}}
    manager = AnnDataManager(make_fields(), setup)
    manager.register_fields(adata, *args, **kwargs)
    return manager


# ---------------------------------------------------------------------- the AnnData is left alone


def addresses(adata: anndata.AnnData) -> dict[str, int]:
    """Where the memory of all arrays is."""
    found = {"X": adata.X.ctypes.data}
    found["raw"] = adata.layers["raw"].data.ctypes.data
    for name, value in {**adata.obsm, **adata.varm}.items():
        found[name] = np.asarray(value).ctypes.data
    for name in adata.obs:
        column = adata.obs[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            found[name] = column.cat.codes.to_numpy().ctypes.data
        elif isinstance(column.dtype, np.dtype):
            found[name] = column.to_numpy().ctypes.data
    return found


def test_only_the_id_is_written(adata: anndata.AnnData) -> None:
    assert UUID_KEY not in adata.uns
    adata.X = np.asfortranarray(adata.X)  # the memory layout is the user's as well
    before, memory = adata.copy(), addresses(adata)
    objects = {name: id(value) for name, value in [("X", adata.X), *adata.obsm.items()]}
    order = adata.X.flags["F_CONTIGUOUS"]
    manager = make_manager(adata)
    for key in manager.data_registry:
        manager.get_from_registry(key)
    manager.validate()
    manager.transfer_fields(adata[:10])
    assert adata.uns.pop(UUID_KEY) == manager.adata_uuid
    assert addresses(adata) == memory
    assert {name: id(v) for name, v in [("X", adata.X), *adata.obsm.items()]} == objects
    assert adata.X.flags["F_CONTIGUOUS"] == order
    assert adata.X.dtype == before.X.dtype
    np.testing.assert_array_equal(adata.X, before.X)
    assert (adata.layers["raw"] != before.layers["raw"]).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    pd.testing.assert_frame_equal(adata.obsm["frame"], before.obsm["frame"])
    assert set(adata.obsm) == set(before.obsm)
    assert set(adata.varm) == set(before.varm)
    assert adata.uns.keys() == before.uns.keys()
    assert all(np.array_equal(adata.uns[key], before.uns[key]) for key in before.uns)


def test_a_failed_setup_writes_nothing(adata: anndata.AnnData) -> None:
    manager = AnnDataManager(make_fields(sample=CategoricalObsField("sample", "none")))
    with pytest.raises(MissingKeyError, match="'none' not found"):
        manager.register_fields(adata)
    assert UUID_KEY not in adata.uns
    with pytest.raises(NotSetUpError, match="register_fields"):
        _ = manager.registry


# ---------------------------------------------------------------------- what is registered


def test_registry_is_plain_json_and_rebuilds(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    registry = manager.registry
    loaded = json.loads(json.dumps(registry))
    assert loaded == registry
    again = make_manager(adata.copy(), loaded)
    assert again.summary_stats == manager.summary_stats
    assert again.registry["field_registries"] == registry["field_registries"]
    for key in manager.data_registry:
        left, right = manager.get_from_registry(key), again.get_from_registry(key)
        if sparse.issparse(left):
            left, right = left.toarray(), right.toarray()
        np.testing.assert_array_equal(left, right)


def test_registry_is_a_copy(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    manager.registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"] = []
    assert list(manager.get_state_registry("batch").categorical_mapping) == ["batch_0", "batch_1"]


def test_summary_stats(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    assert dict(manager.summary_stats) == {
        "n_obs": 40,
        "n_vars": 15,
        "n_cells": 40,
        "n_atac": 15,
        "n_batch": 2,
        "n_labels": 3,
        "n_sample": 2,
        "n_extra_categorical_covs": 2,
        "n_extra_continuous_covs": 2,
        "n_proteins": 6,
        "n_frame": 2,
        "n_loadings": 3,
    }
    assert manager.summary_stats.n_vars == manager.summary_stats["n_vars"]
    with pytest.raises(AttributeError, match=r"'n_none'.*n_vars"):
        _ = manager.summary_stats.n_none
    assert manager.n_obs == 40
    assert manager.obs_names.equals(adata.obs_names)
    assert manager.var_names.equals(adata.var_names)


def test_tensor_specs_describe_the_data(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    for key, entry in manager.registry["field_registries"].items():
        spec = entry["tensor"]
        if not manager.has_field(key):
            assert spec is None
            continue
        data = manager.get_from_registry(key)
        if spec["axis"] == "uns":
            continue
        shape = spec["shape"] if spec["axis"] == "var" else [adata.n_obs, *spec["shape"]]
        assert list(data.shape) == shape
        assert (spec["dtype"] == "int64") == (spec["kind"] == "categorical")
        if spec["dtype"] == "int64":
            assert data.dtype == np.int64


def test_state_registry_gives_arrays(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    mapping = manager.get_state_registry("batch").categorical_mapping
    assert np.where(mapping == "batch_1")[0].tolist() == [1]
    mappings = manager.get_state_registry("extra_categorical_covs").mappings
    assert mappings.cat1.dtype == np.int64
    assert mappings["cat2"].dtype == bool
    names = manager.get_state_registry("proteins").column_names
    assert list(names) == adata.uns["protein_names"]
    assert manager.get_state_registry("proteins").protein_batch_mask["0"].dtype == bool
    with pytest.raises(MissingKeyError, match=r"No field 'none' is registered.*'batch'"):
        manager.get_state_registry("none")


def test_empty_and_unknown_fields(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    assert manager.has_field("batch")
    assert not manager.has_field("size_factor")
    assert not manager.has_field("none")
    assert "size_factor" not in manager.data_registry
    with pytest.raises(MissingKeyError, match="'size_factor' is empty"):
        manager.get_from_registry("size_factor")
    with pytest.raises(MissingKeyError, match="No field 'none' is registered"):
        manager.get_from_registry("none")


def test_var_names_without_a_layer(adata: anndata.AnnData) -> None:
    manager = AnnDataManager([CategoricalObsField("batch", "batch")])
    manager.register_fields(adata)
    with pytest.raises(MissingKeyError, match="No registered field is a layer"):
        _ = manager.var_names
    assert manager.summary_stats.n_obs == 40


def test_var_fields_are_not_cut_with_the_observations(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    query = manager.transfer_fields(adata[:7])
    assert query.get_from_registry("loadings").shape == (15, 3)
    assert query.get_from_registry("X").shape == (7, 15)


# ---------------------------------------------------------------------- transfer, new fields


def test_transfer(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    target = adata[adata.obs["batch"] == "batch_1"].copy()
    query = manager.transfer_fields(target)
    assert (query.get_from_registry("batch") == 1).all()
    assert query.summary_stats == {**manager.summary_stats, "n_obs": 20, "n_cells": 20}
    assert query.adata is target
    assert query.registry["setup_args"] == {"layer": None}


def test_transfer_of_unseen_categories(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    target = adata.copy()
    target.obs["batch"] = ["batch_1", "batch_7"] * 20
    with pytest.raises(UnseenCategoryError, match=r"'batch_7'.*extend_categories=True"):
        manager.transfer_fields(target)
    query = manager.transfer_fields(target, extend_categories=True)
    assert query.summary_stats.n_batch == 3
    assert manager.summary_stats.n_batch == 2
    assert query.get_from_registry("batch").ravel().tolist() == [1, 2] * 20
    query.validate()
    # The transferred registry is the source of the next.
    assert query.transfer_fields(target).summary_stats.n_batch == 3


def test_transfer_without_labels(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    target = adata.copy()
    del target.obs["labels"]
    with pytest.raises(MissingKeyError, match="allow_missing_labels=True"):
        manager.transfer_fields(target)
    query = manager.transfer_fields(target, allow_missing_labels=True)
    assert (query.get_from_registry("labels") == 2).all()
    query.validate()


def test_transfer_of_other_variables(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    with pytest.raises(RegistryError, match="missing 5: 'gene_10'"):
        manager.transfer_fields(adata[:, :10])
    manager.transfer_fields(adata[:, ::-1][:, manager.var_names])


def test_transfer_options(adata: anndata.AnnData) -> None:
    manager = AnnDataManager(make_fields())
    with pytest.raises(TypeError, match="source_registry="):
        manager.register_fields(adata, extend_categories=True)
    manager.register_fields(adata)
    with pytest.raises(TypeError, match="'extend_categorys'"):
        manager.transfer_fields(adata, extend_categorys=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 2}, "format 2.*update pyrovi"), ({"format": None}, "format None")],
)
def test_foreign_registries(change: Any, message: str, adata: anndata.AnnData) -> None:
    registry = {**make_manager(adata).registry, **change}
    with pytest.raises(RegistryError, match=message):
        make_manager(adata, registry)
    with pytest.raises(RegistryError, match="lacks 'format', 'field_registries'"):
        make_manager(adata, {"a": 1})


def test_source_without_a_field(adata: anndata.AnnData) -> None:
    registry = make_manager(adata).registry
    del registry["field_registries"]["batch"]
    with pytest.raises(MissingKeyError, match="No field 'batch'"):
        make_manager(adata, registry)


def test_new_fields(adata: anndata.AnnData) -> None:
    manager = AnnDataManager([LayerField("X"), CategoricalObsField("batch", "batch")])
    manager.register_fields(adata)
    manager.register_new_fields([ObsmField("frame", "frame")])
    assert manager.get_from_registry("frame").shape == (40, 2)
    assert manager.transfer_fields(adata[:5]).summary_stats.n_frame == 2
    with pytest.raises(RegistryError, match="registry key 'batch'"):
        manager.register_new_fields([CategoricalObsField("batch", "donor")])
    with pytest.raises(MissingKeyError, match="'none' not found"):
        manager.register_new_fields([CategoricalObsField("other", "none")])
    assert not manager.has_field("other")
    assert len(manager.fields) == 3


def test_registered_once(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    with pytest.raises(RegistryError, match=r"registered its fields already.*transfer_fields"):
        manager.register_fields(adata)


def test_summary_stats_must_agree(adata: anndata.AnnData) -> None:
    class Other(ObsmField):
        def get_summary_stats(self, state_registry: Any) -> dict[str, int]:
            return {"n_batch": 7}

    manager = AnnDataManager([CategoricalObsField("batch", "batch"), Other("o", "frame")])
    with pytest.raises(RegistryError, match=r"'o'.*'n_batch' as 7.*as 2"):
        manager.register_fields(adata)
    assert UUID_KEY not in adata.uns


# ---------------------------------------------------------------------- which object is which


def test_copies_and_subsets_are_other_objects(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    clone, part = adata.copy(), adata[:10].copy()
    assert clone.uns[UUID_KEY] == part.uns[UUID_KEY] == manager.adata_uuid  # carried along
    ids = {manager.adata_uuid, make_manager(clone).adata_uuid, make_manager(part).adata_uuid}
    assert len(ids) == 3
    assert adata.uns[UUID_KEY] == manager.adata_uuid
    assert part.uns[UUID_KEY] != clone.uns[UUID_KEY]
    # Another setup has another id: copies that were made before keep the earlier one.
    before = adata.copy()
    again = make_manager(adata)
    assert adata.uns[UUID_KEY] == again.adata_uuid != manager.adata_uuid
    assert before.uns[UUID_KEY] == manager.adata_uuid


def test_managers_of_one_object_do_not_clobber_each_other(adata: anndata.AnnData) -> None:
    one, two = make_manager(adata), AnnDataManager([CategoricalObsField("batch")])
    two.register_fields(adata)
    assert one.summary_stats.n_batch == 2
    assert two.summary_stats.n_batch == 1
    assert len(np.unique(one.get_from_registry("batch"))) == 2
    assert len(np.unique(two.get_from_registry("batch"))) == 1


def test_setup_of_a_view(adata: anndata.AnnData, recwarn: pytest.WarningsRecorder) -> None:
    make_manager(adata)
    view = adata[:10]
    manager = make_manager(view)
    assert manager.adata is view
    assert not view.is_view  # an id was written
    assert view.uns[UUID_KEY] == manager.adata_uuid != adata.uns[UUID_KEY]
    assert not [w for w in recwarn if "view" in str(w.message)]
    assert manager.get_from_registry("X").shape == (10, 15)


def test_transfer_to_a_view_leaves_it_a_view(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    view = adata[::-2]
    query = manager.transfer_fields(view)
    assert view.is_view
    assert query.adata_uuid != manager.adata_uuid
    other = adata.copy()
    del other.uns[UUID_KEY]
    manager.transfer_fields(other)
    assert UUID_KEY not in other.uns  # nothing is written in a transfer
    np.testing.assert_array_equal(
        query.get_from_registry("batch"), manager.get_from_registry("batch")[::-2]
    )
    np.testing.assert_array_equal(query.get_from_registry("X"), adata.X[::-2])


def test_ids_do_not_keep_objects_alive() -> None:
    adata = synthetic_iid(batch_size=10)
    make = AnnDataManager([LayerField("X")])
    make.register_fields(adata)
    ghost = weakref.ref(adata)
    del adata, make
    gc.collect()
    assert ghost() is None


def test_managers_pickle_and_copy(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    for other in (pickle.loads(pickle.dumps(manager)), copy.deepcopy(manager)):
        assert other.registry == manager.registry
        np.testing.assert_array_equal(
            other.get_from_registry("batch"), manager.get_from_registry("batch")
        )


def test_backed(adata: anndata.AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    manager = make_manager(backed)
    assert backed.isbacked
    assert dict(manager.summary_stats) == dict(make_manager(adata).summary_stats)
    np.testing.assert_array_equal(manager.get_from_registry("X")[3:5], adata.X[3:5])
    np.testing.assert_array_equal(
        manager.transfer_fields(backed[4:6]).get_from_registry("X")[:], adata.X[4:6]
    )
    with pytest.raises(DataError, match=r"view of an AnnData on disk.*to_memory\(\)"):
        make_manager(backed[:5])
    backed.file.close()


def test_the_id_is_saved_with_the_data(adata: anndata.AnnData, tmp_path: Path) -> None:
    manager = make_manager(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    loaded = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert loaded.uns[UUID_KEY] == manager.adata_uuid
    assert make_manager(loaded, manager.registry).adata_uuid != manager.adata_uuid


# ---------------------------------------------------------------------- validation, setup


def test_validate_sees_changes(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    manager.validate()
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    manager.validate()
    adata.obs.loc[adata.obs_names[3], "batch"] = "new"
    with pytest.raises(UnseenCategoryError, match="'new'"):
        manager.validate()
    with pytest.raises(UnseenCategoryError, match="'new'"):
        manager.get_from_registry("batch")
    adata._inplace_subset_obs(slice(4, None))
    with pytest.raises(RegistryError, match="36 observations, but were registered with 40"):
        manager.validate()


def test_names_must_be_unique(adata: anndata.AnnData) -> None:
    lenient = AnnDataManagerValidationCheck(check_unique_names=False)
    adata.var_names = ["g"] * adata.n_vars
    with pytest.raises(DataError, match=r"adata\.var_names.*var_names_make_unique\(\)"):
        make_manager(adata)
    adata.var_names_make_unique()
    adata.obs_names = ["c"] * adata.n_obs
    with pytest.raises(DataError, match=r"adata\.obs_names.*obs_names_make_unique\(\)"):
        make_manager(adata)
    AnnDataManager([LayerField("X")], validation_checks=lenient).register_fields(adata)


def test_no_observations(adata: anndata.AnnData) -> None:
    with pytest.raises(DataError, match="n_obs=0"):
        make_manager(adata[:0])


def test_setup_args(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    manager.update_setup_method_args({"batch_key": "batch", "setup_args": {"keys": ("a", "b")}})
    manager.update_setup_method_args({"model_name": "N"})
    registry = manager.registry
    assert registry["model_name"] == "N"
    assert registry["setup_args"] == {"layer": None, "batch_key": "batch", "keys": ["a", "b"]}
    assert json.loads(json.dumps(registry)) == registry
    with pytest.raises(RegistryError, match=r"\['f'\] is <function.*JSON"):
        manager.update_setup_method_args({"f": lambda: 0})


def test_fields_have_one_key_each() -> None:
    with pytest.raises(RegistryError, match="registry key 'X'"):
        AnnDataManager([LayerField("X"), LayerField("X", "raw")])


def test_view_registry(adata: anndata.AnnData, capsys: pytest.CaptureFixture[str]) -> None:
    manager = make_manager(adata)
    manager.view_registry()
    text = capsys.readouterr().out
    for part in ("n_vars", "adata.obs['batch']", "categorical_mapping", "'batch_0', 'batch_1'"):
        assert part in text
    manager.view_registry(hide_state_registries=True)
    assert "categorical_mapping" not in capsys.readouterr().out
    manager.view_setup_method_args()
    text = capsys.readouterr().out
    assert "M.setup_anndata" in text
    assert "layer" in text


def test_repr(adata: anndata.AnnData) -> None:
    assert "no data" in repr(AnnDataManager([LayerField("X")]))
    assert "'batch'" in repr(make_manager(adata))
    assert repr(LayerField("X", "raw")) == "LayerField('X', adata.layers['raw'])"


def test_torch_dataset(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    whole = manager.create_torch_dataset(data_and_attributes=["batch"])
    assert len(whole) == 40
    mask = np.zeros(40, dtype=bool)
    mask[[2, 30]] = True
    for indices in ([2, 30], mask):
        part = manager.create_torch_dataset(indices, data_and_attributes=["batch"])
        assert [int(part[i]["batch"].ravel()[0]) for i in range(len(part))] == [0, 1]
