"""The answers of `run.py --list`, `--status`, `--stop`, `--save` and `--sample`. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import RunError
from toolkit.runs import standing
from toolkit.runs.find import default_roots, find_run, list_runs
from toolkit.runs.layout import SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Answer:
    """The same for a person and for a program."""

    lines: list[str]
    data: dict[str, Any]


def _look(folder: Path) -> standing.Standing:
    """How a run of a list stands; unknown where a newer program wrote it, so that the others are told."""
    try:
        return standing.look(folder, listen_s=0)
    except RunError:
        return standing.Standing(folder, "unknown", None)


def answer(
    action: str,
    name: str | None = None,
    *,
    roots: Sequence[Path] | None = None,
    listen_s: float | None = None,
) -> Answer:
    """What to say to an action: list, status, stop, save or sample; the others are about the run `name`.

    roots: folders of runs; listen_s: how long to listen to a run on another machine (default a few seconds).
    Raises UserError for a run that is not there, or that cannot obey.
    """
    roots = default_roots() if roots is None else roots
    listen_s = standing.LISTEN_S if listen_s is None else listen_s
    if action == "list":
        runs = [_look(folder) for folder in list_runs(roots)]
        lines = standing.table(runs) or [f"no runs in {', '.join(map(str, roots))}"]
        return Answer(lines, {"schema_version": SCHEMA_VERSION, "runs": [run.as_json() for run in runs]})
    folder = find_run(name or "", roots)
    if action == "status":
        run = standing.look(folder, listen_s=listen_s)
        return Answer(standing.describe(run), run.as_json())
    line = standing.command(folder, action, listen_s=listen_s)
    told = {"schema_version": SCHEMA_VERSION, "folder": str(folder), "command": action, "answer": line}
    return Answer([line], told)
