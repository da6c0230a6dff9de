"""The one way in which a job changes its state: compare, set, and write down who did it and why."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import delete, insert, select, update

from web.database import Transaction
from web.queue.states import ACTIVE, FOLLOWERS, State
from web.schema import counters, events, jobs, leases


def touch_job(tx: Transaction, job_id: str) -> None:
    """Tell who listens that a job changed."""
    tx.touch("jobs", f"job-{job_id}")


def transition(
    tx: Transaction, job_id: str, to: State, *,
    expected: Iterable[State], who: str, reason: str, of_attempt: int | None = None,
    **columns: Any,
) -> bool:  # fmt: skip
    """Move a job to `to` if it is in an `expected` state, and in `of_attempt` if given; whether it did.

    A job that leaves the active states gives its devices back in the same transaction.
    """
    query = select(jobs.c.status, jobs.c.attempt, jobs.c.name).where(jobs.c.id == job_id)
    row = tx.execute(query).one_or_none()
    if (
        row is None
        or row.status not in set(expected)
        or (of_attempt is not None and row.attempt != of_attempt)
    ):
        return False
    if to not in FOLLOWERS[row.status]:
        raise ValueError(f"a job that is {row.status} cannot become {to}")
    now = time.time()
    changed = tx.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.status == row.status, jobs.c.attempt == row.attempt)
        .values(status=to, reason=reason, updated_at=now, rev=jobs.c.rev + 1, **columns)
    )
    if changed.rowcount != 1:
        return False
    if to not in ACTIVE:
        tx.execute(delete(leases).where(leases.c.job_id == job_id))
    if "queued" in (to, row.status):
        tx.execute(update(counters).where(counters.c.name == "queue_rev").values(value=counters.c.value + 1))
    note(tx, job_id, row.name, who=who, reason=reason, attempt=columns.get("attempt", row.attempt),
         from_status=row.status, to_status=to)  # fmt: skip
    tx.touch("queue")
    touch_job(tx, job_id)
    return True


def note(
    tx: Transaction, job_id: str, job_name: str, *,
    who: str, reason: str, attempt: int, from_status: str | None = None, to_status: str | None = None,
) -> None:  # fmt: skip
    """Write an event; without states it is a note, such as a command that was given."""
    values = {
        "job_id": job_id, "job_name": job_name, "at": time.time(), "who": who, "reason": reason,
        "attempt": attempt, "from_status": from_status, "to_status": to_status,
    }  # fmt: skip
    tx.execute(insert(events).values(values))


def change(tx: Transaction, job_id: str, attempt: int, expected: Iterable[State], **columns: Any) -> bool:
    """Set columns of a job that is in one of these states and this attempt, without changing its state."""
    now = time.time()
    changed = tx.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.status.in_(list(expected)))
        .values(updated_at=now, rev=jobs.c.rev + 1, **columns)
    )
    if changed.rowcount:
        touch_job(tx, job_id)
    return changed.rowcount == 1
