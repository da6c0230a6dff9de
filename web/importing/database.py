"""What the database of ai-toolkit's UI says: its jobs and settings. It is only ever read. Torch-free."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toolkit.errors import Problem, UserError
from web.configs import MAX_BYTES, MOST_STEPS
from web.formats import LAST_TIME
from web.importing.texts import LONGEST, one_line
from web.runs.foreign_database import has_changes, plain_tables, reading

NAME = "aitk_db.db"
MOST_JOBS = 5000
# Columns that every version has; what is not here has a default.
_NEEDED = ("id", "name", "gpu_ids", "job_config", "status")
_TAKEN = (*_NEEDED, "created_at", "updated_at", "stop", "step", "info", "total_steps")
# The values of others, such as HF_TOKEN, are never read further than whether there is one.
_SHOWN = ("TRAINING_FOLDER", "DATASETS_FOLDER", "DATA_ROOT", "MODELS_PATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignJob:
    """A row of the table Job. config: None if it is too large, then `size` says how large (bytes)."""

    id: str
    name: str
    gpu_ids: str
    config: str | None
    size: int
    status: str
    created_at: float | None
    updated_at: float | None
    step: int
    total_steps: int | None
    info: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignDatabase:
    """Everything that an import looks at. settings: only folders by value. in_use: a program has it open,
    or was killed while it had.
    """

    path: Path
    jobs: list[ForeignJob] = field(default_factory=list)
    settings: Mapping[str, str] = field(default_factory=dict)
    evaluations: int = 0
    in_use: bool = False


def read_database(path: Path) -> ForeignDatabase:
    """The jobs, oldest first, and the settings. Raises UserError for a database of something else."""
    with reading(path) as connection:
        tables = plain_tables(connection, ("Job", "Settings", "EvalJob"))
        missing = [name for name in _NEEDED if name not in tables.get("Job", ())]
        if missing:
            what = f"column {', '.join(missing)} of its table Job" if "Job" in tables else "table Job"
            raise _bad(path, f"is not a database that ai-toolkit's UI of a known version writes: no {what}")
        count = connection.execute("SELECT count(*) FROM Job").fetchone()[0]
        if count > MOST_JOBS:
            raise _bad(path, f"holds {count} jobs; at most {MOST_JOBS} are imported", "copy part of it")
        settings = _settings(connection) if {"key", "value"} <= set(tables.get("Settings", ())) else {}
        evaluations = "SELECT count(*) FROM EvalJob"
        num_evaluations = connection.execute(evaluations).fetchone()[0] if "EvalJob" in tables else 0
        jobs = _jobs(connection, tables["Job"])
    return ForeignDatabase(
        path=path, jobs=jobs, settings=settings, evaluations=num_evaluations, in_use=has_changes(path)
    )


def _bad(path: Path, message: str, remedy: str = "give the file aitk_db.db of an ai-toolkit") -> UserError:
    return UserError(Problem("import.database", message, file=str(path), remedy=remedy))


def _settings(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute("SELECT key, substr(value, 1, ?) FROM Settings LIMIT 100", (LONGEST,))
    found = {one_line(key): one_line(value) for key, value in rows}
    return {key: value if key in _SHOWN else "set" if value else "not set" for key, value in found.items()}


def _jobs(connection: sqlite3.Connection, columns: list[str]) -> list[ForeignJob]:
    taken = [name for name in _TAKEN if name in columns and name != "job_config"]
    listed = ", ".join(f'"{name}"' for name in taken)
    order = ", ".join(f'"{name}"' for name in ("created_at", "id") if name in columns)
    # A config of many megabytes never comes into memory.
    query = (
        f"SELECT length(CAST(job_config AS BLOB)), CASE WHEN length(CAST(job_config AS BLOB)) <= ?"  # noqa: S608
        f" THEN job_config END, {listed} FROM Job ORDER BY {order}"
    )
    rows = connection.execute(query, (MAX_BYTES,))
    return [_job(size, config, dict(zip(taken, rest, strict=True))) for size, config, *rest in rows]


def _job(size: Any, config: Any, row: Mapping[str, Any]) -> ForeignJob:
    """A job from its columns, of whatever type SQLite has let them be."""
    if isinstance(config, bytes):
        config = config.decode("utf-8", "replace")
    status = one_line(row["status"])
    return ForeignJob(
        id=one_line(row["id"]), name=one_line(row["name"]), gpu_ids=one_line(row["gpu_ids"]),
        config=None if config is None else str(config), size=_count(size) or 0,
        status="stopping" if status == "running" and row.get("stop") else status,
        created_at=_time(row.get("created_at")), updated_at=_time(row.get("updated_at")),
        step=_count(row.get("step")) or 0, total_steps=_count(row.get("total_steps")),
        info=one_line(row.get("info")),
    )  # fmt: skip


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 <= value < MOST_STEPS else None


def _time(value: Any) -> float | None:
    """Seconds since 1970: Prisma writes milliseconds, SQLite's own default a text in UTC."""
    if isinstance(value, int | float):
        seconds = value / 1000 if math.isfinite(value) else 0.0
    else:
        try:
            found = datetime.fromisoformat(str(value))
            seconds = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    return seconds if 0 < seconds <= LAST_TIME else None
