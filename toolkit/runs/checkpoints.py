"""Which full training states a run has: `checkpoints/step_…`, whole once they have a manifest. Torch-free."""

from __future__ import annotations

from pathlib import Path

PREFIX = "step_"


def list_checkpoints(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every finished checkpoint, oldest first; validity is not judged."""
    found = []
    for folder in root.glob(f"{PREFIX}*") if root.is_dir() else []:
        number = folder.name.removeprefix(PREFIX)
        if number.isdecimal() and (folder / "manifest.json").is_file():
            found.append((int(number), folder))
    return sorted(found)
