"""What a run has saved: models to download, and the full states that training goes on from. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from toolkit.runs.layout import RunFolder
from web.runs.artifacts import STATES
from web.runs.plain_files import is_text

_STEP = re.compile(r"_(\d{9,15})(?:\.\w+)?$", re.ASCII)
_FILES = (".safetensors", ".pt")


@dataclass(frozen=True, slots=True)
class Result:
    """A saved model or state. step: None for the finished model. is_file: it can be downloaded as it is."""

    name: str
    kind: str  # model, folder, state, optimizer (of ai-toolkit)
    step: int | None
    size: int
    changed: float
    is_file: bool


def list_results(run: RunFolder | None) -> list[Result]:
    """The newest step first, the finished model before all."""
    if run is None or not run.path.is_dir():
        return []
    found = [result for path in run.path.iterdir() if (result := _model(path)) is not None]
    if run.checkpoints.is_dir():
        found += [_result(path, "state") for path in run.checkpoints.iterdir() if _is_state(path)]
    return sorted(
        found, key=lambda each: (each.step is None, each.step or 0, each.kind, each.name), reverse=True
    )


def _model(path: Path) -> Result | None:
    if path.is_symlink() or not is_text(path.name):
        return None
    if path.is_file() and path.suffix in _FILES:
        return _result(path, "optimizer" if path.name in STATES else "model")
    if path.is_dir() and (path / "model_index.json").is_file():
        return _result(path, "folder")
    return None


def _is_state(path: Path) -> bool:
    return not path.is_symlink() and is_text(path.name) and (path / "manifest.json").is_file()


def _result(path: Path, kind: str) -> Result:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    infos = [each.stat() for each in files]
    match = _STEP.search(path.name)
    return Result(
        name=path.name, kind=kind, step=int(match[1]) if match else None,
        size=sum(info.st_size for info in infos), changed=max((info.st_mtime for info in infos), default=0.0),
        is_file=path.is_file() and kind == "model",
    )  # fmt: skip
