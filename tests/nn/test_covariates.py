from __future__ import annotations

import copy

import pytest
import torch
from torch.func import vmap
from torch.nn import functional

from pyrovi.errors import DataError, ModelError
from pyrovi.nn import Embedding, one_hot


def test_one_hot_is_torchs():
    codes = torch.tensor([[[2], [0]], [[1], [2]]])
    torch.testing.assert_close(one_hot(codes, 3), functional.one_hot(codes[..., 0], 3).float())
    assert one_hot(codes, 3, dtype=torch.float64).dtype == torch.float64
    torch.testing.assert_close(vmap(lambda c: one_hot(c, 3))(codes), one_hot(codes, 3))


@pytest.mark.parametrize("code", [3, -1])
def test_codes_out_of_range(code):
    codes = torch.tensor([[0], [code]])
    message = rf"between 0 and 2, found codes from {min(0, code)} to {max(0, code)}"
    with pytest.raises(DataError, match=message):
        one_hot(codes, 3)
    with pytest.raises(DataError, match=message):
        Embedding(3, 2)(codes)


@pytest.mark.parametrize("codes", [torch.zeros(4, dtype=torch.int64), torch.zeros(4, 1)])
def test_codes_are_one_integer_column(codes):
    with pytest.raises(ModelError, match="integer codes"):
        one_hot(codes, 3)


def test_embedding_looks_up_rows():
    embedding = Embedding(4, 3)
    codes = torch.tensor([[[1], [3]], [[0], [0]]])
    torch.testing.assert_close(embedding(codes), embedding.weight[codes[..., 0]])
    torch.testing.assert_close(vmap(embedding)(codes), embedding(codes))


def train_hard(embedding: Embedding) -> None:
    """Steps of an optimiser with momentum and weight decay, which move all that can move."""
    optimiser = torch.optim.Adam(embedding.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        embedding(torch.arange(embedding.num_embeddings)[:, None]).square().sum().backward()
        optimiser.step()


@pytest.mark.parametrize("freeze", [True, False])
def test_extended_rows_train_and_previous_rows_stay_if_frozen(freeze):
    old = Embedding(3, 2)
    before = old.weight.detach().clone()
    extended = old.extend(init=2, freeze_prev=freeze)
    assert extended.num_embeddings == 5
    assert torch.equal(extended.weight[:3], before)
    start = extended.weight.detach().clone()
    train_hard(extended)
    moved = (extended.weight != start).all(dim=1)
    assert moved.tolist() == [not freeze] * 3 + [True] * 2
    assert torch.equal(old.weight, before)  # the original is another module


def test_extend_from_existing_rows_twice():
    once = Embedding(3, 2).extend(init=[2, 0])
    assert torch.equal(once.weight[3:], once.weight[[2, 0]])
    twice = once.extend(init=1)
    assert len(twice.frozen) == 5
    unfrozen_addition = once.extend(init=1, freeze_prev=False)
    assert len(unfrozen_addition.frozen) == 3  # what was frozen stays frozen


def test_frozen_rows_survive_copies_and_state_dicts():
    extended = Embedding(3, 2).extend(init=2)
    other = Embedding(5, 2, n_frozen=3)
    other.load_state_dict(extended.state_dict())
    for again in (other, copy.deepcopy(extended)):
        assert torch.equal(again.weight, extended.weight)
        train_hard(again)
        assert torch.equal(again.weight[:3], extended.weight[:3])


def test_embedding_messages():
    with pytest.raises(ModelError, match="n_frozen"):
        Embedding(2, 2, n_frozen=3)
    with pytest.raises(ModelError, match=r"codes \[7\]"):
        Embedding(2, 2).extend(init=[1, 7])
    with pytest.raises(ModelError, match="-1"):
        Embedding(2, 2).extend(init=-1)
