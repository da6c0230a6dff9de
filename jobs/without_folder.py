"""Status and commands of a job without a run folder: where whoever started it wants them, if anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.config_modules.loading import LoadedJob
from toolkit.runs.commands import CommandBox, StopRequest, start_of_attempt
from toolkit.runs.status import STATUS_FOLDER, StatusWriter


@contextmanager
def watched(loaded: LoadedJob, *, total_steps: int) -> Iterator[tuple[StatusWriter, StopRequest]]:
    """The status of a job from its start to its end, and how it is told to stop; not by signals yet."""
    named = os.environ.get(STATUS_FOLDER)
    folder = Path(named) if named else None
    box = None if folder is None else CommandBox(folder / "commands")
    if box is not None:
        box.clear(before=start_of_attempt())
    path = None if folder is None else folder / "status.json"
    job, name = loaded.config.job, loaded.config.name
    with StatusWriter(path, job=job, name=name, total_steps=total_steps) as status:
        yield status, StopRequest(box)
