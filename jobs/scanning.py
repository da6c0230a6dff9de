"""The items of all datasets of a run, or everything that is wrong with their files."""

from __future__ import annotations

from dataclasses import dataclass

from jobs import build
from toolkit.config_modules.datasets import DatasetConfig
from toolkit.config_modules.process import TrainProcess
from toolkit.data.inspection import Progress
from toolkit.data.items import MediaItem
from toolkit.errors import DatasetError, Problem


@dataclass(frozen=True)
class Scan:
    """The items of all datasets of a job, and what was noticed on the way."""

    items: list[MediaItem]
    notes: list[str]
    num_pictures: int


def scan_datasets(
    section: build.TrainingSection,
    *,
    size_multiple: int,
    rescan: bool = False,
    progress: Progress | None = None,
) -> Scan:
    """Scan every dataset; raises DatasetError with the problems of all of them at once.

    rescan: verify every picture again, also those that are remembered as good.
    """
    items: list[MediaItem] = []
    notes: list[str] = []
    problems: list[Problem] = []
    num_pictures = 0
    scans = build.scan_each(
        section.datasets,
        size_multiple=size_multiple,
        captioned=isinstance(section, TrainProcess),
        rescan=rescan,
        progress=progress,
    )
    for dataset, result in scans:
        items += result.items
        num_pictures += result.num_pictures
        notes += [f"{dataset.folder_path}: {result.summary}", *_note_cuts(dataset), *result.notes]
        problems += result.problems
    if problems:
        raise DatasetError(problems)
    return Scan(items, notes, num_pictures)


def _note_cuts(dataset: DatasetConfig) -> list[str]:
    if not (dataset.cuts_anew and dataset.caches_latents):
        return []
    count = f"{dataset.cached_crops} cuts of each picture are encoded (cached_crops)"
    return [f"{dataset.folder_path}: {count}; epochs take them in turn"]
