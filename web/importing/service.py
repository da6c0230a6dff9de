"""An import from end to end: find what lies below a path, look at it, say what would be done, do it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.errors import Problem, UserError
from web.actions import check
from web.importing.apply import apply_plan, what_is_here
from web.importing.database import NAME, ForeignDatabase, read_database
from web.importing.folders import ForeignRun, cannot_be_read, find_runs, looks_like_run, read_run
from web.importing.plan import Plan, make_plan
from web.importing.texts import is_text, one_line
from web.services import Services

_OUTPUT = "output"
_TRAINING = "TRAINING_FOLDER"


def import_ai_toolkit(
    services: Services, path: Path, database: Path | None = None, *, dry_run: bool = False,
    roots: Sequence[Path] | None = None,
) -> Plan:  # fmt: skip
    """Make jobs of what ai-toolkit has left at `path`: its folder, a folder of runs, or its database.

    database: aitk_db.db, where it lies elsewhere. dry_run: only say what would be done. roots: the folders
    that everything must lie in, or None for anywhere. Raises UserError for what cannot be read, 409.
    """
    path = _allowed(path, roots)
    file = _allowed(database, roots) if database is not None else None
    if path.is_file():
        file, path = file or path, path.parent
    if not path.is_dir():
        raise UserError(
            Problem("import.path", "is no folder", file=str(path), remedy="give an existing folder")
        )
    if file is None and (path / NAME).exists():
        file = path / NAME
    found = read_database(file) if file is not None else None
    folders, notes = _output_folders(path, found, roots)
    runs: list[ForeignRun] = []
    for folder in folders:
        notes += _read_runs(folder, runs)
    here = what_is_here(services.database, services.settings.devices)
    plan = make_plan(path, found, runs, here, lambda text, name: check(services, text, name))
    plan.notes += notes
    if not plan.entries:
        plan.notes.append(f"there are no jobs and no runs of ai-toolkit in {path}")
    if not dry_run:
        apply_plan(services.database, plan)
    return plan


def import_roots(services: Services) -> list[Path]:
    """The folders that users of the server may import from."""
    return [services.preferences.output_root, *services.settings.import_roots]


def _allowed(path: Path, roots: Sequence[Path] | None) -> Path:
    """The path with its links resolved. Raises UserError outside of the roots, whether it exists or not."""
    try:
        resolved = path.expanduser().resolve()
        if not is_text(str(resolved)):
            raise ValueError
    except (OSError, RuntimeError, ValueError):
        raise UserError(Problem("import.path", f"{str(path)!r:.200} is no path")) from None
    if roots is not None and not _is_below(resolved, roots):
        message = f"lies outside the folders to import from: {', '.join(map(str, roots))}"
        remedy = (
            "add its folder to AI_TOOLKIT_IMPORT_ROOTS, or run on the server: "
            f"python -m tools.import_ai_toolkit {resolved}"
        )
        raise UserError(Problem("import.outside", message, file=str(resolved), remedy=remedy))
    return resolved


def _read_runs(folder: Path, runs: list[ForeignRun]) -> list[str]:
    """Add the runs in a folder; what was left out of it."""
    try:
        found, left_out = find_runs(folder)
    except OSError as error:
        return [cannot_be_read(folder, error)]
    for path in found:
        try:
            runs.append(read_run(path))
        except OSError as error:
            left_out.append(cannot_be_read(path, error))
    return left_out


def _output_folders(
    path: Path, database: ForeignDatabase | None, roots: Sequence[Path] | None
) -> tuple[list[Path], list[str]]:
    """The folders of runs at `path`; of the database's own one only if it lies there too."""
    found, notes = [path], []
    if (path / _OUTPUT).is_dir() and not looks_like_run(path):
        found = [(path / _OUTPUT).resolve()]
        if not _is_below(found[0], [path, *(roots or ())]) and roots is not None:
            notes.append(one_line(f"{path / _OUTPUT} is a link to {found[0]}; import that folder with --db"))
            found = []
    training = database.settings.get(_TRAINING) if database is not None else None
    if database is not None and training:
        try:
            folder = (database.path.parent / training).resolve()
        except (OSError, RuntimeError, ValueError):
            folder = path
        if not _is_below(folder, [path, *found]):
            notes.append(
                f"its {_TRAINING} {training!r:.300} lies outside {path}; to see those runs, import that "
                f"folder with --db {database.path}"
            )
        elif folder.is_dir() and folder not in found:
            found.append(folder)
    return found, notes


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
