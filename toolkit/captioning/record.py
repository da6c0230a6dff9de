"""The captions that were written: what a stopped run goes on from, and what undoes it. Torch-free.

One JSON object a line. A run begins with its settings, then comes a line for each caption file, on disk
before the file is changed, with the text that stood there; a run that came to its end says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.captioning.planning import Picture
from toolkit.data.captions import read_text
from toolkit.errors import ConfigError, DatasetError, Problem, RunError
from toolkit.runs import atomic

_REMEDY = "it is the captions.jsonl of a captioning"


@dataclass(frozen=True, slots=True)
class Written:
    """A caption file that was written: its text, and the one before it (None: there was no file)."""

    image: str
    file: str
    text: str
    before: str | None


class Record:
    """The record of one folder of runs. Raises RunError if it cannot be written."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self._opened = False

    def done(self) -> dict[str, Written]:
        """Image -> what an unfinished run of the same settings wrote for it; nothing after a finished one."""
        rows = _last_run(self.path)
        if not rows or rows[0].get("run") != self.fingerprint or "finished" in rows[-1]:
            return {}
        self._opened = True
        return {each.image: each for each in _written(rows)}

    def add(self, picture: Picture, text: str, before: str | None) -> None:
        """Note what is about to be written."""
        if not self._opened:
            self._append({"run": self.fingerprint})
            self._opened = True
        self._append({"image": str(picture.image), "file": str(picture.file), "text": text, "before": before})

    def finish(self) -> None:
        """Note that the run came to its end."""
        if self._opened:
            self._append({"finished": True})

    def _append(self, row: dict[str, Any]) -> None:
        with atomic.reporting(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                file.seek(0, os.SEEK_END)
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")  # after a line that a kill cut short
                file.write(atomic.to_json(row).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())


def write_caption(picture: Picture, caption: str, record: Record) -> None:
    """Put a caption into its file, noted first; a .json file keeps its other keys.

    Raises RunError if it cannot be written, DatasetError if what stands there cannot be read.
    """
    before = _text_of(picture.file)
    text = f"{caption}\n"
    if picture.file.suffix.lower() == ".json":
        text = atomic.to_json(_json_object(picture.file, before) | {"caption": caption}, indent=2) + "\n"
    record.add(picture, text, before)
    atomic.write_text(picture.file, text)


def undo(path: Path) -> tuple[int, list[str]]:
    """Put back what the latest run of a record replaced: how many files, and a line for each that was left.

    A file that was changed since stays as it is. Raises ConfigError without such a file, RunError for a file
    that is no record.
    """
    if not path.is_file():
        raise ConfigError(Problem("caption.record", "no such file", file=str(path), remedy=_REMEDY))
    rows = _last_run(path)
    if not rows:
        raise RunError(Problem("caption.record", "holds no run of captions", file=str(path), remedy=_REMEDY))
    restored, left = 0, []
    for each in reversed(list(_written(rows))):
        file = Path(each.file)
        now: object
        try:
            now = _text_of(file)
        except DatasetError as error:  # of another encoding by now, or not to be read
            now = error
        if now == each.before:
            continue
        if now != each.text:
            left.append(f"{file}: changed since, left as it is")
            continue
        if each.before is None:
            atomic.remove(file)
        else:
            atomic.write_text(file, each.before)
        restored += 1
    return restored, left


def _text_of(file: Path) -> str | None:
    try:
        return read_text(file)
    except FileNotFoundError:
        return None


def _json_object(file: Path, before: str | None) -> dict[str, Any]:
    """What a .json caption file holds; its caption may be the whole of it. Raises DatasetError."""
    if before is None or not before.strip():
        return {}
    try:
        content = json.loads(before)
    except ValueError as error:
        raise DatasetError(
            Problem("data.caption_file", f"not valid JSON: {error}", file=str(file))
        ) from error
    return content if isinstance(content, dict) else {}


def _last_run(path: Path) -> list[dict[str, Any]]:
    """The lines of the latest run, its settings first; lines cut short by a kill are passed over."""
    try:
        # Not splitlines: captions may hold other ends of lines than the one between two rows.
        lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    except OSError:
        return []
    rows = [row for row in map(_parsed, lines) if row]
    starts = [index for index, row in enumerate(rows) if "run" in row]
    return rows[starts[-1] :] if starts else []


def _parsed(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _written(rows: list[dict[str, Any]]) -> Iterator[Written]:
    for row in rows:
        if {"image", "file", "text", "before"} <= set(row):
            yield Written(row["image"], row["file"], row["text"], row["before"])
