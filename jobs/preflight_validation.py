"""Whether enough pictures would be held out for validation, said as the run would say it. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from toolkit.config_modules.process import TrainProcess
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
    too high. A held-out folder is compared when the run starts.
    """
    wanted = process.held_out
    if wanted is None or wanted.fraction is None or not items:
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


def _uncompared(items: Sequence[MediaItem]) -> dict[Path, split.Picture]:
    """Every picture once, as if none looked like another."""
    regularising = {item.path for item in items if item.is_reg}
    paths = list(dict.fromkeys(item.path for item in items))
    return {
        path: split.Picture(path, str(path), number, path not in regularising)
        for number, path in enumerate(paths)
    }
