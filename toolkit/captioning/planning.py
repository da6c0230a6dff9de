"""Which pictures are captioned, and everything that is wrong with their folders, before a model is loaded.

Torch-free.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.captioning.request import CaptionRequest
from toolkit.data.captions import read_caption
from toolkit.data.findings import Findings
from toolkit.data.image_files import IMAGE_SUFFIXES
from toolkit.data.image_memo import ImageMemo
from toolkit.data.inspection import Progress, inspect_all, is_written, walk_files
from toolkit.errors import ConfigError, DatasetError, Problem
from toolkit.paths import is_folder, resolve_path
from toolkit.text import unwritable


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to caption, and the file that its caption goes into."""

    image: Path
    file: Path


@dataclass
class Plan:
    """The pictures of all folders: to caption, with a caption that stays, and beyond max_samples."""

    todo: list[Picture] = field(default_factory=list)
    num_kept: int = 0
    num_beyond: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def num_pictures(self) -> int:
        """How many pictures there are."""
        return len(self.todo) + self.num_kept + self.num_beyond


def check_request(request: CaptionRequest) -> Iterator[Problem]:
    """Folders that are not there or not to be written into, and texts that no file can hold."""
    for key in unwritable({key: getattr(request, key) for key in ("prefix", "suffix", "prompt")}):
        yield Problem("caption.argument", "cannot be written as UTF-8", key=key)
    for name in request.dataset_paths:
        folder = resolve_path(name)
        if not is_folder(folder):
            yield Problem("caption.argument", f"no such folder: {name}", key="dataset_path")
        elif not request.dry_run and not os.access(folder, os.W_OK | os.X_OK):
            remedy = "make it writable, or look at the captions first with dry_run"
            yield Problem(
                "caption.cannot_write", "captions go beside the pictures, and this folder cannot be written",
                file=str(folder), key="dataset_path", remedy=remedy,
            )  # fmt: skip


def make_plan(request: CaptionRequest, progress: Progress | None = None) -> Plan:
    """Find the pictures, and decode those to caption once.

    Raises ConfigError or DatasetError with everything that is wrong.
    """
    wrong = list(check_request(request))
    if wrong:
        raise ConfigError(wrong)
    plan, findings = Plan(), Findings()
    seen: set[Path] = set()
    for name in request.dataset_paths:
        folder = resolve_path(name).resolve()
        if folder in seen:
            continue
        seen.add(folder)
        _plan_folder(folder, request, plan, findings, progress)
    if findings.problems:
        raise DatasetError(findings.problems)
    if not plan.num_pictures:
        named = ", ".join(request.dataset_paths)
        raise DatasetError(Problem("data.no_images", f"no pictures (jpg, png, webp) in {named}"))
    plan.notes += findings.notes
    return plan


def _plan_folder(
    folder: Path, request: CaptionRequest, plan: Plan, findings: Findings, progress: Progress | None
) -> None:
    if not is_written(folder, "", findings):
        return
    names = [
        name for name in walk_files(folder)
        if name.lower().endswith(IMAGE_SUFFIXES) and is_written(folder, name, findings)
    ]  # fmt: skip
    owners: dict[Path, str] = {}
    wanted: list[str] = []
    for name in names:
        file = (folder / name).with_suffix(request.caption_ext)
        if file in owners:
            findings.notes.append(
                f"{folder}: {name} has the caption file of {owners[file]}, and is not captioned"
            )
            continue
        owners[file] = name
        if not _has_caption(file, findings) or request.recaption:  # read in any case: it may be unreadable
            wanted.append(name)
        else:
            plan.num_kept += 1
    if request.max_samples is not None:
        room = max(0, request.max_samples - len(plan.todo))
        plan.num_beyond += len(wanted[room:])
        wanted = wanted[:room]
    # Remembered apart: the memo of a training holds all pictures of the folder, and would lose the others.
    memo = ImageMemo(folder, kind="captioned")
    facts = inspect_all(folder, wanted, memo, findings, progress=progress)
    plan.todo += [Picture(folder / name, (folder / name).with_suffix(request.caption_ext)) for name in facts]


def _has_caption(file: Path, findings: Findings) -> bool:
    """Whether a caption file says anything; one that cannot be read becomes a problem."""
    try:
        found = read_caption(file)
    except DatasetError as error:
        findings.problems.extend(error.problems)
        return True
    return found is not None and bool(found.text)
