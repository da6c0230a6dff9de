"""status.json: what a run does right now, and how a watcher tells a live run from a dead one. Torch-free.

Two counters need no common clock: `alive` is raised by a thread as long as the process exists, `progress` by
the loop. A watcher notes on its own clock when each last changed (`judge`).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from toolkit.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    JobStopped,
    RunError,
    UserError,
)
from toolkit.runs import atomic
from toolkit.runs.layout import SCHEMA_VERSION, check_schema
from toolkit.runs.process import ProcessIdentity, this_process

Phase = Literal[
    "starting", "loading", "caching", "training", "measuring", "captioning", "sampling", "saving",
    "finished", "stopped", "failed",
]  # fmt: skip
Verdict = Literal["alive", "stalled", "dead", "ended"]
# Names the folder for the status and the commands of a job without a run folder, if somebody watches it.
STATUS_FOLDER = "AI_TOOLKIT_STATUS_FOLDER"
FINAL_PHASES = frozenset({"finished", "stopped", "failed"})
_SPEED_WINDOW = 20  # steps
_BRIEF = 300  # letters of an error that fit into any status that is on disk
_SLOW_PHASES = frozenset({"starting", "loading", "saving"})  # a large model moves for minutes without a step

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
    """The content of status.json. Speed in steps per second; times in seconds on the run's host's clock."""

    schema_version: int = SCHEMA_VERSION
    job: str = ""
    name: str = ""
    pid: int = 0
    host: str = ""
    boot_id: str = ""
    namespace: str = ""
    pid_started: str = ""
    attempt: int = 1
    phase: Phase = "starting"
    info: str = ""
    step: int = 0
    total_steps: int | None = None
    speed: float | None = None
    eta_s: float | None = None
    loss: float | None = None
    lr: float | None = None
    alive: int = 0
    progress: int = 0
    started_at: float = 0.0
    updated_at: float = 0.0
    exit: dict[str, Any] | None = None  # {"code": int, "error": [lines]} once the run has ended

    @property
    def process(self) -> ProcessIdentity:
        """The process that wrote this."""
        return ProcessIdentity(self.host, self.boot_id, self.namespace, self.pid, self.pid_started)


class StatusWriter:
    """Keeps status.json current from a thread; the loop only changes fields in memory. Thread-safe.

    path: None writes none. A context manager: without a `finish` inside, leaving it records how it ended.
    """

    def __init__(
        self, path: Path | None, *, job: str, name: str, attempt: int = 1, total_steps: int | None = None,
        interval: float = 0.5, beat: float = 2.0,
    ) -> None:  # fmt: skip
        me = this_process()
        self.path = path
        self._status = Status(
            job=job, name=name, pid=me.pid, host=me.host, boot_id=me.boot_id, namespace=me.namespace,
            pid_started=me.started, attempt=attempt, total_steps=total_steps, started_at=time.time(),
        )  # fmt: skip
        self._interval, self._beat = interval, beat
        self._state = threading.Lock()
        self._file = threading.Lock()
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._seconds: deque[float] = deque(maxlen=_SPEED_WINDOW)
        self._last_tick: float | None = None
        self._complained = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> StatusWriter:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.status.phase in FINAL_PHASES:
            return
        if error is None:
            self.finish("finished", code=0)
        elif isinstance(error, KeyboardInterrupt):
            self.finish("stopped", code=EXIT_INTERRUPTED, error=["interrupted"])
        elif isinstance(error, JobStopped):
            self.finish("stopped", code=EXIT_STOPPED, error=[str(error) or "stopped"])
        else:
            code = error.exit_code if isinstance(error, UserError) else EXIT_FAILURE
            name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self.finish("failed", code=code, error=f"{name}{error}".splitlines())

    @property
    def status(self) -> Status:
        """The present state."""
        with self._state:
            return self._status

    def start(self) -> None:
        """Write the first state and start the thread that keeps `alive` counting."""
        self._write()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._thread.start()

    def update(self, **changes: Any) -> None:
        """Change fields of the status, for example info="Generating images - 2/4"; written within 0.5 s."""
        with self._state:
            self._status = replace(self._status, **changes)
        self._dirty.set()

    def phase(self, phase: Phase, info: str = "") -> None:
        """Enter a phase; on disk when this returns."""
        with self._state:
            self._status = replace(self._status, phase=phase, info=info)
            self._last_tick = None  # the time spent elsewhere is no step time
        self._write()

    def tick(self, step: int | None = None, *, seconds: float | None = None, **changes: Any) -> None:
        """Note progress: a step (that took `seconds`, else measured), or one more thing cached or sampled."""
        now = time.monotonic()
        with self._state:
            old = self._status
            changes["progress"] = old.progress + 1
            if step is not None:
                if seconds is None and self._last_tick is not None and step > old.step:
                    seconds = (now - self._last_tick) / (step - old.step)
                self._last_tick = now
                if seconds is not None:
                    self._seconds.append(seconds)
                changes |= {"step": step, **self._pace(step, old.total_steps)}
            self._status = replace(old, **changes)
        self._dirty.set()

    def finish(self, phase: Phase, *, code: int, error: Sequence[str] = ()) -> None:
        """Record how the run ended, flushed to the disk, and stop the thread."""
        if phase not in FINAL_PHASES:
            raise ValueError(f"{phase!r} does not end a run")
        self._closed.set()
        self._dirty.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        ending = {"code": code, "error": list(error)}
        info = error[0] if error else ""
        with self._state:
            self._status = replace(self._status, phase=phase, info=info, exit=ending, eta_s=None)
        self._write(durable=True)

    def _pace(self, step: int, total: int | None) -> dict[str, float | None]:
        spent = sum(self._seconds)
        if spent <= 0:
            return {}
        speed = len(self._seconds) / spent
        return {"speed": speed, "eta_s": None if total is None else max(0, total - step) / speed}

    def _run(self) -> None:
        next_beat = time.monotonic() + self._beat
        while not self._closed.wait(self._interval):
            self._dirty.wait(max(0.0, next_beat - time.monotonic()))
            if self._closed.is_set():
                return
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + self._beat
                with self._state:
                    self._status = replace(self._status, alive=self._status.alive + 1)
            self._write()

    def _write(self, *, durable: bool = False) -> None:
        if self.path is None:
            return
        with self._file:
            self._dirty.clear()
            with self._state:
                self._status = replace(self._status, updated_at=time.time())
                status = self._status
            try:
                _replace(self.path, asdict(status), durable=durable)
                self._complained = False
            except RunError as error:
                # A full disk must not end a run that may still be able to go on; the next beat tries again.
                if not self._complained:
                    logger.warning("%s", error)
                self._complained = True


def _replace(path: Path, content: dict[str, Any], *, durable: bool) -> None:
    """Write a status; on a full disk in place, as one that stands still looks like a run that was killed."""
    try:
        atomic.write_json(path, content, durable=durable)
    except RunError as error:
        if not atomic.is_full(error) or not path.exists():
            raise
        try:
            atomic.overwrite(path, atomic.to_json(content, indent=2) + "\n")
        except RunError:
            atomic.overwrite(path, atomic.to_json(_brief(content), indent=2) + "\n")


def _brief(content: dict[str, Any]) -> dict[str, Any]:
    """A status whose error is told by its beginning only."""
    ending = content["exit"]
    if ending is not None:
        ending = ending | {"error": [line[:_BRIEF] for line in ending["error"][:1]]}
    return content | {"info": content["info"][:_BRIEF], "exit": ending}


def read_status(path: Path) -> Status | None:
    """The status at `path`, or None if there is none yet. Raises RunError if a newer program wrote it."""
    try:
        content = json.loads(atomic.read_bytes(path))
    except (OSError, ValueError):
        return None  # not written yet, or damaged by a power cut: either way nothing is known
    if not isinstance(content, dict):
        return None
    check_schema(content.get("schema_version"), path)
    known = {entry.name for entry in fields(Status)}
    return Status(**{key: value for key, value in content.items() if key in known})


@dataclass(frozen=True, slots=True)
class Watch:
    """What a watcher knows of a run: the counters, and when on its own clock each was last seen to change."""

    verdict: Verdict
    run: tuple[Any, ...] = field(repr=False)
    alive: int
    progress: int
    alive_changed: float
    progress_changed: float


def judge(
    previous: Watch | None, status: Status, clock: float, *,
    dead_after: float = 20.0, stalled_after: float = 60.0,
) -> Watch:  # fmt: skip
    """Compare a status with what was seen before; `clock` is the reader's time.monotonic().

    dead: the process has not counted for `dead_after` seconds. stalled: it counts, but the loop has not moved
    for `stalled_after` seconds or 20 steps, ten times as long while loading or saving.
    """
    run = (status.host, status.boot_id, status.namespace, status.pid, status.pid_started, status.attempt)
    known = previous if previous is not None and previous.run == run else None
    alive_changed = known.alive_changed if known and known.alive == status.alive else clock
    progress_changed = known.progress_changed if known and known.progress == status.progress else clock
    patience = stalled_after
    if status.speed:
        patience = max(patience, _SPEED_WINDOW / status.speed)
    if status.phase in _SLOW_PHASES:
        patience *= 10
    verdict: Verdict = "alive"
    if status.phase in FINAL_PHASES:
        verdict = "ended"
    elif clock - alive_changed > dead_after:
        verdict = "dead"
    elif clock - progress_changed > patience:
        verdict = "stalled"
    return Watch(verdict, run, status.alive, status.progress, alive_changed, progress_changed)
