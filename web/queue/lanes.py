"""Lanes: one for each device. Which are started, what holds them, what comes next, in which order."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from web.database import Database, Transaction
from web.problems import ApiError, conflict, invalid, not_found
from web.queue.jobs import Job, job_of
from web.queue.states import ACTIVE
from web.queue.transitions import transition
from web.schema import counters, jobs, lanes, leases

GAP = 1024  # between the positions of neighbours, so that one can move without renumbering the others


@dataclass(frozen=True, slots=True)
class Lane:
    """A device: whether its jobs are started, which job holds it, how many wait for it."""

    device: str
    started: bool
    job_id: str | None
    waiting: int


class Lanes:
    """The lanes of this machine's devices."""

    def __init__(self, database: Database, devices: Sequence[str]) -> None:
        self.database = database
        self.devices = tuple(devices)
        with database.write() as tx:
            known = set(tx.execute(select(lanes.c.device)).scalars())
            for device in self.devices:
                if device not in known:
                    tx.execute(insert(lanes).values(device=device, started=0))
            if tx.execute(select(counters.c.value).where(counters.c.name == "queue_rev")).first() is None:
                tx.execute(insert(counters).values(name="queue_rev", value=1))

    def check(self, devices: Iterable[str]) -> None:
        """Raise 422 unless every device has a lane here."""
        missing = [device for device in devices if device not in self.devices]
        if missing:
            known = ", ".join(self.devices)
            raise invalid(f"this machine has no {', '.join(missing)}; it has {known}", "/devices")

    def all(self) -> list[Lane]:
        """Every lane, in the order of the devices."""
        with self.database.read() as connection:
            return self._all(connection)

    def state(self, limit: int = 1000) -> tuple[Sequence[Lane], Sequence[str], int]:
        """Of one moment: every lane, the ids of the jobs that wait, the next first, the rev of that order."""
        return self.database.memo.get(("lanes", limit), lambda: self._state(limit))

    def _state(self, limit: int) -> tuple[list[Lane], list[str], int]:
        waiting = select(jobs.c.id).where(jobs.c.status == "queued").order_by(jobs.c.position, jobs.c.id)
        with self.database.read() as connection:
            order = list(connection.execute(waiting.limit(limit)).scalars())
            return self._all(connection), order, _rev(connection)

    def _all(self, connection: Connection, sets: Sequence[tuple[str, int]] | None = None) -> list[Lane]:
        started = _pairs(connection.execute(select(lanes.c.device, lanes.c.started)))
        held = _pairs(connection.execute(select(leases.c.device, leases.c.job_id)))
        sets = _waiting_sets(connection) if sets is None else sets
        return [
            Lane(
                device=device,
                started=bool(started.get(device)),
                job_id=held.get(device),
                waiting=sum(count for devices, count in sets if device in devices.split(",")),
            )
            for device in self.devices
        ]

    def start(self, device: str) -> None:
        """Let jobs of this device begin. Raises 404."""
        self._set(device, True)

    def stop(self, device: str) -> None:
        """Let no further job of this device begin; the one that runs goes on. Raises 404."""
        self._set(device, False)

    def start_all(self, tx: Transaction, devices: Iterable[str]) -> None:
        """Start the lanes of these devices, within a write."""
        tx.execute(update(lanes).where(lanes.c.device.in_(list(devices))).values(started=1))
        tx.touch("queue")

    def _set(self, device: str, started: bool) -> None:
        if device not in self.devices:
            raise not_found(f"lane {device}")
        with self.database.write() as tx:
            tx.execute(update(lanes).where(lanes.c.device == device).values(started=int(started)))
            tx.touch("queue")

    # -- the order ----------------------------------------------------------------------------------

    def rev(self) -> int:
        """A number that changes whenever the order does."""
        with self.database.read() as connection:
            return _rev(connection)

    def order(self, limit: int = 1000) -> list[Job]:
        """The jobs that wait, the next one first."""
        query = select(jobs).where(jobs.c.status == "queued").order_by(jobs.c.position, jobs.c.id)
        with self.database.read() as connection:
            return [job_of(row) for row in connection.execute(query.limit(limit))]

    def all_and_stranded(self, limit: int = 100) -> tuple[list[Lane], list[Job]]:
        """Every lane; and the jobs that wait or run on a device that this machine does not have."""
        with self.database.read() as connection:
            waiting = _waiting_sets(connection)
            query = select(jobs.c.devices).where(jobs.c.status.in_(list(ACTIVE)))
            sets = {devices for devices, _ in waiting} | set(connection.execute(query).scalars())
            lost = [devices for devices in sets if not set(devices.split(",")) <= set(self.devices)]
            concerned = select(jobs).where(jobs.c.status.in_(["queued", *ACTIVE]), jobs.c.devices.in_(lost))
            rows = concerned.order_by(jobs.c.position, jobs.c.id).limit(limit)
            stranded = [job_of(row) for row in connection.execute(rows)] if lost else []
            return self._all(connection, waiting), stranded

    def last_position(self, tx: Transaction) -> int:
        """The position behind every job that waits, within a write that puts one there."""
        last = tx.execute(select(func.max(jobs.c.position)).where(jobs.c.status == "queued")).scalar()
        return (last or 0) + GAP

    def move(self, moves: Sequence[tuple[str, str | None]], rev: int | None = None) -> int:
        """Put each job behind another (None: in front of all); the new rev of the order.

        Raises 409 if the order is no longer that of `rev`, or if a job does not wait.
        """
        with self.database.write() as tx:
            if rev is not None and rev != _rev(tx.connection):
                raise ApiError(409, "web.stale", "the queue has changed since it was read; read it again")
            for job_id, after in moves:
                self._move(tx, job_id, after)
            tx.touch("queue", "jobs")
            return _next_rev(tx)

    def _move(self, tx: Transaction, job_id: str, after: str | None) -> None:
        if job_id == after:
            raise invalid("a job cannot be moved behind itself", "/after")
        self._position_of(tx, job_id)
        position = self._free_position(tx, job_id, after)
        if position is None:
            query = select(jobs.c.id).where(jobs.c.status == "queued").order_by(jobs.c.position, jobs.c.id)
            ids = list(tx.execute(query).scalars())
            for index, each in enumerate(ids, start=1):
                tx.execute(update(jobs).where(jobs.c.id == each).values(position=index * GAP))
            position = self._free_position(tx, job_id, after)
            assert position is not None
        values = {"position": position, "rev": jobs.c.rev + 1, "updated_at": time.time()}
        tx.execute(update(jobs).where(jobs.c.id == job_id).values(values))
        tx.touch(f"job-{job_id}")

    def _position_of(self, tx: Transaction, job_id: str) -> int:
        row = tx.execute(select(jobs.c.status, jobs.c.position).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise not_found(f"job {job_id}")
        if row.status != "queued":
            raise conflict(f"job {job_id} is {row.status} and has no place in the queue")
        return int(row.position)

    def _free_position(self, tx: Transaction, job_id: str, after: str | None) -> int | None:
        """A position between `after` and the one behind it; None if there is no number between."""
        low = None if after is None else self._position_of(tx, after)
        query = select(func.min(jobs.c.position)).where(jobs.c.status == "queued", jobs.c.id != job_id)
        high = tx.execute(query if low is None else query.where(jobs.c.position > low)).scalar()
        if low is not None:
            same = query.where(jobs.c.position == low, jobs.c.id != after)
            if tx.execute(same).scalar() is not None:
                return None
        if high is None:
            return (low or 0) + GAP
        if low is None:
            return int(high) - GAP
        return low + (int(high) - low) // 2 if high - low > 1 else None

    # -- the claim ----------------------------------------------------------------------------------

    def claim(self) -> Job | None:
        """Take the next job that can begin and all its devices, in one transaction; None if there is none.

        A job that waits for a device which is in use keeps the others it needs from later jobs, or a job
        on two GPUs would wait for ever behind jobs on one. A job of a lane that is stopped keeps nothing.
        """
        if not self._something_waits():
            return None
        with self.database.write() as tx:
            for job_id, attempt, devices in self._claimable(tx):
                now = time.time()
                moved = transition(
                    tx, job_id, "starting", expected=("queued",), who="scheduler",
                    reason=f"its turn on {', '.join(devices)}", of_attempt=attempt,
                    **_fresh(attempt + 1, now),
                )  # fmt: skip
                if not moved:
                    continue
                for device in devices:
                    tx.execute(
                        insert(leases).values(device=device, job_id=job_id, attempt=attempt + 1, since=now)
                    )
                return job_of(tx.execute(select(jobs).where(jobs.c.id == job_id)).one())
        return None

    def _something_waits(self) -> bool:
        """Whether a claim could succeed, found out without taking the place of a writer."""
        with self.database.read() as connection:
            return any(True for _ in _heads(connection, self.devices))

    def _claimable(self, tx: Transaction) -> Iterable[tuple[str, int, list[str]]]:
        return _heads(tx.connection, self.devices)


def _heads(connection: Connection, known: Sequence[str]) -> Iterable[tuple[str, int, list[str]]]:
    """(id, attempt, devices) of the jobs whose turn it is: at most the first of each set of devices."""
    query = select(lanes.c.device).where(lanes.c.started == 1)
    started = set(connection.execute(query).scalars()) & set(known)
    taken = set(connection.execute(select(leases.c.device)).scalars())
    if not started - taken:
        return
    heads = []
    for text, _count in _waiting_sets(connection):
        if set(text.split(",")) <= started:
            first = (
                select(jobs.c.position, jobs.c.id, jobs.c.attempt, jobs.c.devices)
                .where(jobs.c.status == "queued", jobs.c.devices == text)
                .order_by(jobs.c.position, jobs.c.id)
                .limit(1)
            )
            heads += [tuple(row) for row in connection.execute(first)]
    for _position, job_id, attempt, text in sorted(heads):
        devices = text.split(",")
        if not taken & set(devices):
            yield job_id, attempt, devices
        taken.update(devices)


def _waiting_sets(connection: Connection) -> list[tuple[str, int]]:
    """Each set of devices that jobs wait for, and how many do."""
    query = select(jobs.c.devices, func.count()).where(jobs.c.status == "queued").group_by(jobs.c.devices)
    return [(devices, count) for devices, count in connection.execute(query)]


def _pairs(rows: Iterable[Any]) -> dict[Any, Any]:
    return {row[0]: row[1] for row in rows}


def _fresh(attempt: int, now: float) -> dict[str, object]:
    """The columns of a job at the beginning of an attempt."""
    return {
        "attempt": attempt, "started_at": now, "ended_at": None, "exit_code": None, "exit_signal": None,
        "phase": "starting", "info": "", "speed": None, "eta_s": None, "loss": None, "lr": None,
        "progress_at": now, "stalled": 0, "stop_mode": None, "stop_at": None, "requeue": 0,
    }  # fmt: skip


def _rev(connection: Connection) -> int:
    return int(
        connection.execute(select(counters.c.value).where(counters.c.name == "queue_rev")).scalar_one()
    )


def _next_rev(tx: Transaction) -> int:
    query = update(counters).where(counters.c.name == "queue_rev").values(value=counters.c.value + 1)
    return int(tx.execute(query.returning(counters.c.value)).scalar_one())


def active_jobs(database: Database) -> list[Job]:
    """Every job that holds devices."""
    query = select(jobs).where(jobs.c.status.in_(list(ACTIVE))).order_by(jobs.c.started_at, jobs.c.id)
    with database.read() as connection:
        return [job_of(row) for row in connection.execute(query)]
