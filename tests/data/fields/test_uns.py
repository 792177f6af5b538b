from __future__ import annotations

import anndata
import numpy as np
import pytest

from pyrovi.data.fields import StringUnsField
from pyrovi.errors import DataError, MissingKeyError


def test_string() -> None:
    adata = anndata.AnnData(np.ones((2, 2)), uns={"how": "latent", "number": 3})
    field = StringUnsField("minify_type", "how")
    state = field.register_field(adata)
    assert state == {"value": "latent"}
    assert field.get_field_data(adata, state) == "latent"
    assert field.get_summary_stats(state) == {}
    assert field.tensor_spec(state)["axis"] == "uns"
    adata.uns["how"] = "other"
    assert field.transfer_field(state, adata) == {"value": "other"}
    with pytest.raises(DataError, match=r"adata\.uns\['number'\] is 3 \(int\).*string"):
        StringUnsField("x", "number").register_field(adata)
    with pytest.raises(MissingKeyError, match="'none' not found"):
        StringUnsField("x", "none").validate_field(adata)


def test_optional() -> None:
    field = StringUnsField("x", None, required=False)
    assert field.is_empty
    assert field.register_field(anndata.AnnData(np.ones((1, 1)))) == {}
    with pytest.raises(DataError, match=r"got no key.*required=False"):
        StringUnsField("x", None)
