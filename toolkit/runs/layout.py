"""The run folder: where every file of a run lies and what it is called. Torch-free.

output/<name>/config.yaml  log.txt  status.json  metrics.jsonl  run.lock
              samples/{ms}__{step:09d}_{i}.jpg   checkpoints/   commands/
              <name>.safetensors   <name>_000000250.safetensors
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError, Problem, RunError
from toolkit.runs import atomic

SCHEMA_VERSION = 1
SAMPLE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_MODEL_EXTENSIONS = r"(?:\.safetensors|\.pt|)"  # the last one: a folder in diffusers' layout
_SAMPLE = re.compile(r"(\d{1,15})__(\d{9,15})_(\d{1,9})\.(" + "|".join(SAMPLE_EXTENSIONS) + ")", re.ASCII)
_WINDOWS_FORBIDDEN = '<>:"|?*'


@dataclass(frozen=True, slots=True, order=True)
class Sample:
    """One preview picture: of which step, of which prompt, made when (milliseconds since 1970)."""

    step: int
    index: int
    ms: int
    path: Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder `root/name` of one run. Raises ConfigError for a name that cannot be a folder.

    stems: what its saved models are called, without step and extension; none means the run's name.
    """

    root: Path
    name: str
    stems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "stems", self.stems or (self.name,))
        reason = bad_name(self.name)
        if reason:
            remedy = "choose a name of letters, digits, '-', '_', '.' and spaces"
            problem = Problem("config.name", f"name {self.name!r} {reason}", key="config.name", remedy=remedy)
            raise ConfigError(problem)

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.root / self.name

    @property
    def config_path(self) -> Path:
        """The job as it was started, with ${VAR} unexpanded."""
        return self.path / "config.yaml"

    @property
    def log_path(self) -> Path:
        """Everything the run wrote to its terminal."""
        return self.path / "log.txt"

    @property
    def status_path(self) -> Path:
        """What the run does right now."""
        return self.path / "status.json"

    @property
    def metrics_path(self) -> Path:
        """One row for every logged step."""
        return self.path / "metrics.jsonl"

    @property
    def lock_path(self) -> Path:
        """The file that says which process owns the folder."""
        return self.path / "run.lock"

    @property
    def samples(self) -> Path:
        """The folder of preview pictures."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """The folder of full training states."""
        return self.path / "checkpoints"

    @property
    def commands(self) -> Path:
        """The folder in which `stop`, `save` and `sample` are put."""
        return self.path / "commands"

    @property
    def contact_sheet_path(self) -> Path:
        """Prompts by steps in one picture."""
        return self.path / "contact_sheet.png"

    @property
    def slider_sheet_path(self) -> Path:
        """Prompts by strengths of a slider in one picture."""
        return self.path / "slider_sheet.png"

    @property
    def loss_plot_path(self) -> Path:
        """The loss over the steps in one picture."""
        return self.path / "loss.png"

    @property
    def coverage_path(self) -> Path:
        """How often each picture was shown."""
        return self.path / "coverage.json"

    @property
    def validation_path(self) -> Path:
        """Every reading of the held-out loss."""
        return self.path / "validation.json"

    @property
    def validation_plot_path(self) -> Path:
        """The held-out loss over the steps in one picture."""
        return self.path / "validation.png"

    @property
    def report_path(self) -> Path:
        """The run on one page."""
        return self.path / "report.html"

    @property
    def keeper(self) -> Path:
        """The pictures of the keeper sheet."""
        return self.path / "keeper"

    @property
    def keeper_sheet_path(self) -> Path:
        """Saves by strengths in one picture."""
        return self.path / "keeper_sheet.png"

    def create(self) -> None:
        """Make the folder and its subfolders; existing ones are kept. Raises RunError if it cannot."""
        for folder in (self.path, self.samples, self.checkpoints, self.commands):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or str(error)
                message = f"cannot make this folder: {reason}"
                remedy = "set training_folder to a place you can write to"
                raise RunError(Problem("run.folder", message, file=str(folder), remedy=remedy)) from error

    def remove_parts(self) -> None:
        """Delete what writes that were killed left behind. For the holder of the lock, before it writes.

        Raises RunError if the system refuses.
        """
        for folder in (self.path, self.samples, self.keeper):
            for part in folder.glob(".*.part"):
                if not part.name.startswith(f".{self.lock_path.name}."):  # of one who asks for the lock
                    atomic.remove(part)

    def write_config(self, raw: Mapping[str, Any]) -> None:
        """Write config.yaml from the job as loaded, which must still hold ${VAR} rather than secrets."""
        import yaml

        body = yaml.safe_dump(_plain_yaml(raw), sort_keys=False, allow_unicode=True, width=100)
        atomic.write_text(self.config_path, f"# schema_version: {SCHEMA_VERSION}\n{body}")

    def final_name(self, extension: str = ".safetensors") -> str:
        """The name of the finished model; with extension "" a folder in diffusers' layout."""
        return f"{self.name}{extension}"

    def step_name(self, step: int, extension: str = ".safetensors") -> str:
        """The name of the model saved after optimizer step `step`."""
        return f"{self.name}_{step:09d}{extension}"

    def sample_name(self, ms: int, step: int, index: int, extension: str = "jpg") -> str:
        """The name of the preview of prompt `index` after `step`, made at `ms` milliseconds since 1970."""
        return f"{ms}__{step:09d}_{index}.{extension.lstrip('.')}"

    def parse_step(self, path: Path | str) -> int | None:
        """The step in the name of a model of this very run, or None: 'foo' never claims foo_bar_000000250."""
        stems = "|".join(map(re.escape, self.stems))
        pattern = rf"(?:{stems})_(\d{{9,}})" + _MODEL_EXTENSIONS
        match = re.fullmatch(pattern, Path(path).name, re.ASCII)
        return int(match[1]) if match else None

    def step_files(self) -> list[tuple[int, Path]]:
        """Every saved model of this run with its step, the oldest step first."""
        if not self.path.is_dir():
            return []
        found = ((self.parse_step(path), path) for path in self.path.iterdir())
        return sorted((step, path) for step, path in found if step is not None)

    def set_aside(self, after_step: int) -> list[Path]:
        """Move this run's models of later steps to `earlier/`, so that none looks newer than it is.

        For a run that begins again before them. At step 0 the finished model is such a leftover too.
        Returns the new places; nothing there is overwritten. Raises RunError if a file cannot be moved.
        """
        leftovers = [path for step, path in self.step_files() if step > after_step]
        if after_step == 0:
            names = [f"{stem}{ext}" for stem in self.stems for ext in (".safetensors", ".pt")]
            finished = (self.path / name for name in [*names, self.final_name("")])
            leftovers += [path for path in finished if path.exists() and path != self.path / "earlier"]
            leftovers += self.best_files()
        return self._move_aside(leftovers)

    def set_aside_best(self) -> list[Path]:
        """Move what is called the best to `earlier/`; returns the new places. Raises RunError."""
        return self._move_aside(self.best_files())

    def best_files(self) -> list[Path]:
        """The models that are called the best of this run."""
        stems = "|".join(map(re.escape, self.stems))
        pattern = re.compile(f"(?:{stems})_best{_MODEL_EXTENSIONS}")
        return [path for path in sorted(self.path.iterdir()) if pattern.fullmatch(path.name)]

    def _move_aside(self, leftovers: list[Path]) -> list[Path]:
        folder = self.path / "earlier"
        moved = []
        for path in leftovers:
            with atomic.reporting(folder):
                folder.mkdir(exist_ok=True)
                target = _free_place(folder / path.name)
                atomic.replace(path, target)
            moved.append(target)
        return moved

    def point_to_best(self, model: Path) -> Path:
        """Give a saved model of this run a second name, `<its stem>_best`; returns that.

        Links rather than copies where the disk can, so it costs nothing, and the model stays when its
        numbered file is pruned. Raises RunError if it cannot be written.
        """
        match = re.fullmatch(r"(.*?)(?:_\d{9,})?" + f"({_MODEL_EXTENSIONS})", model.name, re.ASCII)
        stem, extension = (match[1], match[2]) if match else (model.name, "")
        target = model.with_name(f"{stem}_best{extension}")
        if model.is_dir():
            with atomic.writing_folder(target) as folder:
                shutil.copytree(model, folder, copy_function=_link, dirs_exist_ok=True)
            return target
        if target.exists() and target.samefile(model):
            return target  # renaming one link of a file over another does nothing
        with atomic.reporting(target):
            name_also(model, target)
        return target

    def set_aside_samples(self, after_step: int) -> int:
        """Move the previews of later steps (at 0: all) to `earlier/samples/`; returns how many.

        They show what another attempt had learned, and its steps may never come again. Raises RunError.
        """
        folder = self.path / "earlier" / "samples"
        leftovers = [each for each in self.list_samples() if each.step > after_step or after_step == 0]
        for sample in leftovers:
            with atomic.reporting(folder):
                folder.mkdir(parents=True, exist_ok=True)
                atomic.replace(sample.path, _free_place(folder / sample.path.name))
        return len(leftovers)

    def prune_step_files(self, keep: int, current: int | None = None) -> list[Path]:
        """Delete all but the models of the last `keep` steps; returns what was deleted, oldest first.

        current: the step just saved; models of later steps are another attempt's and neither count nor go.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        files = [(step, path) for step, path in self.step_files() if current is None or step <= current]
        kept = set(sorted({step for step, _ in files})[-keep:])
        doomed = [path for step, path in files if step not in kept]
        for path in doomed:
            atomic.remove(path)
        return doomed

    def list_samples(self) -> list[Sample]:
        """Every preview on disk, ordered by step, prompt and time."""
        if not self.samples.is_dir():
            return []
        found = [parse_sample(path) for path in self.samples.iterdir()]
        return sorted(sample for sample in found if sample is not None)

    def samples_by_step(self) -> dict[int, dict[int, Path]]:
        """step -> prompt index -> newest preview (a resumed run makes some of them again)."""
        grouped: dict[int, dict[int, Path]] = {}
        for sample in self.list_samples():
            grouped.setdefault(sample.step, {})[sample.index] = sample.path
        return grouped


def _link(source: str, target: str) -> str:
    """A hard link, or a copy on disks that have none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def name_also(file: Path, target: Path) -> None:
    """Give a file a second name, over what has it, whole or not at all. Raises OSError."""
    part = atomic.beside(target)
    try:
        _link(str(file), str(part))
        atomic.replace(part, target)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def parse_sample(path: Path) -> Sample | None:
    """What the name of a preview says, or None if it is not one."""
    match = _SAMPLE.fullmatch(path.name)
    return Sample(int(match[2]), int(match[3]), int(match[1]), path) if match else None


def _free_place(path: Path) -> Path:
    """`path`, or the first of foo.2.safetensors, foo.3.safetensors … that is not taken."""
    kind = re.search(r"(\.safetensors|\.pt|\.jpe?g|\.png|\.webp)?$", path.name)
    extension = (kind[1] or "") if kind else ""
    number, place = 1, path
    while place.exists() or place.is_symlink():
        number += 1
        place = path.with_name(f"{path.name.removesuffix(extension)}.{number}{extension}")
    return place


def bad_name(name: str) -> str | None:
    """Why `name` cannot name a run, or None if it can."""
    if not name or name != name.strip():
        return "is empty or begins or ends with a blank"
    if name.startswith(".") or name.endswith("."):
        return "begins or ends with a dot"
    if any(letter in "/\\" for letter in name):
        return "holds a path separator"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return "holds a control character"
    if os.name == "nt" and any(letter in _WINDOWS_FORBIDDEN for letter in name):
        return f"holds one of {_WINDOWS_FORBIDDEN}"
    if len(name.encode("utf-8", "replace")) > 200:  # file names end at 255 bytes; ours add up to 30
        return "is longer than 200 bytes"
    return None


def check_schema(version: object, path: Path) -> None:
    """Raise RunError if `path` was written by a newer program than this one."""
    if isinstance(version, int) and version > SCHEMA_VERSION:
        message = f"schema_version {version} is newer than this program reads ({SCHEMA_VERSION})"
        raise RunError(Problem("run.newer", message, file=str(path), remedy="update the toolkit"))


def _plain_yaml(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain_yaml(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_yaml(entry) for entry in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
