"""Rank and number of processes."""

from __future__ import annotations

import pytest
import torch.distributed

from pyrovi.dataloaders import distributed_rank_and_size


def test_outside_of_distributed_training() -> None:
    assert distributed_rank_and_size() == (0, 1)


def test_inside_of_distributed_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 5)
    assert distributed_rank_and_size() == (2, 5)
