"""The previews of a run: prompts by steps, with the recipe that each picture carries. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from toolkit.runs.images import read_recipe
from toolkit.runs.layout import RunFolder
from web.importing.configs import prompts_in
from web.runs import artifacts


@dataclass(frozen=True, slots=True)
class SampleGrid:
    """Which pictures there are. cells: step -> prompt number -> file name; newest: number -> last picture.

    A prompt is what the pictures say, else what config.yaml says: those of ai-toolkit say nothing.
    """

    steps: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    cells: dict[int, dict[int, str]] = field(default_factory=dict)
    newest: dict[int, Path] = field(default_factory=dict)
    run: RunFolder | None = None

    def prompt(self, number: int) -> str:
        """The text of a prompt. Read from its picture when asked for: there may be thousands."""
        told = str(recipe_of(self.newest[number]).get("prompt", ""))
        if told or self.run is None:
            return told
        written = prompts_in(self.run.path)
        return written[number] if number < len(written) else ""

    def prompts(self) -> dict[int, str]:
        """Number -> text of all prompts."""
        return {number: self.prompt(number) for number in self.numbers}


def sample_grid(run: RunFolder | None) -> SampleGrid:
    """The pictures of a run, of each step and prompt the newest."""
    if run is None:
        return SampleGrid()
    grouped: dict[int, dict[int, Path]] = {}
    for sample in artifacts.samples(run.path):
        grouped.setdefault(sample.step, {})[sample.index] = sample.path
    cells = {step: {number: path.name for number, path in row.items()} for step, row in grouped.items()}
    newest = {number: path for _, row in sorted(grouped.items()) for number, path in row.items()}
    return SampleGrid(sorted(cells), sorted(newest), cells, newest, run)


def recipe_of(path: Path) -> dict[str, Any]:
    """What a picture says about how it was made; empty if it says nothing."""
    try:
        if path.is_symlink():
            return {}
        return _recipe(path, path.stat().st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=4096)
def _recipe(path: Path, _changed: int) -> dict[str, Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        return read_recipe(path) or {}
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        return {}
