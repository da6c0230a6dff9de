"""Which folders belong to a job. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import Query

from toolkit.runs.layout import RunFolder
from web.problems import not_found
from web.queue.jobs import Job

Number = Annotated[
    int, Query(alias="run", ge=1, le=1000, description="Which run, where a config has several processes.")
]


def path_of(job: Job, number: int = 1) -> Path | None:
    """The folder of a job's run; None if it writes none. Raises 404 for a run that it does not have."""
    if number > max(1, len(job.run_folders)):
        raise not_found(f"run {number} of this job")
    return Path(job.run_folders[number - 1]) if job.run_folders else None


def run_of(job: Job, number: int = 1) -> RunFolder | None:
    """The same as a RunFolder."""
    path = path_of(job, number)
    return None if path is None else folder_of(path)


def folder_of(path: Path) -> RunFolder:
    """The run folder at a path. Raises ConfigError for a name that cannot be one's."""
    return RunFolder(path.parent, path.name)
