CREATE TABLE jobs (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    devices TEXT NOT NULL,
    launcher TEXT NOT NULL DEFAULT '{}',
    position INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0,
    rev INTEGER NOT NULL DEFAULT 1,
    created_at FLOAT NOT NULL,
    updated_at FLOAT NOT NULL,
    queued_at FLOAT,
    started_at FLOAT,
    ended_at FLOAT,
    reason TEXT NOT NULL DEFAULT '',
    exit_code INTEGER,
    exit_signal INTEGER,
    phase TEXT NOT NULL DEFAULT '',
    info TEXT NOT NULL DEFAULT '',
    step INTEGER NOT NULL DEFAULT 0,
    total_steps INTEGER,
    speed FLOAT,
    eta_s FLOAT,
    loss FLOAT,
    stop_mode TEXT,
    stop_at FLOAT,
    requeue INTEGER NOT NULL DEFAULT 0,
    run_folders TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX jobs_by_queue ON jobs (status, devices, position, id);
CREATE INDEX jobs_by_age ON jobs (created_at, id);
CREATE INDEX jobs_by_position ON jobs (status, position, id);

CREATE TABLE configs (
    job_id TEXT PRIMARY KEY NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    text TEXT NOT NULL,
    snapshot TEXT,
    sha256 TEXT
);

CREATE TABLE events (
    id INTEGER PRIMARY KEY NOT NULL,
    job_id TEXT NOT NULL,
    job_name TEXT NOT NULL,
    at FLOAT NOT NULL,
    who TEXT NOT NULL,
    from_status TEXT,
    to_status TEXT,
    attempt INTEGER NOT NULL,
    reason TEXT NOT NULL
);
CREATE INDEX events_by_job ON events (job_id, id);

CREATE TABLE lanes (
    device TEXT PRIMARY KEY NOT NULL,
    started INTEGER NOT NULL
);

CREATE TABLE leases (
    device TEXT PRIMARY KEY NOT NULL,
    job_id TEXT NOT NULL REFERENCES jobs (id),
    attempt INTEGER NOT NULL,
    since FLOAT NOT NULL
);

CREATE TABLE counters (
    name TEXT PRIMARY KEY NOT NULL,
    value INTEGER NOT NULL
);
