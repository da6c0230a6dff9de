"""The API for what jobs do while they run and afterwards: stop, commands, log, deletion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from web import actions
from web.files import file_response
from web.launchers.attempt import AttemptFolder
from web.models import JobOut, LogOut, StopIn, errors
from web.problems import not_found
from web.queue.jobs import Job
from web.queue.states import ACTIVE
from web.routes.jobs import job_response
from web.routes.results import shown_run
from web.runs.logs import MAX_BYTES, read_slice
from web.services import Served, Services

router = APIRouter(prefix="/api/jobs", tags=["jobs"], responses=errors())


@router.post("/{job_id}/stop", response_model=JobOut, status_code=202, responses=errors(404, 409))
def stop_job(job_id: str, services: Served, body: StopIn | None = None) -> Response:
    """Stop a job that runs: after a checkpoint, at once without one, or by force."""
    wanted = body or StopIn()
    return job_response(actions.stop_job(services, job_id, wanted.mode, requeue=wanted.requeue), 202)


@router.post("/{job_id}/save_now", response_model=JobOut, status_code=202, responses=errors(404, 409))
def save_now(job_id: str, services: Served) -> Response:
    """Save the model after the present step."""
    return job_response(actions.command_job(services, job_id, "save"), 202)


@router.post("/{job_id}/sample_now", response_model=JobOut, status_code=202, responses=errors(404, 409))
def sample_now(job_id: str, services: Served) -> Response:
    """Draw previews after the present step."""
    return job_response(actions.command_job(services, job_id, "sample"), 202)


@router.post("/{job_id}/mark_stopped", response_model=JobOut, responses=errors(404, 409))
def mark_stopped(job_id: str, services: Served) -> Response:
    """Note that a job has stopped; only if it is certain that no process of it runs."""
    return job_response(actions.mark_stopped(services, job_id))


@router.delete("/{job_id}", status_code=204, responses=errors(404, 409))
def delete_job(job_id: str, services: Served, files: Literal["keep", "delete"] = "keep") -> Response:
    """Delete a job that does not wait or run, and on request the folder of its run."""
    actions.delete_job(services, job_id, files=files == "delete")
    return Response(status_code=204)


@router.get("/{job_id}/log", response_model=LogOut, responses=errors(404))
def read_log(
    job_id: str, services: Served, *,
    offset: Annotated[int | None, Query(ge=0, lt=2**63, description="Default: the last lines.")] = None,
    attempt: Annotated[int | None, Query(ge=1, lt=2**31, description="Default: the last one.")] = None,
    max: Annotated[int, Query(ge=1, le=MAX_BYTES)] = 256 * 1024,
) -> Response:  # fmt: skip
    """What a job printed, from a place in the text on."""
    job = services.store.get(job_id)
    number = attempt or job.attempt
    piece = read_slice(_printed(services, job, number), offset, max)
    eof = piece.at_end and (number != job.attempt or job.status not in ACTIVE)
    body = {"text": piece.text, "offset": piece.offset, "reset": piece.reset, "eof": eof, "attempt": number}
    return JSONResponse(body)


@router.get(
    "/{job_id}/log/download",
    responses={200: {"content": {"application/octet-stream": {}}}, **errors(404, 416)},
)
def download_log(
    job_id: str, request: Request, services: Served,
    attempt: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
) -> Response:  # fmt: skip
    """Everything that an attempt printed, as a file."""
    job = services.store.get(job_id)
    number = attempt or job.attempt
    path = _printed(services, job, number)
    if not path.is_file():
        raise not_found("this log")
    return file_response(request, path, name=f"{job.name}_{number}.log.txt")


def _printed(services: Services, job: Job, number: int) -> Path:
    """What an attempt printed; of a job that was imported and never ran here, the log of its run."""
    path = AttemptFolder(services.settings.jobs_root, job.id, number).output_path
    run = shown_run(services, job) if number == 0 else None
    return path if run is None or run.log_path.is_symlink() else run.log_path
