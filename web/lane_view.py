"""What the page of jobs shows: each lane with its jobs in order, then all the others."""

from __future__ import annotations

from dataclasses import dataclass

from web.queue.jobs import Job
from web.queue.lanes import Lane, active_jobs
from web.services import Services

SHOWN = 20  # waiting jobs of one lane


@dataclass(frozen=True, slots=True)
class LaneView:
    """A lane: the job that holds it, the next ones that wait, and how many more do."""

    lane: Lane
    active: list[Job]
    waiting: list[Job]
    more: int


def lane_views(services: Services) -> tuple[list[LaneView], list[Job]]:
    """Every lane with its jobs; and the jobs of devices that are not here."""
    order, active = services.lanes.order(), active_jobs(services.database)
    lanes, stranded = services.lanes.all_and_stranded()
    found = []
    for lane in lanes:
        waiting = [job for job in order if lane.device in job.devices][:SHOWN]
        running = [job for job in active if lane.device in job.devices]
        found.append(LaneView(lane, running, waiting, lane.waiting - len(waiting)))
    return found, stranded
