"""Where a process can be made to die by SIGKILL: points planted in the process that is to die."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import training_run
from toolkit.runs import atomic
from toolkit.runs.metrics import MetricsWriter
from toolkit.training import checkpoint_writer, tensor_files


def die() -> None:
    """End this very process as the kernel does for lack of memory: no handler, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """Fires at the n-th call."""

    def __init__(self, occurrence: int) -> None:
        self.left = occurrence

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def _of_checkpoint(path: Any) -> bool:
    return ".step_" in str(path) or "/step_" in str(path)


def half_a_file(now: Countdown) -> None:
    """Half of a piece of a checkpoint's file is written."""
    write_all = tensor_files._write_all

    def write(handle: int, piece: memoryview) -> None:
        if now():
            write_all(handle, piece[: len(piece) // 2])
            die()
        write_all(handle, piece)

    tensor_files._write_all = write


def _at_fsync(now: Countdown, *, after: bool) -> None:
    fsync = os.fsync

    def sync(handle: int) -> None:
        fires = _of_checkpoint(Path(f"/proc/self/fd/{handle}").readlink()) and now()
        if fires and not after:
            die()
        fsync(handle)
        if fires:
            die()

    os.fsync = sync


def _at_replace(now: Countdown, wanted: Callable[[Path], bool], *, after: bool) -> None:
    replace = atomic.replace

    def rename(source: Path, target: Path) -> None:
        fires = wanted(Path(target)) and now()
        if fires and not after:
            die()
        replace(source, target)
        if fires:
            die()

    atomic.replace = rename


def _is_step(path: Path) -> bool:
    return path.name.startswith("step_")


def half_pruned(now: Countdown) -> None:
    """An old checkpoint is half deleted."""
    rmtree = shutil.rmtree

    def remove(path: Any, *args: Any, **kwargs: Any) -> None:
        if _of_checkpoint(path) and now():
            for file in sorted(Path(path).iterdir())[:2]:
                file.unlink()
            die()
        rmtree(path, *args, **kwargs)

    shutil.rmtree = remove


def half_a_row(now: Countdown) -> None:
    """Half of the waiting rows of metrics.jsonl is written."""
    flush = MetricsWriter.flush

    def torn(self: MetricsWriter) -> None:
        if self._lines and now():
            data = "\n".join(self._lines).encode()
            os.write(self._file, data[: len(data) // 2])
            die()
        flush(self)

    MetricsWriter.flush = torn  # type: ignore[method-assign]


def copied(now: Countdown) -> None:
    """The state is copied, nothing of it written."""
    submit = checkpoint_writer.CheckpointWriter.submit

    def handed_over(self: Any, checkpoint: Any) -> None:
        self.wait()
        if now():
            die()
        submit(self, checkpoint)

    checkpoint_writer.CheckpointWriter.submit = handed_over  # type: ignore[method-assign]


def manifest_missing(now: Countdown) -> None:
    """Every file of a checkpoint is written, but its manifest is not."""
    write_text = Path.write_text

    def write(self: Path, *args: Any, **kwargs: Any) -> int:
        if self.name == "manifest.json" and now():
            die()
        return write_text(self, *args, **kwargs)

    Path.write_text = write  # type: ignore[method-assign, assignment]


def resumed(now: Countdown) -> None:
    """The state is loaded again, no step is done."""
    resume = training_run.TrainingRun.resume

    def then_die(self: Any) -> None:
        resume(self)
        if now():
            die()

    training_run.TrainingRun.resume = then_die  # type: ignore[method-assign]


def lock_not_linked(now: Countdown) -> None:
    """The lock is written and has not its name yet."""
    link = os.link

    def linked(*args: Any) -> None:
        if now():
            die()
        link(*args)

    os.link = linked


POINTS: dict[str, Callable[[Countdown], None]] = {
    "state copied": copied,
    "half a file": half_a_file,
    "before a sync": lambda now: _at_fsync(now, after=False),
    "after a sync": lambda now: _at_fsync(now, after=True),
    "no manifest yet": manifest_missing,
    "before the rename": lambda now: _at_replace(now, _is_step, after=False),
    "after the rename": lambda now: _at_replace(now, _is_step, after=True),
    "half pruned": half_pruned,
    "model not renamed": lambda now: _at_replace(now, lambda p: p.suffix == ".safetensors", after=False),
    "record not renamed": lambda now: _at_replace(now, lambda p: p.name == "left_out.json", after=False),
    "record renamed": lambda now: _at_replace(now, lambda p: p.name == "left_out.json", after=True),
    "half a row": half_a_row,
    "resumed": resumed,
    "lock not linked": lock_not_linked,
}
