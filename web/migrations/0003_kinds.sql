CREATE INDEX jobs_by_kind ON jobs (kind, created_at, id);
