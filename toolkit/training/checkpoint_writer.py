"""Checkpoints written on a thread: the loop waits for the copy in memory, not for the disk."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from toolkit.training.checkpoints import Checkpoint, prune_checkpoints, save_checkpoint


class CheckpointWriter:
    """Context manager that writes one checkpoint at a time into `root` and keeps the newest `keep`.

    step: of the newest checkpoint that was handed over and has not failed, or was resumed from. Leaving waits
    for the write in progress, except after KeyboardInterrupt: what is half written then is never read.
    """

    def __init__(self, root: Path, keep: int) -> None:
        self.root = root
        self.keep = keep
        self.step: int | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, checkpoint: Checkpoint) -> None:
        """Begin to write a checkpoint, whose tensors must not change any more.

        Waits for the one before. Raises what `wait` raises.
        """
        self.wait()
        self.step = checkpoint.step
        self._thread = threading.Thread(
            target=self._write, args=(checkpoint,), name="checkpoint", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a write that has failed by now, once; never waits."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the write in progress. Raises RunError if the disk refused it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error, self.step = self._error, None, None
            raise error

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            save_checkpoint(self.root, checkpoint)
            prune_checkpoints(self.root, self.keep)
        except BaseException as error:  # noqa: BLE001 - handed to the loop, which raises it
            self._error = error

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif isinstance(error, Exception) and self._thread is not None:
            self._thread.join()
            if self._error is not None:
                error.add_note(f"the last checkpoint could not be written: {self._error}")
