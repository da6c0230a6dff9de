"""Which folder belongs to a job. Torch-free."""

from __future__ import annotations

from pathlib import Path

from toolkit.runs.layout import RunFolder
from web.queue.jobs import Job


def run_of(job: Job) -> RunFolder | None:
    """The folder of a job's first run, or None if it writes none."""
    if job.run_folder is None:
        return None
    folder = Path(job.run_folder)
    return RunFolder(folder.parent, folder.name)
