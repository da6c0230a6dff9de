"""A queue whose supervisor a test moves on by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from web import actions
from web.app import make_services
from web.launchers.attempt import AttemptFolder
from web.queue.jobs import Job
from web.queue.states import ACTIVE
from web.services import Services


class Queue:
    """A supervisor whose ticks the test makes itself."""

    def __init__(self, settings, config: Callable[..., str]) -> None:
        self.settings, self._config = settings, config
        self.services: Services = make_services(settings)

    def add(self, name: str = "one", devices=("cpu:0",), launcher=None, **meta: object) -> Job:
        """A job in the queue that behaves as `meta` says."""
        text = self._config(name) + f"meta: {json.dumps(meta)}\n"
        job = actions.create_job(self.services, text, devices=devices, launcher=launcher)
        return actions.enqueue_job(self.services, job.id)

    def get(self, job: Job) -> Job:
        """The job as it is now."""
        return self.services.store.get(job.id)

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        """Tick until something holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, [(j.name, j.status, j.reason) for j in self.jobs()]
            self.services.supervisor.tick()
            time.sleep(0.02)

    def until_status(self, job: Job, *wanted: str) -> Job:
        """Tick until the job is in one of these states; the job then."""
        self.until(lambda: self.get(job).status in wanted)
        return self.get(job)

    def jobs(self) -> list[Job]:
        """All jobs."""
        from web.queue.listing import JobQuery, list_jobs

        return list_jobs(self.services.database, JobQuery(limit=500))[0]

    def folder(self, job: Job) -> AttemptFolder:
        """The folder of the job's last attempt."""
        return self.services.supervisor.folder(self.get(job))

    def run_folder(self, job: Job) -> Path:
        """The folder of the job's run."""
        return Path(self.get(job).run_folders[0])

    def restart(self) -> None:
        """Another server takes the place of this one, which was killed."""
        self.services.supervisor._lock.release()
        self.services.database.close()
        self.services = make_services(self.settings)

    def close(self) -> None:
        """Kill what still runs."""
        for job in self.jobs():
            if job.status in ACTIVE:
                self.services.supervisor.launcher.signal(self.folder(job), "kill")
        self.services.supervisor.stop()
        self.services.database.close()


def reasons(queue: Queue, job: Job) -> list[str]:
    """What happened to a job."""
    return [event["reason"] for event in queue.services.store.events(job.id)]


def states(queue: Queue, job: Job) -> list[str]:
    """The states that a job was in, in order."""
    return [e["to_status"] for e in queue.services.store.events(job.id) if e["to_status"]]
