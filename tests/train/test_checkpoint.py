"""Checkpoint files exist completely or not at all."""

import pytest
import torch

from pyrovi.errors import TrainingError
from pyrovi.train import AtomicCheckpointIO


def test_failing_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"pyrovi": {}, "value": torch.ones(2)}, path)

    def full_disk(checkpoint, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(TrainingError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"pyrovi": {}}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["value"], torch.ones(2))


def test_nothing_is_written_under_the_final_name_before_it_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    save, seen = torch.save, []

    def looking(checkpoint, file):
        save(checkpoint, file)
        seen.append(path.exists())

    monkeypatch.setattr(torch, "save", looking)
    AtomicCheckpointIO().save_checkpoint({"pyrovi": {}}, path)
    assert seen == [False]
    assert path.exists()
