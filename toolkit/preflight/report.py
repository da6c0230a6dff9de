"""What a check found, as data for other programs and as lines for a person. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from toolkit.errors import Problem
from toolkit.preflight.buckets import BucketRow, bucket_table
from toolkit.preflight.disk import Need, disk_lines
from toolkit.preflight.estimate import Estimate
from toolkit.text import count

if TYPE_CHECKING:
    from toolkit.data.items import MediaItem

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """One folder of pictures. undecoded: pictures of which only the header was read."""

    folder: str
    pictures: int
    items: int
    undecoded: int
    uncaptioned: int
    buckets: list[BucketRow]


@dataclass(frozen=True, slots=True)
class CaptionReport:
    """The lengths of the captions of a run in tokens, by the text encoder that reads least.

    beyond_one_window: captions longer than a window that can be read all the same.
    """

    tokenizer: str
    captions: int
    longest: int
    longest_file: str
    window: int
    limit: int
    beyond_one_window: int


@dataclass(frozen=True, slots=True)
class ModelReport:
    """Where a model is: local, cache, hub (to be downloaded) or unknown."""

    name: str
    key: str
    where: str
    download_bytes: int | None = None


@dataclass(slots=True)
class ProcessReport:
    """What one process would do. items: what it would be trained on; estimate: only where asked for."""

    type: str
    folder: str | None = None
    steps: int | None = None
    batches_per_epoch: int | None = None
    datasets: list[DatasetReport] = field(default_factory=list)
    buckets: list[BucketRow] = field(default_factory=list)
    captions: CaptionReport | None = None
    models: list[ModelReport] = field(default_factory=list)
    disk: list[Need] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    epochs: str = ""
    items: Sequence[MediaItem] = ()
    estimate: Estimate | None = None

    def lines(self) -> list[str]:
        """The report for a person, without problems and notes."""
        lines = [self._dataset_line(dataset) for dataset in self.datasets]
        if self.buckets:
            lines += ["", *(f"  {line}" for line in bucket_table(self.buckets)), ""]
        lines += [self.epochs] if self.epochs else []
        lines += [self._caption_line(self.captions)] if self.captions else []
        lines += [self._model_line(model) for model in self.models]
        lines += [f"disk: {line}" for line in disk_lines(self.disk)]
        return lines + (["", *self.estimate.lines()] if self.estimate is not None else [])

    @staticmethod
    def _dataset_line(dataset: DatasetReport) -> str:
        captions = "" if not dataset.uncaptioned else f", {dataset.uncaptioned} without caption"
        pictures, buckets = count(dataset.pictures, "picture"), count(len(dataset.buckets), "bucket")
        return f"{dataset.folder}: {pictures}{captions}, {count(dataset.items, 'item')} in {buckets}"

    @staticmethod
    def _caption_line(captions: CaptionReport) -> str:
        longest = (
            f"the longest of {count(captions.captions, 'caption')} has {count(captions.longest, 'token')}"
        )
        where = f" ({captions.longest_file})" if captions.longest_file else ""
        windows = f"a window holds {captions.window}"
        if captions.limit > captions.window:
            windows += f", {captions.limit} can be read"
        return f"captions: {longest}{where}; {windows}"

    @staticmethod
    def _model_line(model: ModelReport) -> str:
        from toolkit.text import size

        known = "of unknown size" if model.download_bytes is None else size(model.download_bytes)
        where = {
            "local": "on this machine",
            "cache": "in the hub's local cache",
            "hub": f"on the hub, {known} to be downloaded",
            "unknown": "not found out",
        }[model.where]
        return f"model: {model.name} is {where}"


@dataclass(slots=True)
class JobReport:
    """A job file and what was found in it; processes is empty where the file itself is wrong."""

    file: str
    name: str | None = None
    summary: str = ""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    processes: list[ProcessReport] = field(default_factory=list)

    @property
    def all_problems(self) -> list[Problem]:
        """Those of the file and of every process."""
        return [*self.problems, *(problem for each in self.processes for problem in each.problems)]

    @property
    def all_notes(self) -> list[str]:
        """Those of the file and of every process."""
        return [*self.notes, *(note for each in self.processes for note in each.notes)]

    def lines(self) -> list[str]:
        """What is fine or worth knowing about the job, for a person."""
        if not self.summary:
            return []
        lines = [f"{'OK' if not self.all_problems else 'NOT OK'}: {self.summary}"]
        body = [line for process in self.processes for line in process.lines()]
        lines += [f"  {line}".rstrip() for line in body]
        return lines + [f"  note: {note}" for note in self.all_notes]


def as_json(reports: Sequence[JobReport], *, full: bool) -> dict[str, Any]:
    """The stable form for other programs; docs/preflight.md describes it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "ok": not any(report.all_problems for report in reports),
        "full": full,
        "jobs": [_job(report) for report in reports],
    }


def _job(report: JobReport) -> dict[str, Any]:
    return {
        "file": report.file,
        "name": report.name,
        "ok": not report.all_problems,
        "problems": [asdict(problem) for problem in report.all_problems],
        "notes": report.all_notes,
        "processes": [_process(process) for process in report.processes],
    }


def _process(process: ProcessReport) -> dict[str, Any]:
    return {
        "type": process.type,
        "folder": process.folder,
        "steps": process.steps,
        "batches_per_epoch": process.batches_per_epoch,
        "datasets": [asdict(dataset) for dataset in process.datasets],
        "buckets": [asdict(row) for row in process.buckets],
        "captions": None if process.captions is None else asdict(process.captions),
        "models": [asdict(model) for model in process.models],
        "disk": [
            {"what": need.what, "folder": str(need.folder), "bytes": need.num_bytes, "missing": need.more}
            for need in process.disk
        ],
        "estimate": None if process.estimate is None else process.estimate.as_json(),
    }
