"""What lies in a folder of ai-toolkit's runs. Nothing is written there, no link followed. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.runs.layout import bad_name
from web.formats import LAST_TIME
from web.importing.configs import FILES, BadConfig, from_folder, name_in
from web.importing.texts import is_text, one_line
from web.runs import artifacts
from web.runs.folders import folder_of
from web.runs.loss_log import LOSS_LOG, last_step
from web.runs.results import Result, list_results

MOST_FOLDERS = 5000
_OWN = ("status.json", "metrics.jsonl")  # what only our own runs write


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRun:
    """A run folder. config: None without one that can be read, then `config_problem` says why.

    step: the last one that a model, a preview or the losses tell of. finished: the finished model is newer
    than every other.
    """

    path: Path
    config: dict[str, Any] | None
    config_problem: str
    step: int
    finished: bool
    num_models: int
    num_samples: int
    started_at: float
    changed_at: float

    @property
    def name(self) -> str:
        """What the folder is called."""
        return self.path.name

    @property
    def job_name(self) -> str:
        """What its config calls it, else the folder's own name."""
        return name_in(self.config) or self.name


def find_runs(root: Path) -> tuple[list[Path], list[str]]:
    """The run folders directly in `root`, or `root` if it is one; and what was left out, a line each."""
    found: list[Path] = []
    left_out: list[str] = []
    for path in [root] if looks_like_run(root) else _folders(root):
        if len(found) >= MOST_FOLDERS:
            left_out.append(f"{root} holds more than {MOST_FOLDERS} runs; the others are left out")
            break
        try:
            if path.is_symlink():
                left_out.append(one_line(f"{path} is a link, and links are not followed"))
            elif looks_like_run(path):
                reason = _unfit(path)
                found += [] if reason else [path]
                left_out += [one_line(f"{path!s:.300} {reason}")] if reason else []
        except OSError as error:
            left_out.append(cannot_be_read(path, error))
    return found, left_out


def cannot_be_read(path: Path, error: OSError) -> str:
    """The line for a folder that its permissions or its disk keep from us."""
    return one_line(f"{path} cannot be read: {error.strerror or error}")


def _unfit(path: Path) -> str | None:
    """Why a run folder is not imported, or None."""
    if any((path / name).exists() for name in _OWN):
        return "is a run of this toolkit, not of ai-toolkit"
    reason = bad_name(path.name) if is_text(path.name) else "is no text in UTF-8"
    return reason and f"{reason}, and cannot be shown"


def _folders(root: Path) -> Iterator[Path]:
    """The folders in a folder by name, links to folders too."""
    try:
        listed = sorted(root.iterdir())
    except OSError:
        return
    yield from (path for path in listed if path.is_dir() and not path.name.startswith("."))


def looks_like_run(path: Path) -> bool:
    """Whether a folder holds a config, a model of some step or previews, as a run of ai-toolkit does."""
    if any((path / name).is_file() and not (path / name).is_symlink() for name in FILES):
        return True
    return any(model.step is not None for model in artifacts.model_files(path)) or bool(
        artifacts.samples(path)
    )


def read_run(path: Path) -> ForeignRun:
    """What a run folder tells."""
    config, problem = None, ""
    try:
        config = from_folder(path)
        problem = "" if config is not None else f"there is no {FILES[0]}"
    except BadConfig as error:
        problem = str(error)
    models = [model for model in list_results(folder_of(path)) if model.kind in ("model", "folder")]
    samples = artifacts.samples(path)
    steps = [model.step for model in models if model.step is not None] + [sample.step for sample in samples]
    times = [model.changed for model in models] + [sample.ms / 1000 for sample in samples]
    folder_at = path.stat().st_mtime
    config_at = next((file.stat().st_mtime for name in FILES if (file := path / name).is_file()), folder_at)
    return ForeignRun(
        path=path, config=config, config_problem=problem,
        step=max([*steps, last_step(path / LOSS_LOG) or 0]),
        finished=_is_finished(models, {path.name, name_in(config) or path.name}),
        num_models=len(models), num_samples=len(samples),
        started_at=min([config_at, *times]), changed_at=min(LAST_TIME, max([config_at, *times])),
    )  # fmt: skip


def _is_finished(models: list[Result], names: set[str]) -> bool:
    """Whether there is a model without a step that is newer than every one with a step."""
    newest = max((model.changed for model in models if model.step is not None), default=0.0)
    stems = [model.name.rpartition(".")[0] if model.is_file else model.name for model in models]
    named = [any(f"{stem}_".startswith(f"{name}_") for name in names) for stem in stems]
    return any(
        is_named and model.step is None and model.changed >= newest
        for model, is_named in zip(models, named, strict=True)
    )
