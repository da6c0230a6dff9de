"""A job as a row of the database, and what a query for jobs may ask. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal

from web.formats import calendar_time
from web.queue.states import State, StopMode

Sort = Literal["newest", "oldest", "name", "updated", "position"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of `jobs`. Times in seconds since 1970."""

    id: str
    name: str
    kind: str
    status: State
    devices: tuple[str, ...]
    launcher: Mapping[str, Any]
    position: int
    attempt: int
    rev: int
    created_at: float
    updated_at: float
    queued_at: float | None
    started_at: float | None
    ended_at: float | None
    reason: str
    exit_code: int | None
    exit_signal: int | None
    phase: str
    info: str
    step: int
    total_steps: int | None
    speed: float | None
    eta_s: float | None
    loss: float | None
    lr: float | None
    progress_at: float | None
    stalled: bool
    stop_mode: StopMode | None
    stop_at: float | None
    requeue: bool
    run_folders: tuple[str, ...]

    @property
    def etag(self) -> str:
        """The entity tag of this very state of the job."""
        return f'"{self.id}-{self.rev}"'

    @property
    def run_folder(self) -> str | None:
        """The folder of the job's first run, or None if it writes none."""
        return self.run_folders[0] if self.run_folders else None


_COLUMNS = tuple(entry.name for entry in fields(Job))
_SHOWN = tuple(name for name in _COLUMNS if name != "run_folders")
_shown = attrgetter(*_SHOWN)
_TIMES = ("created_at", "updated_at", "queued_at", "started_at", "ended_at", "progress_at", "stop_at")


def job_of(row: Sequence[Any]) -> Job:
    """A row of the table, whole, as a Job: they have the same fields in the same order."""
    return _job_of(tuple(row))


@lru_cache(maxsize=2048)  # pages ask for the same jobs again and again
def _job_of(row: tuple[Any, ...]) -> Job:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["devices"] = tuple(values["devices"].split(","))
    launcher, folders = values["launcher"], values["run_folders"]  # mostly empty, in lists of many jobs
    values["launcher"] = {} if launcher == "{}" else json.loads(launcher)
    values["run_folders"] = () if folders == "[]" else tuple(json.loads(folders))
    values["stalled"], values["requeue"] = bool(values["stalled"]), bool(values["requeue"])
    return Job(**values)


@lru_cache(maxsize=4096)  # lists show the same times again and again
def iso(seconds: float | None) -> str | None:
    """A time as ISO 8601 in UTC, for example 2026-01-31T12:00:00.500Z."""
    if seconds is None:
        return None
    return calendar_time(seconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_json(job: Job) -> dict[str, Any]:
    """A job as the API shows it (web/models.py: JobOut)."""
    body: dict[str, Any] = dict(zip(_SHOWN, _shown(job), strict=True))
    for name in _TIMES:
        if body[name] is not None:
            body[name] = iso(body[name])
    body["devices"], body["launcher"] = list(job.devices), dict(job.launcher)
    body["exit"] = {"code": body.pop("exit_code"), "signal": body.pop("exit_signal")}
    return body
