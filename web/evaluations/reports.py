"""Reports of the evaluator: found, read and checked. A report that was read is kept in memory. Torch-free."""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from toolkit.paths import ROOT
from web.problems import ApiError, not_found
from web.remembered import FolderMemo

MOST_BYTES = 256 * 1024**2
_NAME = re.compile(r"[^/\\]+_\d{9}\.json")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
Metric = Literal["loss", "loss_relative", "ablation_delta", "log_ratio"]
# Metric -> (label, whether a high value is bad).
METRICS: dict[Metric, tuple[str, bool]] = {
    "log_ratio": ("gain by the caption (log)", False),
    "ablation_delta": ("gain by the caption (loss)", False),
    "loss": ("loss", True),
    "loss_relative": ("loss, 1 is usual", True),
}


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What a report says of one picture."""

    rel: str
    caption: str
    values: Mapping[Metric, float | None]
    flagged: bool
    reasons: tuple[str, ...]
    hints: tuple[str, ...]

    def value(self, metric: Metric) -> float | None:
        """The picture's value of a metric, or None if it was not measured."""
        return self.values.get(metric)


@dataclass(frozen=True, slots=True)
class ReportInfo:
    """A report at a glance. datasets: the folders it is about, links resolved."""

    path: Path
    mtime: float
    model: str
    job_name: str
    datasets: tuple[Path, ...]
    dataset_names: tuple[str, ...]


@dataclass(slots=True)
class Reports:
    """Reads reports; remembers the last ones by path, time and size."""

    most: int = 8
    _infos: dict[Path, tuple[tuple[int, int], ReportInfo | None]] = field(default_factory=dict)
    _bodies: OrderedDict[tuple[Path, int, int], dict[str, Any]] = field(default_factory=OrderedDict)
    _places: FolderMemo = field(default_factory=FolderMemo)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, path: Path) -> dict[str, Any]:
        """A report. Raises 404 if there is none, 500 if it is none that can be read."""
        try:
            info = path.stat()
        except OSError:
            raise ApiError(404, "web.not_found", "Result not yet available") from None
        key = (path, info.st_mtime_ns, info.st_size)
        with self._lock:
            if key in self._bodies:
                self._bodies.move_to_end(key)
                return self._bodies[key]
        body = _parse(path, info.st_size)
        if body is None:
            raise ApiError(500, "web.bad_report", f"{path.name} is no report that can be read")
        with self._lock:
            self._bodies[key] = body
            while len(self._bodies) > self.most:
                self._bodies.popitem(last=False)
        return body

    def info(self, path: Path) -> ReportInfo | None:
        """A report at a glance; None for what is none."""
        try:
            stat = path.stat()
        except OSError:
            return None
        mark = (stat.st_mtime_ns, stat.st_size)
        known = self._infos.get(path)
        if known is not None and known[0] == mark:
            return known[1]
        body = _parse(path, stat.st_size)
        found = None if body is None else _info(path, stat.st_mtime, body)
        self._infos[path] = (mark, found)
        return found

    def all(self, output_root: Path, datasets_root: Path) -> list[ReportInfo]:
        """Every report below the folders of runs and of datasets, the newest first."""
        roots = (output_root, datasets_root)
        paths = self._places.get(roots, lambda: _candidates(*roots))
        found = (self.info(path) for path in paths)
        return sorted((each for each in found if each is not None), key=lambda each: -each.mtime)

    def of_dataset(self, folder: Path, output_root: Path, datasets_root: Path) -> list[ReportInfo]:
        """The reports about a dataset, the newest first."""
        wanted = folder.resolve()
        return [each for each in self.all(output_root, datasets_root) if wanted in each.datasets]


def results(body: Mapping[str, Any], folder: Path) -> dict[str, ImageResult]:
    """What a report says of the pictures of a dataset, by path below it."""
    wanted = folder.resolve()
    found: dict[str, ImageResult] = {}
    for image in body["images"]:
        if dataset_folder(str(image.get("dataset", ""))) != wanted:
            continue
        values = {metric: _metric(image.get(metric)) for metric in METRICS}
        rel = str(image.get("path", ""))
        found[rel] = ImageResult(
            rel, str(image.get("caption", "")), values, bool(image.get("flagged")),
            messages(image.get("reasons")), messages(image.get("hints")),
        )  # fmt: skip
    return found


def dataset_folder(text: str) -> Path:
    """The folder that a report calls by this path; relative ones begin at the repository."""
    if "\0" in text or len(text) > 4000:
        return ROOT / "\N{REPLACEMENT CHARACTER}"  # no path at all, and none of ours
    try:
        return (ROOT / Path(text).expanduser()).resolve()
    except (OSError, RuntimeError):  # too long a name; a user that is not here
        return ROOT / "\N{REPLACEMENT CHARACTER}"


def is_report_name(name: str) -> bool:
    """Whether a file may be a report, by its name."""
    return _NAME.fullmatch(name) is not None and not name.startswith(".")


def _candidates(output_root: Path, datasets_root: Path) -> tuple[list[Path], set[Path]]:
    """What may be a report by its name and place, and the folders looked into; links are not followed."""
    evaluations = output_root / "eval"
    roots = [output_root, datasets_root]
    roots += [evaluations] if evaluations.is_dir() and not evaluations.is_symlink() else []
    inside = {
        Path(entry.path) for root in roots for entry in _entries(root) if entry.is_dir(follow_symlinks=False)
    }
    found = [
        Path(entry.path)
        for folder in sorted(inside)
        for entry in _entries(folder)
        if is_report_name(entry.name) and not entry.is_symlink()
    ]
    return found, inside | {root for root in roots if root.is_dir()}


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _parse(path: Path, size: int) -> dict[str, Any] | None:
    if size > MOST_BYTES:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        body = json.loads(text, parse_constant=lambda _name: None)
        if _HALF.search(text):  # half of a pair of code units is no text and cannot be sent on
            body = json.loads(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or body.get("kind") != "eval_dataset":
        return None
    parts = [body.get("run"), body.get("datasets"), body.get("images")]
    if not isinstance(parts[0], dict) or not all(
        isinstance(part, list) and all(isinstance(each, dict) for each in part) for part in parts[1:]
    ):
        return None
    return body


def _info(path: Path, mtime: float, body: Mapping[str, Any]) -> ReportInfo:
    names = [str(each.get("path", "")) for each in body["datasets"]]
    return ReportInfo(
        path, mtime, str(body["run"].get("model", "")), str(body["run"].get("job_name", "")),
        tuple(map(dataset_folder, names)), tuple(Path(name).name for name in names),
    )  # fmt: skip


def _metric(value: Any) -> float | None:
    if isinstance(value, dict):
        value = value.get("mean")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -1e300 < value < 1e300 else None


def messages(value: Any) -> tuple[str, ...]:
    """What the reasons or hints of a picture say."""
    if not isinstance(value, list):
        return ()
    return tuple(str(each.get("message") or each.get("code", "")) for each in value if isinstance(each, dict))


def report_at(path: Path) -> Path:
    """The path itself. Raises 404 for what cannot be a report."""
    if not is_report_name(path.name):
        raise not_found("this report")
    return path
