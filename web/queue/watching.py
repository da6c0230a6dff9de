"""What the run folders of a job say while it runs. Torch-free."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from toolkit.errors import RunError
from toolkit.runs.checkpoints import list_checkpoints
from toolkit.runs.commands import CommandBox
from toolkit.runs.status import FINAL_PHASES, Status, Watch, judge, read_status
from web.queue.jobs import Job

_PATIENCE_S = 60.0
_SKEW_S = 2.0  # a file server's clock may differ a little from ours


class RunWatch:
    """Follows the runs of one attempt; without a run folder, the attempt's own folder tells."""

    def __init__(self, folders: Sequence[str], started_at: float, *, attempt: Path) -> None:
        self.folders = [Path(folder) for folder in folders] or [attempt]
        self._has_runs = bool(folders)
        self._started_at = started_at
        self._since = time.monotonic()
        self._watch: Watch | None = None
        self._seen: dict[Path, tuple[tuple[int, int], Status | None]] = {}

    def status(self) -> Status | None:
        """The newest status that this attempt has written, or None."""
        found = [self._read(folder / "status.json") for folder in self.folders]
        fresh = [status for status in found if self._is_fresh(status)]
        return max(fresh, key=lambda status: status.updated_at, default=None)

    def _is_fresh(self, status: Status | None) -> TypeGuard[Status]:
        """Whether a status was written by this attempt: an earlier one had ended before this one began."""
        if status is None:
            return False
        skew = 0.0 if status.host == socket.gethostname() else _SKEW_S
        return status.started_at >= self._started_at - skew

    def is_over(self) -> bool:
        """Whether the last of the runs has ended, so that what its status says is the end of the job."""
        status = self._read(self.folders[-1] / "status.json") if self.folders else None
        return self._is_fresh(status) and status.exit is not None

    def has_checkpoint(self) -> bool:
        """Whether a run has left a checkpoint to go on from."""
        return any(list_checkpoints(folder / "checkpoints") for folder in self.folders)

    def _read(self, path: Path) -> Status | None:
        try:
            info = path.stat()
        except OSError:
            return None
        stamp = (info.st_mtime_ns, info.st_ino)
        known = self._seen.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            status = read_status(path)
        except RunError:  # written by a newer program: it can be run, not followed
            status = None
        self._seen[path] = (stamp, status)
        return status

    def changes(self, job: Job) -> dict[str, Any]:
        """The columns of the job that no longer say what the run says."""
        status = self.status()
        if status is None:
            return {}
        before, self._watch = self._watch, judge(self._watch, status, time.monotonic())
        values: dict[str, Any] = {
            "phase": status.phase, "info": status.info[:500], "step": status.step,
            "total_steps": status.total_steps, "speed": status.speed, "eta_s": status.eta_s,
            "loss": status.loss, "lr": status.lr,
            "stalled": self._watch.verdict in ("stalled", "dead"),
        }  # fmt: skip
        changed = {key: value for key, value in values.items() if value != getattr(job, key)}
        if before is None or before.progress != self._watch.progress or "phase" in changed:
            changed["progress_at"] = time.time()
        return changed

    def seems_dead(self) -> bool:
        """Whether the run's own sign of life has been missing for a while."""
        if self._watch is None:
            return time.monotonic() - self._since > _PATIENCE_S
        return self._watch.verdict == "dead"

    def command(self, name: str) -> bool:
        """Give the runs that are there a command; whether there were any that can obey."""
        if name in ("save", "sample") and not self._has_runs:
            return False
        boxes = [CommandBox(folder / "commands") for folder in self._current()]
        for box in boxes:
            with suppress(OSError):
                box.put(name)
        return bool(boxes)

    def forget_commands(self) -> None:
        """Remove commands that nobody obeyed, for they were meant for this attempt."""
        for folder in self.folders:
            with suppress(OSError, RunError):
                CommandBox(folder / "commands").clear()

    def _current(self) -> list[Path]:
        """The folders whose run goes on; before any has begun, those that exist."""
        statuses = [(folder, self._read(folder / "status.json")) for folder in self.folders]
        fresh = [(folder, status) for folder, status in statuses if self._is_fresh(status)]
        running = [folder for folder, status in fresh if status.phase not in FINAL_PHASES]
        return running or ([] if fresh else [folder for folder in self.folders if folder.is_dir()])
