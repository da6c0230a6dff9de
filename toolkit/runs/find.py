"""Which run a name on the command line means. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from toolkit.errors import Problem, UserError, did_you_mean
from toolkit.paths import OUTPUT_ROOT

# Written by every run before anything else; a folder with one of them is a run's.
MARKS = ("status.json", "run.lock", "config.yaml")


def default_roots() -> list[Path]:
    """The folders of runs that are searched: output/ of the working folder, then of the repository."""
    return list(dict.fromkeys(root.resolve() for root in (Path("output"), OUTPUT_ROOT)))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return any((folder / mark).is_file() for mark in MARKS)


def list_runs(roots: Iterable[Path]) -> list[Path]:
    """Every run folder directly below the roots, by name."""
    found = [entry for root in roots if root.is_dir() for entry in root.iterdir() if entry.is_dir()]
    return sorted((entry for entry in found if is_run(entry)), key=lambda folder: (folder.name, folder))


def find_run(name: str, roots: Sequence[Path] | None = None) -> Path:
    """The run folder that `name` means: a folder, or a run's name below one of the roots.

    Raises UserError with a suggestion if there is none.
    """
    roots = default_roots() if roots is None else list(roots)
    for folder in (Path(name).expanduser(), *(root / name for root in roots)):
        if is_run(folder):
            return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        message, remedy = (
            "is no run's folder: it holds no status.json",
            "give the folder training_folder/name",
        )
        raise UserError(Problem("run.not_found", message, file=str(folder), remedy=remedy))
    known = {run.name: run for run in list_runs({*roots, folder.parent})}
    guess = did_you_mean(folder.name, known)
    looked = ", ".join(map(str, roots))
    remedy = f"did you mean '{guess}'?" if guess else f"looked in {looked}; elsewhere give the run's folder"
    raise UserError(Problem("run.not_found", f"no run named '{name}'", remedy=remedy))
