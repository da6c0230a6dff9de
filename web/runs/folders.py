"""Which folder belongs to a job. Torch-free."""

from __future__ import annotations

from pathlib import Path

from toolkit.runs.layout import RunFolder
from web.queue.jobs import Job


def run_of(job: Job) -> RunFolder | None:
    """The folder of a job's first run, or None if it writes none."""
    return None if job.run_folder is None else folder_of(Path(job.run_folder))


def folder_of(path: Path) -> RunFolder:
    """The run folder at a path. Raises ConfigError for a name that cannot be one's."""
    return RunFolder(path.parent, path.name)
