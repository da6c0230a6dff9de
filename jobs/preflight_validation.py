"""Whether enough pictures would be held out for validation, said as the run would say it. Torch-free."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import build
from toolkit.config_modules.datasets import DatasetConfig
from toolkit.config_modules.process import TrainProcess
from toolkit.config_modules.validation import ValidationConfig
from toolkit.data.items import MediaItem
from toolkit.errors import DatasetError, Problem
from toolkit.evaluation import split
from toolkit.paths import resolve_path
from toolkit.preflight.report import ProcessReport

ITEMS_FILE = "validation_items.json"


def check_validation(
    process: TrainProcess,
    items: Sequence[MediaItem],
    report: ProcessReport,
    *,
    full: bool,
    progress: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """What a run would refuse its validation for; notes go into the report.

    full: pictures are compared, and copies count once; else only their number is known, which can only be
    too high.
    """
    wanted = process.held_out
    if wanted is None or not items:
        return []
    if wanted.fraction is None:
        return _check_named(process, wanted, items, report, full=full, progress=progress)
    try:
        pictures = split.pictures_of(items, progress) if full else _uncompared(items)
        withheld = split.hold_out(pictures.values(), wanted.fraction, wanted.seed)
    except DatasetError as error:
        return list(error.problems)
    candidates = split.one_each(item for item in items if item.path in withheld)
    chosen = candidates[: wanted.num_images]
    note = split.few_note(len({pictures[item.path].group for item in chosen}))
    report.notes += [note] if note else []
    return []


def _check_named(
    process: TrainProcess, wanted: ValidationConfig, items: Sequence[MediaItem], report: ProcessReport, *,
    full: bool, progress: Callable[[int, int], None] | None,
) -> list[Problem]:  # fmt: skip
    """What is wrong with a held-out folder or list, or with how little of it is left."""
    found, scanned = _scan_named(process, wanted, full)
    if found:
        return found
    both = [*items, *scanned]
    try:
        pictures = split.pictures_of(both, progress) if full else _uncompared(both)
        kept, notes = split.unlike(split.one_each(scanned), items, pictures)
    except DatasetError as error:
        return list(error.problems)
    few = split.few_note(len({pictures[item.path].group for item in kept[: wanted.num_images]}))
    report.notes += [*notes, *([few] if few else [])]
    return []


def _scan_named(
    process: TrainProcess, wanted: ValidationConfig, full: bool
) -> tuple[list[Problem], list[MediaItem]]:
    """What is wrong with the files of a held-out folder or list, each decoded if full; and what is right."""
    multiple = build.size_multiple(process.model)  # the items are there, so the model is
    dataset = held_out_dataset(process, wanted)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ITEMS_FILE
        if wanted.items:
            path.write_text(listed_items(wanted), encoding="utf-8")
            dataset = of_listed(dataset, path)
        ((_, scan),) = build.scan_each([dataset], size_multiple=multiple, decode=full)
    key = "validation.items" if process.validation else "train.validation_config.validation_items"
    found = [replace(each, file=None, key=key) if each.file == str(path) else each for each in scan.problems]
    return found, scan.items


def held_out_dataset(process: TrainProcess, wanted: ValidationConfig) -> DatasetConfig:
    """The held-out folder as a dataset, read as the first one is that is trained on, without its draws."""
    first = next((each for each in process.datasets if not each.is_reg), process.datasets[0])
    changes: dict[str, Any] = {
        "folder_path": wanted.folder_path, "num_repeats": 1, "flip_x": False, "flip_y": False,
        "is_reg": False, "strict": False, "random_crop": False, "random_scale": False, "poi": None,
        "mask_path": None, "alpha_mask": False, "control_path": [],
        "resolution": [wanted.resolution or max(first.resolution)],
    }  # fmt: skip
    return first.model_copy(update=changes)


def listed_items(wanted: ValidationConfig) -> str:
    """The held-out pictures that a config lists, in the form of a dataset's list."""
    listed = [{"path": str(resolve_path(item.image_path)), "caption": item.prompt} for item in wanted.items]
    return json.dumps(listed, indent=1, ensure_ascii=False)


def of_listed(dataset: DatasetConfig, path: Path) -> DatasetConfig:
    """The held-out dataset as the list at `path`, whose captions are taken as they stand."""
    return dataset.model_copy(update={"folder_path": str(path), "trigger_word": None})


def _uncompared(items: Sequence[MediaItem]) -> dict[Path, split.Picture]:
    """Every picture once, as if none looked like another."""
    regularising = {item.path for item in items if item.is_reg}
    paths = list(dict.fromkeys(item.path for item in items))
    return {
        path: split.Picture(path, str(path), number, path not in regularising)
        for number, path in enumerate(paths)
    }
