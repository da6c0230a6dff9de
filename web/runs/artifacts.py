"""What a run leaves: pictures, models, other files. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from toolkit.runs.images import read_recipe
from toolkit.runs.layout import Sample, parse_sample
from web.runs.plain_files import is_text

_MODEL = re.compile(r"(?:.*_(\d{9,15})|.*)\.(?:safetensors|pt)", re.ASCII)
STATES = ("optimizer.pt",)  # of ai-toolkit: what training goes on from, no model
_SHOWN = ("prompt", "negative_prompt", "seed", "width", "height", "guidance_scale", "steps", "sampler")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model that a run has saved; step: None for the finished one."""

    name: str
    size: int
    modified_at: float
    step: int | None


def model_files(folder: Path) -> list[ModelFile]:
    """The models in a run folder, the last step first, the finished one before all."""
    found = [
        ModelFile(path.name, info.st_size, info.st_mtime, int(match[1]) if match[1] else None)
        for path in _plain_files(folder)
        if path.name not in STATES and (match := _MODEL.fullmatch(path.name)) and (info := path.stat())
    ]
    return sorted(found, key=lambda file: (file.step is not None, -(file.step or 0), file.name))


def samples(folder: Path) -> list[Sample]:
    """The previews of a run, ordered by step, prompt and time; of one made twice the newer one."""
    place = folder / "samples"
    if place.is_symlink():
        return []
    found = sorted(sample for path in _plain_files(place) if (sample := parse_sample(path)) is not None)
    newest = {(sample.step, sample.index): sample for sample in found}
    return sorted(newest.values())


def _plain_files(folder: Path) -> Iterator[Path]:
    """The files in a folder that are no links and not hidden, and have names that can be told."""
    if folder.is_dir():
        for path in folder.iterdir():
            shown = is_text(path.name) and not path.name.startswith(".")
            if shown and path.is_file() and not path.is_symlink():
                yield path


def recipe(path: Path) -> dict[str, Any]:
    """Prompt, seed and size of a preview, as far as it tells."""
    return _recipe(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _recipe(path: Path, _modified: int) -> dict[str, Any]:
    try:
        found = read_recipe(path) or {}
    except (OSError, ValueError, SyntaxError):  # Pillow's words for a picture that is damaged
        return {}
    return {key: found[key] for key in _SHOWN if key in found}
