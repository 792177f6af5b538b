from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyrovi.data.registry import AttrDict, to_json
from pyrovi.errors import RegistryError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        ((1, [2, None]), [1, [2, None]]),
        (np.array([[1, 2]]), [[1, 2]]),
        (pd.Index(["a"]), ["a"]),
        ({"a": {"b": np.arange(2)}}, {"a": {"b": [0, 1]}}),
    ],
)
def test_to_json(value: Any, expected: Any) -> None:
    result = to_json(value, "x")
    assert result == expected
    assert type(result) is type(expected)
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1: 2}, r"key 1 \(int\)"),
        ({"a": [0, float("nan")]}, r"args\['a'\]\[1\] is nan"),
        ({"a": {1, 2}}, r"args\['a'\] is \{1, 2\} \(set\)"),
        (object, "JSON"),
    ],
)
def test_what_has_no_json_form(value: Any, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        to_json(value, "args")


def test_attr_dict() -> None:
    stats = AttrDict(n_vars=3)
    assert stats.n_vars == stats["n_vars"] == 3
    assert stats.get("n_batch", 0) == 0
    assert not hasattr(stats, "n_batch")
    for other in (copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        assert isinstance(other, AttrDict)
        assert other == stats
