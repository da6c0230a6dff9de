"""Pages of jobs: filtered, sorted, with a cursor for the next page."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Select, and_, func, literal_column, or_, select

from web.database import Database
from web.problems import invalid
from web.queue.jobs import Job, Sort, job_of
from web.queue.states import State
from web.schema import jobs

_ORDER: dict[Sort, tuple[Column[Any], bool]] = {  # column, descending
    "newest": (jobs.c.created_at, True),
    "oldest": (jobs.c.created_at, False),
    "name": (jobs.c.name, False),
    "updated": (jobs.c.updated_at, True),
    "position": (jobs.c.position, False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Which jobs: of these states, of a kind, of a lane, with a text in their names."""

    status: tuple[State, ...] = ()
    kind: str | None = None
    lane: str | None = None
    text: str | None = None
    sort: Sort = "newest"
    limit: int = 50
    cursor: str | None = None


def list_jobs(database: Database, query: JobQuery) -> tuple[list[Job], str | None]:
    """A page of jobs, and the cursor of the next one (None: this is the last). Raises 422."""
    found, cursor = database.memo.get(query, lambda: _read(database, query))
    return list(found), cursor


def _read(database: Database, query: JobQuery) -> tuple[list[Job], str | None]:
    column, descending = _ORDER[query.sort]
    order = [c.desc() if descending else c.asc() for c in (column, jobs.c.id)]
    statement = _filtered(select(jobs), query).order_by(*order).limit(query.limit + 1)
    if query.cursor is not None:
        statement = statement.where(_behind(query.cursor, column, descending))
    with database.read() as connection:
        rows = connection.execute(statement).all()
    found = [job_of(row) for row in rows[: query.limit]]
    more = len(rows) > query.limit
    return found, _cursor(getattr(rows[query.limit - 1], column.name), found[-1].id) if more else None


def count_jobs(database: Database) -> dict[str, int]:
    """How many jobs there are in each state that has any."""
    with database.read() as connection:
        found = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
        return {row[0]: row[1] for row in found}


def _filtered(statement: Select[Any], query: JobQuery) -> Select[Any]:
    if query.status:
        # The plus keeps SQLite from an index of states: it would sort all jobs in them for one page.
        status = literal_column("+jobs.status") if query.sort != "position" else jobs.c.status
        statement = statement.where(status.in_(query.status))
    if query.kind is not None:
        statement = statement.where(jobs.c.kind == query.kind)
    if query.lane is not None:
        listed = "," + jobs.c.devices + ","
        statement = statement.where(listed.contains(f",{query.lane},", autoescape=True))
    if query.text:
        statement = statement.where(jobs.c.name.icontains(query.text, autoescape=True))
    return statement


def _cursor(value: Any, job_id: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([value, job_id]).encode()).decode().rstrip("=")


def _behind(cursor: str, column: ColumnElement[Any], descending: bool) -> ColumnElement[bool]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        value, job_id = json.loads(base64.urlsafe_b64decode(padded))
        if not isinstance(value, str | int | float) or not isinstance(job_id, str):
            raise ValueError(cursor)
    except (ValueError, TypeError, RecursionError):
        raise invalid("this cursor was not made by this server", "/query/cursor") from None
    if descending:
        return or_(column < value, and_(column == value, jobs.c.id < job_id))
    return or_(column > value, and_(column == value, jobs.c.id > job_id))
