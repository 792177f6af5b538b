"""Splits: disjoint, complete, repeatable."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrovi._settings import settings
from pyrovi.dataloaders import Split, external_split, split_observations
from pyrovi.dataloaders.splits import split_sizes
from pyrovi.errors import DataError


def sets(split: Split) -> list[list[int]]:
    return [split.train.tolist(), split.validation.tolist(), split.test.tolist()]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10,), (9, 1)),
        ((1,), (1, 0)),
        ((100, 0.07), (7, 93)),
        ((100, 0.57), (57, 43)),
        ((10, 0.55, 0.45), (6, 4)),
        ((10, 0.5, 0.25), (5, 2)),
        ((10, 1), (10, 0)),
        ((10, 1.0, 0.0), (10, 0)),
        ((10, 0.7, 0.3), (7, 3)),
        ((10, None, 0.1), (9, 1)),
    ],
)
def test_sizes(arguments: tuple[Any, ...], expected: tuple[int, int]) -> None:
    assert split_sizes(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0.0), r"train_size must be in \(0, 1\], got 0.0"),
        ((10, 1.5), "got 1.5"),
        ((10, float("nan")), "got nan"),
        ((10, 0.5, -0.1), r"validation_size must be in \[0, 1\), got -0.1"),
        ((10, 0.8, 0.3), "train_size=0.8 and validation_size=0.3 sum to 1.1, expected at most 1"),
        ((10, None, 0.3), "train_size=0.9 and validation_size=0.3 sum to 1.2"),
        ((0,), "No training observation is left of 0"),
    ],
)
def test_bad_sizes(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_sizes(*arguments)


@given(
    n=st.integers(1, 200),
    train=st.floats(0.01, 1),
    share=st.floats(0, 0.999),
    shuffle=st.booleans(),
)
def test_disjoint_and_complete(n: int, train: float, share: float, shuffle: bool) -> None:
    split = split_observations(n, train, share * (1 - train), shuffle)
    assert sorted(chain.from_iterable(sets(split))) == list(range(n))
    assert len(split.train) >= 1
    assert all(part == sorted(part) for part in sets(split))


def test_a_function_of_the_seed_alone() -> None:
    one = sets(split_observations(100, 0.5, 0.3))
    np.random.seed(8)
    torch.manual_seed(8)
    assert sets(split_observations(100, 0.5, 0.3)) == one
    settings.seed = 1
    assert sets(split_observations(100, 0.5, 0.3)) != one
    assert sets(split_observations(100, 0.5, 0.3, seed=0)) == one


def test_in_order() -> None:
    split = split_observations(np.array([4, 5, 6, 9]), 0.5, 0.25, shuffle=False)
    assert sets(split) == [[4, 5], [6], [9]]


def test_sets_of_the_caller() -> None:
    train = [5, 3, 4]
    split = external_split([train, np.arange(6) == 0], 6)
    assert sets(split) == [[5, 3, 4], [0], []]
    split.train[0] = 1
    assert train == [5, 3, 4]
    nothing = np.zeros(6, dtype=bool)
    assert sets(external_split([train, None, [1]], 6)) == [[5, 3, 4], [], [1]]
    assert sets(external_split([train, [], nothing], 6)) == [[5, 3, 4], [], []]


@pytest.mark.parametrize(
    ("given_sets", "message"),
    [
        ([[0, 1], [1, 2]], r"\[1\] \(validation\) shares 1 observations with the train set.* 1;"),
        ([[0], [1], [0, 1]], r"\[2\] \(test\) shares 2 observations with the train set"),
        ([[0, 6]], r"\[0\] \(train\) holds position 6"),
        ([[0], [3, 3, 3]], r"\[1\] \(validation\) holds position 3 3 times"),
        ([[], [1]], r"\[0\] \(train\) selects no observation"),
        ([None, [1]], "give at least one training observation"),
        ([[0], np.ones(5, dtype=bool)], "mask of length 5"),
        ([[0], [1], [2], [3]], "must be a list"),
        ([], "must be a list"),
        (np.arange(3), "must be a list .* got ndarray"),
    ],
)
def test_bad_sets_of_the_caller(given_sets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        external_split(given_sets, 6)
