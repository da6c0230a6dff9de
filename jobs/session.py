"""An open run folder: lock, log, status, metrics and commands of one process, from start to end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.notify import NotifyConfig
from toolkit.errors import JobStopped, RunError
from toolkit.runs import atomic
from toolkit.runs.commands import CommandBox, StopRequest, start_of_attempt
from toolkit.runs.layout import RunFolder
from toolkit.runs.lineage import ForeignCheckpointError, Nature, require_same
from toolkit.runs.lock import RunLock
from toolkit.runs.logfile import LogFile
from toolkit.runs.metrics import MetricsWriter, read_metrics
from toolkit.runs.process import this_process
from toolkit.runs.standing import killed_before
from toolkit.runs.status import Phase, Status, StatusWriter
from toolkit.runs.webhook import post_json
from toolkit.training.progress import Progress

Value = TypeVar("Value")


class Session:
    """Context manager that owns a run folder. However the block ends, the folder tells how.

    nature: what the config tells of the training; a run of another nature in the folder is left as it was.
    Raises RunError if another process owns the folder, it holds another training or cannot be written.
    """

    def __init__(
        self,
        loaded: LoadedJob,
        *,
        root: Path,
        name: str,
        total_steps: int | None = None,
        stems: tuple[str, ...] = (),
        notify: NotifyConfig | None = None,
        nature: Nature | None = None,
    ) -> None:
        self.loaded = loaded
        self.folder = RunFolder(root, name, stems)
        self._total_steps = total_steps
        self._notify = notify
        self._nature = nature
        self._before: dict[Path, bytes] = {}
        self._stack = ExitStack()
        self.listeners: list[Callable[[int, dict[str, Any]], None]] = []

    def __enter__(self) -> Session:
        self.folder.create()
        with ExitStack() as stack:
            lock = stack.enter_context(RunLock(self.folder.lock_path))
            killed = killed_before(self.folder.path)
            self._remember()
            stack.push(self._put_back)  # while the lock is held, after everything else has ended
            self.folder.remove_parts()
            stack.enter_context(LogFile(self.folder.log_path))
            self._require_same()
            self.metrics = stack.enter_context(MetricsWriter(self.folder.metrics_path))
            self.status = StatusWriter(
                self.folder.status_path, job=self.loaded.config.job, name=self.folder.name,
                attempt=self.metrics.attempt, total_steps=self._total_steps,
            )  # fmt: skip
            stack.callback(self._tell_the_end)  # after the status has been finished, below
            stack.enter_context(self.status)
            self.box = CommandBox(self.folder.commands)
            self.box.clear(before=start_of_attempt())
            stack.callback(self._forget_commands)
            self.stop = stack.enter_context(StopRequest(self.box).install())
            self.notes([*lock.notes, *([killed] if killed else [])])
            self.folder.write_config(self.loaded.raw)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    def _require_same(self) -> None:
        """Raise ForeignCheckpointError if the folder holds another training, before anything is replaced."""
        if self._nature is None:
            return
        try:
            require_same(self.folder.checkpoints, self._nature)
        except ForeignCheckpointError as error:
            ending = {"code": error.exit_code, "error": str(error).splitlines()}
            name, host = self.folder.name, this_process().host
            self._tell(Status(
                name=name, host=host, phase="failed", total_steps=self._total_steps, exit=ending
            ))  # fmt: skip
            raise

    def _remember(self) -> None:
        """Keep what the folder says of the run before this attempt."""
        for path in (self.folder.status_path, self.folder.config_path):
            with atomic.reporting(path, "read"), suppress(FileNotFoundError):
                self._before[path] = atomic.read_bytes(path)

    def _put_back(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Have the folder tell of the run before again if this attempt was refused for being another one.

        It changed nothing of that run; most refusals come before anything was written, some once the model
        is loaded.
        """
        if isinstance(error, ForeignCheckpointError):
            for path, data in self._before.items():
                if atomic.read_bytes(path) != data:
                    atomic.write_bytes(path, data)

    def _forget_commands(self) -> None:
        """Remove what nobody obeys any more: the next run here may be of this very process."""
        with suppress(OSError, RunError):
            self.box.clear()

    def _tell_the_end(self) -> None:
        self._tell(self.status.status)

    def _tell(self, status: Status) -> None:
        """POST how the run ended, where the config asks for it; a webhook that fails is a note."""
        notify = self._notify
        if notify is None or notify.url is None or status.phase not in notify.when:
            return
        error = [] if status.exit is None else status.exit["error"]
        failure = post_json(notify.url, {
            "name": status.name, "state": status.phase, "step": status.step,
            "total_steps": status.total_steps,
            "error": "\n".join(error) or None, "folder": str(self.folder.path.resolve()), "host": status.host,
        })  # fmt: skip
        self.notes([f"the webhook of notify.url was not told: {failure}"] if failure else [])

    def keep(self, context: AbstractContextManager[Value]) -> Value:
        """Enter a context that ends with the session."""
        return self._stack.enter_context(context)

    # -- telling ------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """One line for the person watching, on the terminal and in log.txt."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def notes(self, lines: Iterable[str]) -> None:
        """Things worth knowing that stop nothing."""
        for line in lines:
            self.note(line)

    def note(self, line: str) -> None:
        """One of them; from any thread."""
        self.say(f"note: {line}")

    def phase(self, phase: Phase, info: str) -> None:
        """Enter a phase, on the terminal and in status.json."""
        self.say(info)
        self.status.phase(phase, info)

    def counted(self, what: str) -> Any:
        """A progress callback (done, total) that shows in status.json and, every second, on the terminal."""
        last = 0.0

        def show(done: int, total: int) -> None:
            nonlocal last
            self.status.tick(info=f"{what} {done}/{total}")
            now = time.monotonic()
            if done == total or now - last > 5.0:
                last = now
                self.say(f"  {what} {done}/{total}")

        return show

    def each(self, values: Iterable[Value], what: str, total: int) -> Iterator[Value]:
        """The same values, until a stop is asked for; each one made is progress in status.json."""
        self.status.update(info=f"{what} - 0/{total}")
        for done, value in enumerate(values, start=1):
            yield value
            self.status.tick(info=f"{what} - {done}/{total}")
            if self.stop.requested:
                return

    @contextmanager
    def interlude(self, phase: Phase, info: str, bar: Progress | None) -> Iterator[None]:
        """A pause of the loop for saving or sampling; the bar waits and the phase before comes back."""
        before = self.status.status
        self.metrics.flush()
        with bar.paused() if bar is not None else nullcontext():
            self.status.phase(phase, info)
            try:
                yield
            finally:
                self.status.phase(before.phase, before.info)

    def new_attempt(self) -> None:
        """Count from here on as another attempt: steps that were done are done again."""
        self.metrics.new_attempt()
        self.status.update(attempt=self.metrics.attempt)

    def record(self, step: int, **values: Any) -> None:
        """Numbers of a step: a row of metrics.jsonl, and whoever else listens."""
        self.metrics.write(step, **values)
        for listener in self.listeners:
            listener(step, values)

    # -- asking -------------------------------------------------------------------------------------

    def commands(self) -> set[str]:
        """The commands waiting between two steps, taken out of their folder; a signal counts as "stop"."""
        stop = {"stop"} if self.stop.requested else set()
        waiting = self.box.poll() - {"stop", "abort"}
        for name in waiting:
            self.box.take(name)
        return waiting | stop

    def stop_requested(self) -> bool:
        """Whether to end soon."""
        return self.stop.requested

    def finish(self, finished: bool) -> None:
        """Leave the run as finished, or raise JobStopped if it was ended early."""
        if not finished:
            raise JobStopped(self.stop.reason or "stopped")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows that lead to where the run is now."""
        self.metrics.flush()
        return read_metrics(self.folder.metrics_path)
