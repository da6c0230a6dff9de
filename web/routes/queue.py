"""The API for the lanes and the order of what waits."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from web.models import LaneOut, LaneStopIn, Move, MovedOut, QueueOut, errors
from web.queue.states import ACTIVE
from web.services import Served, Services

router = APIRouter(prefix="/api/queue", tags=["queue"], responses=errors())


def _queue(services: Services) -> Response:
    lanes, order, rev = services.lanes.state()
    return JSONResponse({"rev": rev, "lanes": [asdict(lane) for lane in lanes], "order": order})


@router.get("", response_model=QueueOut)
def read_queue(services: Served) -> Response:
    """Every lane, and what waits."""
    return _queue(services)


@router.post("/{device}/start", response_model=LaneOut, responses=errors(404))
def start_lane(device: str, services: Served) -> Response:
    """Let jobs of a device begin."""
    services.lanes.start(device)
    return _lane(services, device)


@router.post("/{device}/stop", response_model=LaneOut, responses=errors(404))
def stop_lane(device: str, services: Served, body: LaneStopIn | None = None) -> Response:
    """Let no further job of a device begin; with mode requeue what runs is stopped and waits again."""
    services.lanes.stop(device)
    lane = next(each for each in services.lanes.all() if each.device == device)
    if body is not None and body.mode == "requeue" and lane.job_id is not None:
        job = services.store.get(lane.job_id)
        if job.status in ACTIVE and job.status != "stopping":
            services.store.request_stop(job.id, "save", requeue=True)
    return _lane(services, device)


def _lane(services: Services, device: str) -> Response:
    lane = next(each for each in services.lanes.all() if each.device == device)
    return JSONResponse(asdict(lane))


@router.patch("/order", response_model=MovedOut, responses=errors(404, 409))
def move_jobs(
    moves: list[Move], services: Served,
    rev: Annotated[int | None, Query(ge=0, lt=2**63, description="Refuse if it changed since.")] = None,
) -> MovedOut:  # fmt: skip
    """Change the order of the jobs that wait."""
    return MovedOut(rev=services.lanes.move([(move.id, move.after) for move in moves], rev))
