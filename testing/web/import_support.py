"""What tests of imports share: how to look at what became of its jobs."""

from __future__ import annotations

from web.importing.plan import Entry, Plan
from web.queue.jobs import Job
from web.queue.listing import JobQuery, list_jobs
from web.services import Services


def jobs_of(services: Services) -> dict[str, Job]:
    """Every job by its name."""
    return {job.name: job for job in list_jobs(services.database, JobQuery(limit=500))[0]}


def entry_of(plan: Plan, origin: str) -> Entry:
    """What became of a job that was called `origin` there."""
    return next(entry for entry in plan.entries if entry.origin == origin)
