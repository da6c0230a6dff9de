"""Looks after the jobs: starts what can start, follows what runs, stops what shall stop, notes how it ended.

Everything it knows lies in the database and in the folders of the attempts, so that a server which was killed
can be replaced by another at any moment. What runs is looked at before anything new is started.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from toolkit.errors import RunError
from toolkit.paths import ROOT
from toolkit.runs import atomic
from toolkit.runs.commands import STARTED
from toolkit.runs.status import STATUS_FOLDER
from web.database import Database
from web.environment import job_environment
from web.launchers.attempt import AttemptFolder
from web.launchers.base import Evidence, Launcher, LaunchSpec
from web.launchers.last_words import last_words
from web.launchers.local import command_line
from web.preferences import Preferences
from web.queue.endings import Ending, ending_of
from web.queue.jobs import Job
from web.queue.lanes import Lanes, active_jobs
from web.queue.scheduler_lock import SchedulerLock
from web.queue.states import ACTIVE
from web.queue.stopping import Stopper
from web.queue.store import JobStore
from web.queue.transitions import change, transition
from web.queue.watching import RunWatch
from web.settings import WebSettings

logger = logging.getLogger(__name__)


class Supervisor:
    """The only one that starts and ends jobs; `tick` does all there is to do now."""

    def __init__(
        self, settings: WebSettings, database: Database, store: JobStore, lanes: Lanes,
        preferences: Preferences, *, launcher: Launcher, ring: Callable[[Iterable[str]], None],
    ) -> None:  # fmt: skip
        self.settings, self.database, self.store, self.lanes = settings, database, store, lanes
        self.preferences, self.launcher, self._ring = preferences, launcher, ring
        self._printed: dict[str, int] = {}
        self._lock = SchedulerLock(settings.data_root / "scheduler.lock")
        self._watches: dict[tuple[str, int], RunWatch] = {}
        self._stopper = Stopper(launcher, settings.stop_grace_s)
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # -- the thread ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look after the jobs, in a thread."""
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look after nothing any more; jobs that run go on."""
        self._ended.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._lock.release()

    def wake(self) -> None:
        """Look now: something was enqueued or is to be stopped."""
        self._wake.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.tick()
            except Exception:  # noqa: BLE001 - whatever it is, the queue must not stand still for it
                logger.exception("looking after the jobs failed; trying again")
            self._wake.wait(self.settings.tick_s)
            self._wake.clear()

    def tick(self) -> None:
        """Look after every job that runs, then start what can start. Nothing while another server does."""
        if not self._lock.acquire():
            return
        jobs = active_jobs(self.database)
        self._watches = {key: value for key, value in self._watches.items()
                         if any(key == (job.id, job.attempt) for job in jobs)}  # fmt: skip
        for job in jobs:
            try:
                self._look_after(job)
            except (OSError, RunError):
                logger.exception("job %s cannot be looked after now", job.id)
        while not self._ended.is_set() and (claimed := self.lanes.claim()) is not None:
            self._launch(claimed)

    # -- one job ------------------------------------------------------------------------------------

    def folder(self, job: Job) -> AttemptFolder:
        """The folder of the job's present attempt."""
        return AttemptFolder(self.settings.jobs_root, job.id, job.attempt)

    def watch(self, job: Job) -> RunWatch:
        """What follows the job's runs."""
        key = (job.id, job.attempt)
        if key not in self._watches:
            self._watches[key] = RunWatch(
                job.run_folders, job.started_at or 0.0, attempt=self.folder(job).path
            )
        return self._watches[key]

    def _launch(self, job: Job) -> None:
        folder = self.folder(job)
        snapshot = self.store.snapshot(job.id)
        assert snapshot is not None, "a queued job has a snapshot"
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            atomic.write_text(folder.config_path, snapshot[0])
            command = command_line(self.settings.command, job.launcher)
            environment = job_environment(job.devices, hf_token=self.preferences.hf_token)
            environment[STARTED] = f"{job.started_at}"
            if not job.run_folders:
                environment[STATUS_FOLDER] = f"{folder.path}"
            self.launcher.submit(
                LaunchSpec(
                    folder=folder, argv=[*command, str(folder.config_path), f"--name={job.name}"],
                    environment=environment, cwd=ROOT,
                )
            )  # fmt: skip
        except (OSError, RunError) as error:
            logger.error("job %s cannot be started: %s", job.id, error)
            self._end(job, Ending("failed", f"cannot be started: {error}"))

    def _look_after(self, job: Job) -> None:
        seen = self.launcher.look(self.folder(job))
        if seen.exit is not None:
            self._finish(job, seen)
        elif not seen.claimed or seen.revoked:
            self._unstarted(job, seen)
        elif seen.alive is False:
            self._finish(job, seen)
        else:
            self._follow(job, seen)

    def _unstarted(self, job: Job, seen: Evidence) -> None:
        """Nobody runs the job yet: wait, or make sure that nobody will and say so."""
        folder = self.folder(job)
        why = "" if seen.revoked else self.launcher.unstarted(folder)
        if why is None and job.stop_mode is None:
            return
        if not self.launcher.revoke(folder):
            return  # it has begun after all: the next look sees it
        if job.stop_mode is not None:
            self._end(job, Ending("stopped", "stopped before it had begun"))
        elif why:
            self._end(job, Ending("failed", why))
        else:
            self._back_to_queue(job, "the server ended before it had begun; it waits again")

    def _follow(self, job: Job, seen: Evidence) -> None:
        watch = self.watch(job)
        changes = watch.changes(job)
        self._tell_output(job)
        with self.database.write() as tx:
            if job.status == "starting" and seen.started:
                transition(
                    tx, job.id, "running", expected=("starting",), of_attempt=job.attempt, who="supervisor",
                    reason="started", **changes,
                )  # fmt: skip
            elif changes:
                change(tx, job.id, job.attempt, ACTIVE, **changes)
        if seen.alive is None and watch.seems_dead():
            self._finish(job, Evidence(claimed=True, started=True))
        elif job.stop_mode is not None and seen.started:
            self._stopper.press(job, self.folder(job), watch)

    def _tell_output(self, job: Job) -> None:
        """Ring for the log of a job that has printed something."""
        with suppress(FileNotFoundError):
            size = self.folder(job).output_path.stat().st_size
            if self._printed.get(job.id) != size:
                self._printed[job.id] = size
                self._ring([f"log-{job.id}"])

    def _finish(self, job: Job, seen: Evidence) -> None:
        watch = self.watch(job)
        status = watch.status()
        words = last_words(self.folder(job).last_output())
        if seen.exit is None and status is not None and status.exit is not None and not watch.is_over():
            status = replace(status, exit=None)  # one of several runs ended well, and then the rest vanished
        ending = ending_of(
            seen.exit, status, job.stop_mode, said=words.line, rebooted=seen.rebooted,
            passed_on=words.exit if job.launcher.get("accelerate") else None, saved=watch.has_checkpoint(),
        )  # fmt: skip
        watch.forget_commands()
        self._stopper.forget(job)
        self._printed.pop(job.id, None)
        self._ring([f"log-{job.id}"])
        self._end(job, ending, **watch.changes(job))

    def _end(self, job: Job, ending: Ending, **changes: Any) -> None:
        if ending.state == "stopped" and job.requeue:
            self._back_to_queue(job, f"{ending.reason}; it waits again")
            return
        changes |= {"stalled": 0, "eta_s": None, "ended_at": time.time()}
        with self.database.write() as tx:
            transition(
                tx, job.id, ending.state, expected=ACTIVE, of_attempt=job.attempt, who="supervisor",
                reason=ending.reason, exit_code=ending.code, exit_signal=ending.signal, **changes,
            )  # fmt: skip

    def _back_to_queue(self, job: Job, reason: str) -> None:
        """Let a job wait again, at the place it had."""
        with self.database.write() as tx:
            transition(
                tx, job.id, "queued", expected=("starting", "stopping"), of_attempt=job.attempt,
                who="supervisor", reason=reason, stop_mode=None, stop_at=None, requeue=0, eta_s=None,
                stalled=0,
            )  # fmt: skip

    # -- what users ask of a job that runs ----------------------------------------------------------

    def command(self, job: Job, name: str) -> bool:
        """Tell a job's run to save or sample now; whether there was a run to tell."""
        return self.watch(job).command(name)

    def is_proven_dead(self, job: Job) -> bool:
        """Whether it is certain that no process of the job runs."""
        folder = self.folder(job)
        seen = self.launcher.look(folder)
        if seen.exit is not None or seen.revoked:
            return True
        if not seen.claimed:
            return self.launcher.unstarted(folder) is not None and self.launcher.revoke(folder)
        return seen.alive is False or (seen.alive is None and self.watch(job).seems_dead())
