"""Before anything is measured: folders, pictures, the model and what it can read, changed captions."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.data.captions import insert_trigger, normalize_extension
from toolkit.data.dataset_list import is_list
from toolkit.data.items import MediaItem
from toolkit.data.scan import scan_dataset
from toolkit.errors import ConfigError, DatasetError, JobStopped, Problem
from toolkit.evaluation.contrasts import sampled
from toolkit.evaluation.outcomes import content_of
from toolkit.evaluation.request import EvalRequest
from toolkit.models.catalogue import find_architecture
from toolkit.models.geometry import read_json, size_multiple
from toolkit.paths import resolve_model, resolve_path
from toolkit.runs.watcher import Watcher
from toolkit.text import count

if TYPE_CHECKING:
    from toolkit.models.base import Architecture

USUAL_RESOLUTION = 256
VERIFIED = "pictures verified"  # what is counted before anything is measured


@dataclass(frozen=True)
class Dataset:
    """A data set's items and those that are measured. folder: what paths in the report are relative to."""

    path: str
    folder: Path
    items: list[MediaItem]
    chosen: list[MediaItem]

    def name(self, item: MediaItem) -> str:
        """The path of an item as it stands in the report."""
        inside = item.path.is_relative_to(self.folder)
        return (item.path.relative_to(self.folder) if inside else item.path).as_posix()


def make_writable(folder: Path) -> None:
    """Make the folder of the report. Raises ConfigError before anything is loaded for nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe_{time.time_ns()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        raise ConfigError(
            Problem("eval.cannot_write", problem, file=str(folder), remedy="choose another --out-dir")
        ) from error


def default_resolution(model: str) -> int:
    """256, or less for a model that was made for less."""
    path = resolve_model(model)
    if path is None or not path.is_dir():
        return USUAL_RESOLUTION
    side = read_json(path / "unet" / "config.json").get("sample_size")
    blocks = read_json(path / "vae" / "config.json").get("block_out_channels")
    if not isinstance(side, int) or not isinstance(blocks, list) or not blocks:
        return USUAL_RESOLUTION
    return min(USUAL_RESOLUTION, int(side * 2 ** (len(blocks) - 1)))


def scan(request: EvalRequest, watcher: Watcher) -> list[Dataset]:
    """Every data set, verified. Raises DatasetError with the problems of all of them."""
    multiple = size_multiple(resolve_model(request.model), find_architecture(request.arch))
    resolution = request.resolution or default_resolution(request.model)
    datasets, problems = [], []

    def verified(done: int, total: int) -> None:
        watcher.progress(VERIFIED, done, total)
        if watcher.should_stop():
            raise JobStopped("stopped before anything was measured")

    for index, path in enumerate(request.dataset_paths):
        place = resolve_path(path)
        result = scan_dataset(
            place,
            name=f"{index}:{place.name}",
            resolutions=[resolution],
            size_multiple=multiple,
            caption_ext=normalize_extension(request.caption_ext),
            default_caption=request.default_caption,
            progress=verified,
        )
        problems += result.problems
        for note in result.notes:
            watcher.say(f"note: {note}")
        # Unlike in training the trigger is not put in front: a caption without it is a finding.
        items = [_with_trigger(item, request.trigger_word) for item in result.items]
        chosen = _chosen(items, request)
        if items and not chosen:
            reason = f"a share of {request.sample_fraction} of {len(items)} images is none"
            problems.append(Problem("eval.no_images", reason, file=path, remedy="raise sample_fraction"))
        watcher.say(f"{path}: {count(len(items), 'image')}, {len(chosen)} to measure")
        datasets.append(Dataset(path, place.parent if is_list(place) else place, items, chosen))
    if problems:
        raise DatasetError(problems)
    return datasets


def _with_trigger(item: MediaItem, trigger: str | None) -> MediaItem:
    return replace(item, caption=insert_trigger(item.caption_source, trigger, prepend=False))


def _chosen(items: Sequence[MediaItem], request: EvalRequest) -> list[MediaItem]:
    """The items to measure, in their order."""
    seed, contents = request.settings.design.seed, [content_of(item) for item in items]
    limit = request.max_samples
    return [items[i] for i in sampled(contents, seed=seed, fraction=request.sample_fraction, limit=limit)]


def set_windows(model: Architecture, captions: Iterable[str]) -> frozenset[str]:
    """Set the model to the most windows of tokens that a caption needs; those that it cannot read whole."""
    most, unreadable = 1, set()
    for caption in captions:
        needed = model.windows_needed(caption)
        if needed > model.max_windows:
            unreadable.add(caption)
        else:
            most = max(most, needed)
    model.num_windows = most
    return frozenset(unreadable)


def capacity(model: Architecture) -> int:
    """The most tokens, marks included, that a prompt may have: found by asking the model."""

    def tokens(count: int) -> str:
        return " ".join(["a"] * count)

    low, high = 1, 2
    while model.windows_needed(tokens(high)) <= model.max_windows:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        fits = model.windows_needed(tokens(middle)) <= model.max_windows
        low, high = (middle, high) if fits else (low, middle)
    return model.count_tokens(tokens(low))


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
