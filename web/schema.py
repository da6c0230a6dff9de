"""The tables as queries name them; `migrations/` makes them. A test compares the two."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, MetaData, Table, Text

METADATA = MetaData()

jobs = Table(
    "jobs",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("devices", Text, nullable=False),  # "gpu:0,gpu:1", sorted
    Column("launcher", Text, nullable=False),  # JSON
    Column("position", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("rev", Integer, nullable=False),  # grows with every change of the row
    Column("created_at", Float, nullable=False),  # times are seconds since 1970
    Column("updated_at", Float, nullable=False),
    Column("queued_at", Float),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("reason", Text, nullable=False),
    Column("exit_code", Integer),
    Column("exit_signal", Integer),
    Column("phase", Text, nullable=False),
    Column("info", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("total_steps", Integer),
    Column("speed", Float),
    Column("eta_s", Float),
    Column("loss", Float),
    Column("lr", Float),
    Column("progress_at", Float),  # when the run was last seen to move
    Column("stalled", Integer, nullable=False),
    Column("stop_mode", Text),
    Column("stop_at", Float),
    Column("requeue", Integer, nullable=False),  # wait again once stopped
    Column("run_folders", Text, nullable=False),  # JSON
    Index("jobs_by_queue", "status", "devices", "position", "id"),
    Index("jobs_by_age", "created_at", "id"),
    Index("jobs_by_position", "status", "position", "id"),
    Index("jobs_by_update", "updated_at", "id"),
    Index("jobs_by_kind", "kind", "created_at", "id"),
)
configs = Table(
    "configs",
    METADATA,
    Column("job_id", Text, primary_key=True),
    Column("text", Text, nullable=False),  # as it is edited
    Column("snapshot", Text),  # as it was enqueued
    Column("sha256", Text),  # of the snapshot
)
events = Table(
    "events",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("job_id", Text, nullable=False),
    Column("job_name", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("who", Text, nullable=False),  # user, scheduler, supervisor
    Column("from_status", Text),
    Column("to_status", Text),
    Column("attempt", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Index("events_by_job", "job_id", "id"),
)
lanes = Table(
    "lanes",
    METADATA,
    Column("device", Text, primary_key=True),
    Column("started", Integer, nullable=False),
)
leases = Table(
    "leases",
    METADATA,
    Column("device", Text, primary_key=True),
    Column("job_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("since", Float, nullable=False),
)
counters = Table(
    "counters", METADATA, Column("name", Text, primary_key=True), Column("value", Integer, nullable=False)
)
settings = Table(
    "settings", METADATA, Column("key", Text, primary_key=True), Column("value", Text, nullable=False)
)
sessions = Table(
    "sessions",
    METADATA,
    Column("id_hash", Text, primary_key=True),
    Column("token_hash", Text, nullable=False),  # a changed token ends every session
    Column("created_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
)
idempotency = Table(
    "idempotency",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("request_hash", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
imports = Table(
    "imports",
    METADATA,
    Column("key", Text, primary_key=True),  # job:<its id there> or folder:<its path>
    Column("job_id", Text, nullable=False),
    Column("source", Text, nullable=False),  # the folder that was imported
    Column("at", Float, nullable=False),
    Index("imports_by_job", "job_id"),
)
