"""An import as rows of our database: what is known already, and the jobs that a plan makes."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from web.database import Database, Transaction
from web.importing.plan import Entry, Here, Plan, folder_key
from web.problems import conflict
from web.queue.states import ENDED
from web.queue.transitions import note, touch_job
from web.schema import configs, imports, jobs


def what_is_here(database: Database, devices: Sequence[str]) -> Here:
    """The names, imports and run folders that there are already."""
    with database.read() as connection:
        rows = connection.execute(select(jobs.c.name, jobs.c.run_folders, jobs.c.attempt)).all()
        joined = select(imports.c.key, jobs.c.name).join(jobs, jobs.c.id == imports.c.job_id)
        known = {row.key: row.name for row in connection.execute(joined)}
    users = {folder: row.name for row in rows for folder in json.loads(row.run_folders)}
    without_run = {row.name for row in rows if row.run_folders == "[]" and not row.attempt}
    return Here(
        names={row.name for row in rows}, known=known, users=users, devices=devices,
        without_run=without_run & set(known.values()),
    )  # fmt: skip


def apply_plan(database: Database, plan: Plan) -> None:
    """Make the jobs of a plan, all or none. Raises 409 if others were made since the plan."""
    try:
        with database.write() as tx:
            for entry in plan.entries:
                if entry.adds_run_to:
                    _add_run(tx, entry, plan.source)
                elif not entry.skipped:
                    _insert(tx, entry, plan.source)
    except IntegrityError:
        raise conflict("a job of the same name, or the same import, was made just now; try again") from None


def is_imported_folder(database: Database, job_id: str, folder: Path) -> bool:
    """Whether a job was imported with this very folder."""
    query = select(imports.c.key).where(imports.c.key == folder_key(folder), imports.c.job_id == job_id)
    with database.read() as connection:
        return connection.execute(query).first() is not None


def _add_run(tx: Transaction, entry: Entry, source: Path) -> None:
    """Give a job that was imported without its run folder that folder, unless it has run here since."""
    assert entry.folder is not None
    key, now = folder_key(entry.folder), time.time()
    query = select(jobs.c.id, jobs.c.name).where(
        jobs.c.name == entry.adds_run_to, jobs.c.run_folders == "[]", jobs.c.attempt == 0
    )
    job = tx.execute(query).one_or_none()
    if job is None:
        return
    values = {"run_folders": json.dumps([str(entry.folder)]), "rev": jobs.c.rev + 1}
    tx.execute(update(jobs).where(jobs.c.id == job.id).values(values))
    tx.execute(insert(imports).values(key=key, job_id=job.id, source=str(source), at=now))
    note(tx, job.id, job.name, who="import", reason=f"its run is shown from {entry.folder}", attempt=0)
    touch_job(tx, job.id)


def _insert(tx: Transaction, entry: Entry, source: Path) -> None:
    """A job in its final state at once: nothing of it ever ran here."""
    now, job_id = time.time(), secrets.token_hex(6)
    changed = entry.updated_at or entry.created_at or now
    values: dict[str, Any] = {
        "id": job_id, "name": entry.name, "kind": entry.kind, "status": entry.state,
        "devices": ",".join(entry.devices), "launcher": "{}", "position": 0, "attempt": 0, "rev": 1,
        "created_at": entry.created_at or now, "updated_at": changed,
        "ended_at": changed if entry.state in ENDED else None, "reason": entry.reason, "phase": "",
        "info": "", "step": entry.step, "total_steps": entry.total_steps, "stalled": 0, "requeue": 0,
        "run_folders": json.dumps([str(entry.folder)] if entry.folder else []),
    }  # fmt: skip
    tx.execute(insert(jobs).values(values))
    tx.execute(insert(configs).values(job_id=job_id, text=entry.text))
    for key in entry.keys:
        tx.execute(insert(imports).values(key=key, job_id=job_id, source=str(source), at=now))
    told = "; ".join([f"imported from {source}: {entry.reason}", *entry.notes])
    note(tx, job_id, entry.name, who="import", reason=told[:4000], attempt=0, to_status=entry.state)
    touch_job(tx, job_id)
    entry.id = job_id
