"""A job without a run folder: where its status, commands and pictures are, if whoever started it says so."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit.config_modules.loading import LoadedJob
from toolkit.runs.commands import CommandBox, StopRequest, start_of_attempt
from toolkit.runs.layout import RunFolder, name_also
from toolkit.runs.status import STATUS_FOLDER, StatusWriter

logger = logging.getLogger(__name__)


class Pictures:
    """Shows pictures also in `samples/` of a folder, named as previews of step 0; folder None: nowhere.

    They are numbered on from those that are there: several processes of a config have one folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self._run = None if folder is None else RunFolder(folder.parent, folder.name)
        shown = [] if self._run is None else self._run.list_samples()
        self._number = 1 + max((sample.index for sample in shown), default=-1)

    def show(self, picture: Path) -> None:
        """Give a finished picture a second name there (a hard link, or a copy where there are none)."""
        if self._run is None:
            return
        name = self._run.sample_name(int(time.time() * 1000), 0, self._number, picture.suffix)
        try:
            self._run.samples.mkdir(exist_ok=True)
            name_also(picture, self._run.samples / name)
        except OSError as error:
            logger.warning("%s is not shown in the UI: %s", picture, error.strerror)
        self._number += 1


@dataclass(frozen=True, slots=True)
class Watched:
    """What others see of a job, and how they stop it."""

    status: StatusWriter
    stop: StopRequest
    pictures: Pictures


@contextmanager
def watched(loaded: LoadedJob, *, total_steps: int) -> Iterator[Watched]:
    """A job from its start to its end; told to stop by its folder, not by signals yet."""
    named = os.environ.get(STATUS_FOLDER)
    folder = Path(named).resolve() if named else None
    box = None if folder is None else CommandBox(folder / "commands")
    if box is not None:
        box.clear(before=start_of_attempt())
    path = None if folder is None else folder / "status.json"
    job, name = loaded.config.job, loaded.config.name
    with StatusWriter(path, job=job, name=name, total_steps=total_steps) as status:
        yield Watched(status, StopRequest(box), Pictures(folder))
