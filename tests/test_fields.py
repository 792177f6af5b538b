"""pv.fields: what each constructor means for the data it is given."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import pyrovi as pv
from pyrovi.data import AnnDataManager
from pyrovi.data.specs import FieldSpec, guess_spec
from pyrovi.data.tabular import as_annotated
from pyrovi.errors import DataError, MissingKeyError, RegistryError


@pytest.fixture
def adata() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (6, 4)).astype(np.float32) + 1
    adata = anndata.AnnData(counts / 2)
    adata.layers["counts"] = counts
    adata.obs["age"] = [30, 40, 50, 60, 70, 80]
    adata.obs["donor"] = list("ababab")
    adata.obsm["pca"] = rng.normal(size=(6, 2))
    adata.varm["markers"] = rng.integers(0, 2, (4, 3)).astype(float)
    return adata


def tensor_of(spec: FieldSpec, data: Any) -> torch.Tensor:
    """What a minibatch of all observations holds."""
    field = spec.field("it", data)
    manager = AnnDataManager([field])
    manager.register_fields(data)
    return torch.as_tensor(manager.create_torch_dataset()[:]["it"])


def test_a_layer(adata: anndata.AnnData) -> None:
    np.testing.assert_array_equal(
        tensor_of(pv.fields.layer("counts"), adata), adata.layers["counts"]
    )
    np.testing.assert_array_equal(tensor_of(pv.fields.layer(), adata), adata.X)


def test_a_layer_is_counts_if_all_values_are(adata: anndata.AnnData) -> None:
    assert pv.fields.layer("counts").resolve(adata).kind == "counts"
    assert pv.fields.layer().resolve(adata).kind == "numbers"
    assert pv.fields.layer("counts", counts=False).resolve(adata).kind == "numbers"


def test_counts_are_checked(adata: anndata.AnnData) -> None:
    with pytest.raises(DataError, match="Expected counts"):
        tensor_of(pv.fields.layer(counts=True), adata)


def test_a_total(adata: anndata.AnnData) -> None:
    total = tensor_of(pv.fields.total("counts"), adata)
    np.testing.assert_allclose(total, adata.layers["counts"].sum(1, keepdims=True))


def test_a_column_of_obs_has_two_axes(adata: anndata.AnnData) -> None:
    age = tensor_of(pv.fields.obs("age"), adata)
    assert age.shape == (6, 1)
    assert age.dtype == torch.float32
    donor = tensor_of(pv.fields.obs("donor"), adata)
    assert donor.flatten().tolist() == [0, 1, 0, 1, 0, 1]
    assert donor.dtype == torch.int64
    assert tensor_of(pv.fields.obs("age", kind="integers"), adata).dtype == torch.int64
    assert tensor_of(pv.fields.obs("age", kind="integers"), adata).shape == (6, 1)


def test_obsm_and_varm(adata: anndata.AnnData) -> None:
    np.testing.assert_allclose(
        tensor_of(pv.fields.obsm("pca"), adata), adata.obsm["pca"], rtol=1e-6
    )
    np.testing.assert_allclose(tensor_of(pv.fields.varm("markers"), adata), adata.varm["markers"])


def test_a_column_is_a_vector() -> None:
    frame = pd.DataFrame(
        {"x": [0.5, 1.5], "k": [1, 0], "g": ["u", "v"], "c": pd.Categorical(["q", "p"])}
    )
    data = as_annotated(frame)
    for name, values, dtype in [
        ("x", [0.5, 1.5], torch.float32),
        ("k", [1, 0], torch.int64),
        ("g", [0, 1], torch.int64),
        ("c", [1, 0], torch.int64),
    ]:
        column = tensor_of(pv.fields.column(name), data)
        assert column.shape == (2,)
        assert column.tolist() == values
        assert column.dtype == dtype
    assert tensor_of(pv.fields.column("k", kind="numbers"), data).dtype == torch.float32


def test_truth_values_are_numbers() -> None:
    data = as_annotated(pd.DataFrame({"b": [True, False]}))
    assert tensor_of(pv.fields.column("b"), data).tolist() == [1.0, 0.0]


def test_arrays_keep_their_shape() -> None:
    cube = np.arange(24.0).reshape(2, 3, 4)
    data = as_annotated({"y": [1.0, 2.0], "cube": cube, "k": np.array([[1, 2], [3, 4]])})
    assert tensor_of(pv.fields.array("y"), data).shape == (2,)
    np.testing.assert_array_equal(tensor_of(pv.fields.array("cube"), data), cube)
    assert tensor_of(pv.fields.array("k"), data).dtype == torch.int64


def test_double_precision_is_torch_default_type() -> None:
    data = as_annotated({"y": [1 / 3, 2.0]})
    torch.set_default_dtype(torch.float64)
    try:
        assert tensor_of(pv.fields.array("y"), data)[0].item() == 1 / 3
    finally:
        torch.set_default_dtype(torch.float32)


def test_json_round_trip() -> None:
    spec = pv.fields.layer("counts", counts=True, mod="rna")
    assert FieldSpec.from_json(spec.to_json()) == spec


def test_a_transfer_wants_the_same_shape() -> None:
    data = as_annotated({"cube": np.ones((2, 3, 4))})
    manager = AnnDataManager([pv.fields.array("cube").field("cube", data)])
    manager.register_fields(data)
    with pytest.raises(RegistryError, match=r"shape \[3, 5\].*\[3, 4\]"):
        manager.transfer_fields(as_annotated({"cube": np.ones((2, 3, 5))}))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pv.fields.obs("nope"), MissingKeyError, "'nope' not found in obs. Found"),
        (lambda: pv.fields.layer("nope"), MissingKeyError, "'nope' not found in layers"),
        (lambda: pv.fields.obsm("nope"), MissingKeyError, "'nope' not found in obsm"),
        (lambda: pv.fields.array("nope"), MissingKeyError, "'nope' not found in the data"),
        (lambda: pv.fields.layer(mod="rna"), DataError, "names a modality"),
        (lambda: pv.fields.obs("age", kind="counts"), DataError, "cannot be of kind 'counts'"),
    ],
)
def test_what_is_not_there(make: Any, error: type, message: str, adata: anndata.AnnData) -> None:
    with pytest.raises(error, match=message):
        make().field("it", adata)


def test_fractions_are_no_integers() -> None:
    data = as_annotated({"y": [0.5, 1.0]})
    with pytest.raises(DataError, match=r"holds 0\.5\. Expected integers"):
        tensor_of(pv.fields.array("y", kind="integers"), data)


def test_missing_numbers_are_refused() -> None:
    data = as_annotated({"y": np.array([[1.0, np.nan]])})
    with pytest.raises(DataError, match=r"has nan at \(0, 1\)"):
        tensor_of(pv.fields.array("y"), data)


def test_guessing_by_name(adata: anndata.AnnData) -> None:
    assert guess_spec("X", adata) == pv.fields.layer()
    assert guess_spec("donor", adata) == pv.fields.obs("donor")
    assert guess_spec("counts", adata) == pv.fields.layer("counts")
    assert guess_spec("nothing", adata) is None
    adata.obs["pca"] = 1.0
    with pytest.raises(DataError, match="is in obs and in obsm"):
        guess_spec("pca", adata)


def test_modalities() -> None:
    mdata = pv.data.synthetic_iid(batch_size=10, n_genes=5, n_proteins=3, return_mudata=True)
    counts = tensor_of(pv.fields.layer(mod="rna"), mdata)
    assert counts.shape == (mdata.n_obs, 5)
    with pytest.raises(DataError, match="needs a modality: pass mod="):
        pv.fields.layer().field("X", mdata)
    with pytest.raises(MissingKeyError, match="no modality"):
        pv.fields.layer(mod="dna").field("X", mdata)
