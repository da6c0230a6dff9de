"""How a job is made to stop: gently first, harder the longer it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from web.launchers.attempt import AttemptFolder
from web.launchers.base import Launcher, Signal
from web.queue.jobs import Job
from web.queue.watching import RunWatch

_Plan = tuple[tuple[float, Signal], ...]  # seconds, and what is due then
_AGAIN_S = 2.0
# A run that finds commands/abort ends by the first interrupt, without saving (docs/run_folder.md).
_NOW: _Plan = (
    (0.0, "interrupt"), (5.0, "interrupt"), (10.0, "terminate"), (20.0, "kill"),
)  # fmt: skip
_NOW_UNDER_ACCELERATE = _NOW[1:]  # which an interrupt ends, and with it the run amid its cleanup
_AFTER_GRACE: _Plan = ((0.0, "terminate"), (30.0, "kill"))


@dataclass(slots=True)
class _Pressure:
    """What has been done to stop one attempt, in one way to stop it."""

    mode: str
    since: float
    sent: int = 0
    commanded: float = field(default=float("-inf"))


class Stopper:
    """Presses a little harder with every call. grace_s: how long a run that saves may show no progress."""

    def __init__(self, launcher: Launcher, grace_s: float) -> None:
        self.launcher = launcher
        self.grace_s = grace_s
        self._pressed: dict[tuple[str, int], _Pressure] = {}

    def forget(self, job: Job) -> None:
        """The job has ended."""
        self._pressed.pop((job.id, job.attempt), None)

    def press(self, job: Job, folder: AttemptFolder, watch: RunWatch) -> None:
        """Do the next thing that is due to stop the job."""
        assert job.stop_mode is not None
        now = time.monotonic()
        key = (job.id, job.attempt)
        pressure = self._pressed.get(key)
        if pressure is None or pressure.mode != job.stop_mode:
            pressure = self._pressed[key] = _Pressure(job.stop_mode, now)
        if job.stop_mode == "kill":
            self.launcher.signal(folder, "kill")
        elif job.stop_mode == "now":
            self._tell(pressure, watch, "abort", now)
            plan = _NOW_UNDER_ACCELERATE if job.launcher.get("accelerate") else _NOW
            self._send(pressure, folder, plan, now - pressure.since)
        else:
            self._ask(job, pressure, folder, watch, now)

    def _ask(self, job: Job, pressure: _Pressure, folder: AttemptFolder, watch: RunWatch, now: float) -> None:
        """Ask for a checkpoint and an end. Harder only once the run has stood still for the grace time."""
        self._tell(pressure, watch, "stop", now)
        begun = watch.status() is not None
        if not begun and not job.launcher.get("accelerate") and pressure.sent == 0:
            self.launcher.signal(folder, "interrupt")  # nothing to save yet: it need not load a model first
            pressure.sent = 1
        quiet = time.time() - max(job.stop_at or 0.0, job.progress_at or 0.0) - self.grace_s
        if quiet >= 0:
            due = sum(quiet >= after for after, _ in _AFTER_GRACE)
            for _after, name in _AFTER_GRACE[max(0, pressure.sent - 1) : due]:
                self.launcher.signal(folder, name)
            pressure.sent = max(pressure.sent, due + 1)

    def _tell(self, pressure: _Pressure, watch: RunWatch, command: str, now: float) -> None:
        """Give a command, again and again: a run that was only just starting may have had no folder yet."""
        if now - pressure.commanded >= _AGAIN_S:
            pressure.commanded = now
            watch.command(command)

    def _send(
        self,
        pressure: _Pressure,
        folder: AttemptFolder,
        plan: _Plan,
        elapsed: float,
    ) -> None:
        due = sum(elapsed >= after for after, _ in plan)
        if due == len(plan) and pressure.sent >= due:
            self.launcher.signal(folder, "kill")
        for _after, name in plan[pressure.sent : due]:
            self.launcher.signal(folder, name)
        pressure.sent = max(pressure.sent, due)
