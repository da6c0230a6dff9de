"""Checkpoints written while the loop goes on."""

import errno
import threading

import pytest
import torch

from toolkit.errors import RunError
from toolkit.runs import atomic
from toolkit.training import checkpoint_writer
from toolkit.training.checkpoint_writer import CheckpointWriter
from toolkit.training.checkpoints import Checkpoint, list_checkpoints, newest_valid


def make(step: int) -> Checkpoint:
    return Checkpoint(step, {"weights": {"w": torch.full((4,), float(step))}})


@pytest.fixture
def held(monkeypatch):
    """A gate in front of every write."""
    gate, save = threading.Event(), checkpoint_writer.save_checkpoint

    def save_when_open(*args):
        assert gate.wait(10)
        return save(*args)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", save_when_open)
    return gate


def test_handing_over_does_not_wait_for_the_disk(tmp_path, held):
    with CheckpointWriter(tmp_path, keep=2) as writer:
        writer.submit(make(1))
        writer.check()
        assert list_checkpoints(tmp_path) == [] and writer.step == 1
        held.set()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1], "leaving must wait for the write"


def test_the_next_write_begins_when_the_one_before_is_done_and_old_ones_go(tmp_path, held):
    with CheckpointWriter(tmp_path, keep=2) as writer:
        writer.submit(make(1))
        threading.Timer(0.1, held.set).start()
        writer.submit(make(2))
        assert 1 in [step for step, _ in list_checkpoints(tmp_path)]
        writer.submit(make(3))
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2, 3]


def full_disk(handle):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_refused_write_is_told_once_in_one_line_and_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, keep=2)
    writer.submit(make(1))
    writer.wait()
    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    writer.submit(make(2))
    writer._thread.join()
    with pytest.raises(
        RunError, match=r"step_000000002: cannot be written: No space left on device; .* free"
    ):
        writer.check()
    assert writer.step is None, "nothing may count as saved"
    writer.check()
    writer.wait()
    folder, damaged = newest_valid(tmp_path)
    assert folder.name == "step_000000001" and damaged == []
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001"]


def test_an_error_in_the_block_is_kept_and_that_of_the_write_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    with pytest.raises(KeyError) as caught, CheckpointWriter(tmp_path, keep=2) as writer:
        writer.submit(make(1))
        raise KeyError("first")
    assert "No space left" in caught.value.__notes__[0]


def test_ctrl_c_does_not_wait_for_the_disk(tmp_path, held):
    writer = CheckpointWriter(tmp_path, keep=2)
    with pytest.raises(KeyboardInterrupt), writer:
        writer.submit(make(1))
        raise KeyboardInterrupt
    assert writer._thread.is_alive()
    held.set()
    writer.wait()
