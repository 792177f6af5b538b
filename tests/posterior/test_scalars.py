"""Names and values of single numbers of labelled draws."""

from __future__ import annotations

import numpy as np
import xarray as xr

from pyrovi.posterior.scalars import scalar_columns


def test_every_element_has_a_column_under_the_names_of_the_data() -> None:
    values = np.arange(24.0).reshape(4, 2, 3)
    dataset = xr.Dataset(
        {"mu": ("draw", np.arange(4.0)), "beta": (("draw", "group", "var"), values)},
        coords={"group": ["a", "b"], "var": ["x", "y", "z"]},
    )
    names, columns = scalar_columns(dataset)
    assert names[:2] == ["mu", "beta[group=a, var=x]"]
    assert columns.shape == (4, 7)
    position = names.index("beta[group=b, var=y]")
    np.testing.assert_array_equal(columns[:, position], values[:, 1, 1])


def test_leading_dimensions_come_first_in_the_order_asked_for() -> None:
    values = np.arange(24).reshape(3, 2, 4)
    dataset = xr.Dataset({"z": (("obs", "chain", "draw"), values)})
    names, columns = scalar_columns(dataset, ("chain", "draw"))
    assert names == ["z[obs=0]", "z[obs=1]", "z[obs=2]"]
    assert columns.shape == (2, 4, 3)
    np.testing.assert_array_equal(columns, values.transpose(1, 2, 0))


def test_no_variables_make_no_columns() -> None:
    names, columns = scalar_columns(xr.Dataset(coords={"draw": np.arange(5)}))
    assert names == []
    assert columns.shape == (5, 0)
