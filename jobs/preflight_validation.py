"""Whether enough pictures would be held out for validation, said as the run would say it. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs import build
from toolkit.config_modules.datasets import DatasetConfig
from toolkit.config_modules.process import TrainProcess
from toolkit.config_modules.validation import ValidationConfig
from toolkit.data.items import MediaItem
from toolkit.errors import DatasetError, Problem
from toolkit.evaluation import split
from toolkit.preflight.report import ProcessReport


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
    too high. Of a held-out folder the files are looked at; it is compared when the run starts.
    """
    wanted = process.held_out
    if wanted is None or not items:
        return []
    if wanted.folder_path is not None:
        return _check_folder(process, wanted, full)
    if wanted.fraction is None:
        return []
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


def _check_folder(process: TrainProcess, wanted: ValidationConfig, full: bool) -> list[Problem]:
    """What is wrong with the files of a held-out folder; full: each is decoded."""
    multiple = build.size_multiple(process.model)  # the items are there, so the model is
    scans = build.scan_each([held_out_dataset(process, wanted)], size_multiple=multiple, decode=full)
    return [problem for _, scan in scans for problem in scan.problems]


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


def _uncompared(items: Sequence[MediaItem]) -> dict[Path, split.Picture]:
    """Every picture once, as if none looked like another."""
    regularising = {item.path for item in items if item.is_reg}
    paths = list(dict.fromkeys(item.path for item in items))
    return {
        path: split.Picture(path, str(path), number, path not in regularising)
        for number, path in enumerate(paths)
    }
