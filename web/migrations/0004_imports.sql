CREATE TABLE imports (
    key TEXT PRIMARY KEY NOT NULL,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    source TEXT NOT NULL,
    at FLOAT NOT NULL
);
CREATE INDEX imports_by_job ON imports (job_id);
