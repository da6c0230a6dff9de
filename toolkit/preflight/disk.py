"""Whether the disks have room for what a job will write. Torch-free."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import Problem
from toolkit.text import size

# Left free on purpose: logs, previews, and other programs.
MARGIN = 200 * 10**6


@dataclass(frozen=True, slots=True)
class Need:
    """What a job will write into a folder, in bytes (None: unknown); `existing` of it is there."""

    what: str
    folder: Path
    num_bytes: int | None
    existing: int = 0

    @property
    def more(self) -> int:
        """Bytes still to be written, as far as is known."""
        return max(0, (self.num_bytes or 0) - self.existing)


def existing_folder(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    folder = folder.expanduser().absolute()
    return next((each for each in (folder, *folder.parents) if each.is_dir()), Path("/"))


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder, links not followed; 0 if it is not there."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(Path(root, name)).st_size
            except OSError:
                continue  # removed while we looked
    return total


def free_bytes(folder: Path) -> int | None:
    """What is free on the disk of a folder that may not exist yet; None if the system does not say."""
    try:
        return shutil.disk_usage(existing_folder(folder)).free
    except OSError:
        return None


def check_space(needs: Sequence[Need]) -> list[Problem]:
    """A problem for each disk that cannot take everything that is meant for it."""
    problems = []
    for together in _by_disk(needs):
        free = free_bytes(together[0].folder)
        wanted = sum(need.more for need in together)
        if free is None or wanted + MARGIN <= free or wanted == 0:
            continue
        parts = ", ".join(f"{need.what} {size(need.more)}" for need in together if need.more)
        needed = f"{size(wanted)} needed ({parts}) and {size(MARGIN)} to be left free"
        message = f"not enough room on this disk: {needed}, {size(free)} free"
        remedy = "free some space, save less often or keep fewer, or set training_folder to another disk"
        problems.append(Problem("run.disk_space", message, file=str(together[0].folder), remedy=remedy))
    return problems


def _by_disk(needs: Iterable[Need]) -> list[list[Need]]:
    disks: dict[int, list[Need]] = {}
    for need in needs:
        try:
            device = existing_folder(need.folder).stat().st_dev
        except OSError:
            continue
        disks.setdefault(device, []).append(need)
    return list(disks.values())


def disk_lines(needs: Sequence[Need]) -> list[str]:
    """What will be written where, a line for each folder."""
    folders: dict[Path, list[Need]] = {}
    for need in needs:
        folders.setdefault(need.folder, []).append(need)
    lines = []
    for folder, together in folders.items():
        parts = [
            f"{need.what} {'of unknown size' if need.num_bytes is None else 'about ' + size(need.num_bytes)}"
            for need in together
        ]
        free = free_bytes(folder)
        room = "" if free is None else f"; {size(free)} free"
        lines.append(f"{folder}: {', '.join(parts)}{room}")
    return lines
