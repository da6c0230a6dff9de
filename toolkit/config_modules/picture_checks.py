"""How pictures are cut, masked and accompanied: settings that are wrong together, or count for nothing."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.config_modules.base import Location, Section
from toolkit.config_modules.datasets import DatasetConfig
from toolkit.config_modules.process import DiffusionProcess, VaeProcess
from toolkit.models.catalogue import ARCHITECTURES
from toolkit.paths import resolve_path

Finding = tuple[Location, str, str, str | None]

_CONFLICT = "config.conflict"
# Beside mask_path and control_path: where the folders of a dataset's other pictures are named.
_CONTROL_KEYS = ("control_path", "control_path_1", "control_path_2", "control_path_3")
_UI_MINIMUM = 0.1  # ai-toolkit's interface writes it into every job


def check_pictures(process: DiffusionProcess | VaeProcess) -> Iterator[Finding]:
    """Everything wrong with what datasets say about masks and control pictures."""
    for index, dataset in enumerate(process.datasets):
        yield from _check_dataset(dataset, ("datasets", index))
    if isinstance(process, DiffusionProcess):
        yield from _check_controls(process)


def unread_by_pictures(process: DiffusionProcess | VaeProcess) -> dict[Location, tuple[Section, str]]:
    """Settings of datasets without effect beside the others: location -> (section, reason)."""
    return {
        ("datasets", index, key): (dataset, reason)
        for index, dataset in enumerate(process.datasets)
        for key, reason in _unread(dataset).items()
    }


def _check_dataset(dataset: DatasetConfig, place: Location) -> Iterator[Finding]:
    if dataset.mask_path is not None and dataset.alpha_mask:
        message = "cannot be combined with mask_path: each names the masks"
        yield (*place, "alpha_mask"), _CONFLICT, message, "keep one of them"
    own = resolve_path(dataset.folder_path)
    for key, folders in _folders(dataset).items():
        if any(resolve_path(folder) == own for folder in folders):
            message = "is the folder of the pictures themselves"
            yield (*place, key), _CONFLICT, message, "give them a folder of their own"


def _folders(dataset: DatasetConfig) -> dict[str, list[str]]:
    """Key -> the folders that it names beside that of the pictures."""
    named: dict[str, list[str]] = {"mask_path": [dataset.mask_path] if dataset.mask_path else []}
    for key in _CONTROL_KEYS:
        value = getattr(dataset, key)
        named[key] = value if isinstance(value, list) else [value] if value else []
    return named


def _check_controls(process: DiffusionProcess) -> Iterator[Finding]:
    """Control pictures: whether the model sees any, and all items of a batch have as many of one size."""
    counts = [len(dataset.control_folders) for dataset in process.datasets]
    arch = process.model.arch
    seen = ARCHITECTURES[arch].num_controls
    first = process.datasets[0] if process.datasets else None
    for index, (dataset, count) in enumerate(zip(process.datasets, counts, strict=True)):
        key = next((each for each in _CONTROL_KEYS if getattr(dataset, each)), "control_path")
        place: Location = ("datasets", index, key)
        if count > seen:
            able = ", ".join(name for name, entry in ARCHITECTURES.items() if entry.num_controls)
            reads = f"sees {seen} of them" if seen else "sees none"
            message = f"names {count} folders of control pictures; model.arch: {arch} {reads}"
            remedy = f"leave it out; models that see some: {able}" if able else "leave it out; none does yet"
            yield place, _CONFLICT, message, remedy
        elif count != counts[0]:
            message = f"names {count} folders of control pictures, the first dataset {counts[0]}"
            yield place, _CONFLICT, message, "name as many for each dataset"
        elif count and first and dataset.full_size_control_images != first.full_size_control_images:
            message = "differs from the first dataset's, so that their pictures cannot share a batch"
            yield ("datasets", index, "full_size_control_images"), _CONFLICT, message, None


def _unread(dataset: DatasetConfig) -> dict[str, str]:
    unread: dict[str, str] = {}
    if not dataset.has_masks:
        reason = "only counts with mask_path or alpha_mask"
        unread["invert_mask"] = reason
        if dataset.mask_min_value != _UI_MINIMUM:
            unread["mask_min_value"] = reason
    if not dataset.control_folders:
        keys = ("control_transparent_color", "full_size_control_images")
        unread |= dict.fromkeys(keys, "only counts with control_path")
    if not (dataset.cuts_anew and dataset.caches_latents):
        unread["cached_crops"] = "only counts with cached latents and random_crop, random_scale or poi"
    if not dataset.buckets and not dataset.random_crop:
        unread["square_crop"] = "buckets: false cuts out squares already"
    squares = dataset.square_crop or not dataset.buckets
    if squares and not (dataset.cuts_at_own_size or dataset.random_scale or dataset.poi):
        unread["scale"] = "squares are cut out of all of a picture, whatever its size"
    return unread
