"""What forms on pages do to jobs and lanes: each a POST that ends on a page, with or without scripts."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Form, Request, Response

from web import actions
from web.queue.jobs import Job
from web.queue.states import ACTIVE, StopMode
from web.routes.page_route import back_to, page_router
from web.runs.folders import run_of
from web.services import Served, Services

router = page_router()
Next = Annotated[str, Form(max_length=2000)]


@router.post("/jobs/{job_id}/start")
def start_job(
    job_id: str, request: Request, services: Served, first: Annotated[bool, Form()] = False,
    next: Next = "",
) -> Response:  # fmt: skip
    """Put a job into the queue and start its lanes."""
    actions.enqueue_job(services, job_id, first=first)
    return back_to(request, next or f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/leave")
def leave_queue(job_id: str, request: Request, services: Served, next: Next = "") -> Response:
    """Take a job out of the queue."""
    services.store.dequeue(job_id)
    return back_to(request, next or f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/stop")
def stop_job(
    job_id: str, request: Request, services: Served, mode: Annotated[StopMode, Form()] = "save",
    next: Next = "",
) -> Response:  # fmt: skip
    """Stop a job that runs."""
    actions.stop_job(services, job_id, mode)
    return back_to(request, next or f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/command")
def command_job(
    job_id: str, request: Request, services: Served, name: Annotated[Literal["save", "sample"], Form()],
    next: Next = "",
) -> Response:  # fmt: skip
    """Ask a running job to save or to sample."""
    actions.command_job(services, job_id, name)
    return back_to(request, next or f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/mark-stopped")
def mark_stopped(job_id: str, request: Request, services: Served) -> Response:
    """Note the end of a job whose processes are gone for certain."""
    actions.mark_stopped(services, job_id)
    return back_to(request, f"/jobs/{job_id}")


@router.get("/jobs/{job_id}/delete")
def ask_delete(job_id: str, request: Request, services: Served) -> Response:
    """Ask whether a job shall be deleted."""
    job = services.store.get(job_id)
    run = run_of(job)
    elsewhere = run is not None and not run.path.resolve().is_relative_to(services.preferences.output_root)
    context = {"job": job, "run": run, "elsewhere": elsewhere}
    return services.pages.page(request, "job_delete.html", context)


@router.post("/jobs/{job_id}/delete")
def delete_job(
    job_id: str, request: Request, services: Served, files: Annotated[bool, Form()] = False
) -> Response:
    """Delete a job; the files of its run stay unless they are to go too."""
    actions.delete_job(services, job_id, files=files)
    return back_to(request, "/jobs")


@router.post("/jobs/{job_id}/move")
def move_job(
    job_id: str, request: Request, services: Served,
    to: Annotated[Literal["first", "up", "down", "last"], Form()], next: Next = "/jobs",
) -> Response:  # fmt: skip
    """Move a job that waits past its neighbour on the same devices, or to an end of the queue."""
    job = services.store.get(job_id)
    order = [each for each in services.lanes.order(100_000) if each.id != job_id]
    if to in ("first", "last"):
        after = None if to == "first" or not order else order[-1].id
    else:
        after = _past_neighbour(job, order, -1 if to == "up" else 1)
    services.lanes.move([(job_id, after)])
    return back_to(request, next)


@router.post("/lanes/{device}/start")
def start_lane(device: str, request: Request, services: Served, next: Next = "/jobs") -> Response:
    """Let jobs of a device begin."""
    services.lanes.start(device)
    services.supervisor.wake()
    return back_to(request, next)


@router.post("/lanes/{device}/stop")
def stop_lane(
    device: str, request: Request, services: Served, next: Next = "/jobs",
    requeue: Annotated[bool, Form()] = False,
) -> Response:  # fmt: skip
    """Let no further job of a device begin; with `requeue` the one that runs is stopped and waits again."""
    services.lanes.stop(device)
    held = next_held(services, device)
    if requeue and held is not None and held.status in ACTIVE and held.status != "stopping":
        actions.stop_job(services, held.id, "save", requeue=True)
    return back_to(request, next)


def next_held(services: Services, device: str) -> Job | None:
    """The job that holds a device."""
    for lane in services.lanes.all():
        if lane.device == device and lane.job_id is not None:
            return services.store.get(lane.job_id)
    return None


def _past_neighbour(job: Job, order: list[Job], by: int) -> str | None:
    """Behind which job (None: in front of all) a job lands that passes its neighbour. order: the others'."""
    before = [each for each in order if (each.position, each.id) < (job.position, job.id)]
    behind = order[len(before) :]
    near = [each for each in (before[::-1] if by < 0 else behind) if set(each.devices) & set(job.devices)]
    if not near:
        return before[-1].id if before else None
    index = order.index(near[0])
    if by > 0:
        return near[0].id
    return order[index - 1].id if index else None
