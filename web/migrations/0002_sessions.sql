ALTER TABLE jobs ADD COLUMN lr FLOAT;
ALTER TABLE jobs ADD COLUMN progress_at FLOAT;
ALTER TABLE jobs ADD COLUMN stalled INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobs_by_update ON jobs (updated_at, id);

CREATE TABLE settings (
    key TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);

CREATE TABLE sessions (
    id_hash TEXT PRIMARY KEY NOT NULL,
    token_hash TEXT NOT NULL,
    created_at FLOAT NOT NULL,
    seen_at FLOAT NOT NULL
);

CREATE TABLE idempotency (
    key TEXT PRIMARY KEY NOT NULL,
    request_hash TEXT NOT NULL,
    job_id TEXT NOT NULL,
    created_at FLOAT NOT NULL
);
