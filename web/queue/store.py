"""Jobs: made, read, edited, queued, stopped and deleted. What a route needs is one call here."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from web.database import Database, Transaction
from web.problems import ApiError, conflict, not_found
from web.queue.jobs import Job, job_of
from web.queue.lanes import Lanes
from web.queue.states import ACTIVE, EDITABLE, ENDED, STOP_MODES, State, StopMode
from web.queue.transitions import note, touch_job, transition
from web.schema import configs, events, idempotency, jobs

DAY = 86_400.0


class JobStore:
    """The jobs of a database. Every method is one transaction; raises ApiError for what cannot be."""

    def __init__(self, database: Database, lanes: Lanes) -> None:
        self.database = database
        self.lanes = lanes

    # -- reading ------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """The job. Raises 404."""
        return self.database.memo.get(("job", job_id), lambda: self._read(job_id))

    def _read(self, job_id: str) -> Job:
        with self.database.read() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise not_found(f"job {job_id}")
        return job_of(row)

    def config(self, job_id: str) -> str:
        """The job's config as it is edited. Raises 404."""
        return self._text(job_id)[0]

    def snapshot(self, job_id: str) -> tuple[str, str] | None:
        """(text, sha256) of the config as it was last enqueued, or None. Raises 404."""
        _, snapshot, sha256 = self._text(job_id)
        return None if snapshot is None or sha256 is None else (snapshot, sha256)

    def ran(self, job_id: str) -> str:
        """The job's config as it was last enqueued, else as it is edited. Raises 404."""
        text, snapshot, _ = self._text(job_id)
        return text if snapshot is None else snapshot

    def _text(self, job_id: str) -> tuple[str, str | None, str | None]:
        query = select(configs.c.text, configs.c.snapshot, configs.c.sha256).where(configs.c.job_id == job_id)
        with self.database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise not_found(f"job {job_id}")
        return row.text, row.snapshot, row.sha256

    def events(self, job_id: str, after: int = 0, limit: int = 500) -> Sequence[Mapping[str, Any]]:
        """What happened to a job, oldest first; of a deleted one too."""
        key = ("events", job_id, after, limit)
        return self.database.memo.get(key, lambda: self._read_events(job_id, after, limit))

    def _read_events(self, job_id: str, after: int, limit: int) -> list[Mapping[str, Any]]:
        query = select(events).where(events.c.job_id == job_id, events.c.id > after)
        with self.database.read() as connection:
            return [
                dict(row) for row in connection.execute(query.order_by(events.c.id).limit(limit)).mappings()
            ]

    # -- writing ------------------------------------------------------------------------------------

    def create(
        self, name: str, kind: str, text: str, devices: Sequence[str], *,
        launcher: Mapping[str, Any] | None = None, key: str | None = None, who: str = "user",
    ) -> Job:  # fmt: skip
        """A new draft. With a `key` seen before for the same request, the job that was made then.

        Raises 409 if the name is taken, 422 for a device that is not here or a key used for something else.
        """
        self.lanes.check(devices)
        body = json.dumps([name, kind, text, list(devices), dict(launcher or {})], sort_keys=True)
        digest = hashlib.sha256(body.encode()).hexdigest()
        now, job_id = time.time(), secrets.token_hex(6)
        with self.database.write() as tx:
            earlier = self._earlier(tx, key, digest, now)
            if earlier is not None:
                return earlier
            values = {
                "id": job_id, "name": name, "kind": kind, "status": "draft", "devices": ",".join(devices),
                "launcher": json.dumps(dict(launcher or {})), "position": 0, "attempt": 0, "rev": 1,
                "created_at": now, "updated_at": now, "reason": "", "phase": "", "info": "", "step": 0,
                "stalled": 0, "requeue": 0, "run_folders": "[]",
            }  # fmt: skip
            _insert_named(tx, values)
            tx.execute(insert(configs).values(job_id=job_id, text=text))
            note(tx, job_id, name, who=who, reason="created", attempt=0, to_status="draft")
            if key is not None:
                row = {"key": key, "request_hash": digest, "job_id": job_id, "created_at": now}
                tx.execute(insert(idempotency).values(row))
            touch_job(tx, job_id)
        return self.get(job_id)

    def _earlier(self, tx: Transaction, key: str | None, digest: str, now: float) -> Job | None:
        if key is None:
            return None
        tx.execute(delete(idempotency).where(idempotency.c.created_at < now - DAY))
        row = tx.execute(select(idempotency).where(idempotency.c.key == key)).one_or_none()
        if row is None:
            return None
        if row.request_hash != digest:
            raise ApiError(422, "web.key_reused", "this Idempotency-Key was used for another request")
        found = tx.execute(select(jobs).where(jobs.c.id == row.job_id)).one_or_none()
        if found is None:
            raise ApiError(409, "web.conflict", "the job made with this Idempotency-Key has been deleted")
        return job_of(found)

    def edit(
        self, job_id: str, *, name: str, kind: str, text: str, devices: Sequence[str],
        launcher: Mapping[str, Any] | None = None, if_match: str | None = None,
    ) -> Job:  # fmt: skip
        """Change a job that does not wait or run. Raises 404, 409, 412 (it changed since it was read)."""
        self.lanes.check(devices)
        with self.database.write() as tx:
            job = _job(tx, job_id)
            if if_match is not None and if_match != job.etag:
                raise ApiError(412, "web.stale", "the job has changed since it was read; read it again")
            if job.status not in EDITABLE:
                raise conflict(f"the job is {job.status}; take it out of the queue or stop it first")
            values: dict[str, Any] = {
                "name": name, "kind": kind, "devices": ",".join(devices), "rev": job.rev + 1,
                "updated_at": time.time(),
            }  # fmt: skip
            if launcher is not None:
                values["launcher"] = json.dumps(dict(launcher))
            _update_named(tx, job_id, name, values)
            tx.execute(update(configs).where(configs.c.job_id == job_id).values(text=text))
            touch_job(tx, job_id)
        return self.get(job_id)

    def delete(self, job_id: str, who: str = "user") -> Job:
        """Remove a job that does not wait or run; its events stay. Raises 404, 409. The job as it was."""
        with self.database.write() as tx:
            job = _job(tx, job_id)
            if job.status not in EDITABLE:
                raise conflict(f"the job is {job.status}; take it out of the queue or stop it first")
            note(tx, job_id, job.name, who=who, reason="deleted", attempt=job.attempt, from_status=job.status)
            tx.execute(delete(jobs).where(jobs.c.id == job_id))
            tx.touch("jobs", f"deleted-{job_id}")
        return job

    def namer_of(self, paths: Sequence[str]) -> Job | None:
        """A job that waits or runs and whose config, as it was enqueued, names one of these; or None."""
        named = or_(*(func.instr(configs.c.snapshot, path) > 0 for path in paths))
        concerned = jobs.c.status.in_(["queued", *ACTIVE])
        query = select(jobs.c.id, configs.c.snapshot).join(configs, configs.c.job_id == jobs.c.id)
        # Not another folder whose name only begins like this.
        whole = re.compile("|".join(rf"{re.escape(path)}(?![\w.-])" for path in paths))
        with self.database.read() as connection:
            found = connection.execute(query.where(concerned, named))
            job_id = next((row.id for row in found if whole.search(row.snapshot)), None)
        return None if job_id is None else self.get(job_id)

    def user_of(self, run_folder: str, except_id: str) -> str | None:
        """The name of another job that writes the same run folder, or None."""
        query = select(jobs.c.name, jobs.c.run_folders).where(jobs.c.id != except_id)
        with self.database.read() as connection:
            for name, folders in connection.execute(query):
                if run_folder in json.loads(folders):
                    return str(name)
        return None

    def enqueue(
        self, job_id: str, snapshot: str, run_folders: Sequence[str], *,
        start_queue: bool = True, who: str = "user",
    ) -> Job:  # fmt: skip
        """Put a job at the end of the queue with the config as it is now. Raises 404, 409."""
        sha256 = hashlib.sha256(snapshot.encode()).hexdigest()
        with self.database.write() as tx:
            job = _job(tx, job_id)
            self.lanes.check(job.devices)
            moved = transition(
                tx, job_id, "queued", expected=EDITABLE, who=who, reason="enqueued",
                position=self.lanes.last_position(tx), queued_at=time.time(), stop_mode=None, stop_at=None,
                requeue=0, run_folders=json.dumps(list(run_folders)),
            )  # fmt: skip
            if not moved:
                raise conflict(f"the job is already {job.status}")
            values = {"snapshot": snapshot, "sha256": sha256}
            tx.execute(update(configs).where(configs.c.job_id == job_id).values(values))
            if start_queue:
                self.lanes.start_all(tx, job.devices)
        return self.get(job_id)

    def dequeue(self, job_id: str, who: str = "user") -> Job:
        """Take a job out of the queue. Raises 404, 409."""
        with self.database.write() as tx:
            job = _job(tx, job_id)
            if not transition(
                tx, job_id, "draft", expected=("queued",), who=who, reason="taken out of the queue"
            ):
                raise conflict(f"the job is {job.status} and does not wait")
        return self.get(job_id)

    def request_stop(self, job_id: str, mode: StopMode, *, requeue: bool = False, who: str = "user") -> Job:
        """Note that a job shall stop; the supervisor sees to it. A stop can be made harder. 404, 409."""
        with self.database.write() as tx:
            job = _job(tx, job_id)
            if job.status not in ACTIVE:
                raise conflict(f"the job is {job.status} and does not run")
            if job.stop_mode is not None and STOP_MODES.index(mode) <= STOP_MODES.index(job.stop_mode):
                raise conflict(f"the job is being stopped already ({job.stop_mode})")
            reason = f"stop asked for: {mode}" + (", then wait again" if requeue else "")
            values = {"stop_mode": mode, "stop_at": time.time(), "requeue": int(requeue)}
            if job.status != "stopping":
                transition(
                    tx, job_id, "stopping", expected=(job.status,), of_attempt=job.attempt, who=who,
                    reason=reason, **values,
                )  # fmt: skip
            else:
                query = update(jobs).where(jobs.c.id == job_id)
                tx.execute(query.values(**values, rev=job.rev + 1, updated_at=time.time(), reason=reason))
                note(tx, job_id, job.name, who=who, reason=reason, attempt=job.attempt)
                touch_job(tx, job_id)
        return self.get(job_id)

    def note(self, job: Job, reason: str, who: str = "user") -> None:
        """Write down something that was done to a job."""
        with self.database.write() as tx:
            note(tx, job.id, job.name, who=who, reason=reason, attempt=job.attempt)

    def finish(self, job: Job, to: State, reason: str, who: str = "user", **columns: Any) -> Job:
        """End an active job in one of the final states. Raises 404, 409."""
        assert to in ENDED
        with self.database.write() as tx:
            if not transition(
                tx, job.id, to, expected=ACTIVE, of_attempt=job.attempt, who=who, reason=reason,
                ended_at=time.time(), **columns,
            ):  # fmt: skip
                raise conflict(f"the job is {_job(tx, job.id).status} and does not run")
        return self.get(job.id)


def _job(tx: Transaction, job_id: str) -> Job:
    row = tx.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise not_found(f"job {job_id}")
    return job_of(row)


def _insert_named(tx: Transaction, values: Mapping[str, Any]) -> None:
    try:
        tx.execute(insert(jobs).values(values))
    except IntegrityError:
        raise _name_taken(values["name"]) from None


def _update_named(tx: Transaction, job_id: str, name: str, values: Mapping[str, Any]) -> None:
    try:
        tx.execute(update(jobs).where(jobs.c.id == job_id).values(values))
    except IntegrityError:
        raise _name_taken(name) from None


def _name_taken(name: str) -> ApiError:
    return ApiError(409, "web.name_taken", f"Job name already exists: {name}")
