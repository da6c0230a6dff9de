"""The API for jobs: list, make, read, edit, queue, stop and delete them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse

from web import actions
from web.models import (
    CheckOut,
    CloneIn,
    ConfigIn,
    ConfigOut,
    EnqueueIn,
    EventList,
    FieldError,
    JobIn,
    JobList,
    JobOut,
    errors,
)
from web.queue.jobs import Job, Sort, iso, job_json
from web.queue.listing import JobQuery, list_jobs
from web.queue.states import State
from web.services import Served

router = APIRouter(prefix="/api", tags=["jobs"], responses=errors())
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=200)]


def job_response(job: Job, status: int = 200, root: str | None = None) -> JSONResponse:
    """A job with its ETag; root: also where it is found, as for a new one."""
    headers = {"ETag": job.etag}
    if root is not None:
        headers["Location"] = f"{root}/api/jobs/{job.id}"
    return JSONResponse(job_json(job), status, headers=headers)


@router.get("/jobs", response_model=JobList)
def list_jobs_(
    services: Served,
    *,
    status: Annotated[list[State] | None, Query()] = None,
    kind: Annotated[str | None, Query(max_length=40)] = None,
    lane: Annotated[str | None, Query(max_length=10)] = None,
    q: Annotated[str | None, Query(max_length=200)] = None,
    sort: Sort = "newest",
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> Response:
    """A page of jobs."""
    query = JobQuery(
        status=tuple(status or ()), kind=kind, lane=lane, text=q, sort=sort, limit=limit, cursor=cursor
    )
    found, following = list_jobs(services.database, query)
    return JSONResponse({"jobs": [job_json(job) for job in found], "next_cursor": following})


@router.post("/jobs", response_model=JobOut, status_code=201, responses=errors(409))
def create_job(body: JobIn, services: Served, key: Key = None) -> Response:
    """Make a job: a draft, which need not be able to run yet."""
    job = actions.create_job(
        services, actions.config_text(body.config, body.config_yaml), name=body.name, kind=body.kind,
        devices=body.devices, launcher=body.launcher.model_dump() if body.launcher else None, key=key,
    )  # fmt: skip
    return job_response(job, 201, root=services.settings.root_path)


@router.get("/jobs/{job_id}", response_model=JobOut, responses=errors(404))
def read_job(job_id: str, services: Served) -> Response:
    """A job."""
    return job_response(services.store.get(job_id))


@router.put("/jobs/{job_id}", response_model=JobOut, responses=errors(404, 409, 412))
def edit_job(
    job_id: str, body: JobIn, services: Served,
    if_match: Annotated[str | None, Header(alias="If-Match", max_length=200)] = None,
) -> Response:  # fmt: skip
    """Give a job that does not wait or run another config."""
    job = actions.edit_job(
        services, job_id, actions.config_text(body.config, body.config_yaml), name=body.name, kind=body.kind,
        devices=body.devices, launcher=body.launcher.model_dump() if body.launcher else None,
        if_match=if_match,
    )  # fmt: skip
    return job_response(job)


@router.post("/jobs/{job_id}/clone", response_model=JobOut, status_code=201, responses=errors(404, 409))
def clone_job(job_id: str, services: Served, body: CloneIn | None = None, key: Key = None) -> Response:
    """Make a job with the config of another."""
    job = actions.clone_job(services, job_id, body.name if body else None, key)
    return job_response(job, 201, root=services.settings.root_path)


@router.post("/jobs/{job_id}/enqueue", response_model=JobOut, status_code=202, responses=errors(404, 409))
def enqueue_job(job_id: str, services: Served, body: EnqueueIn | None = None) -> Response:
    """Put a job into the queue; its config is kept as it is now."""
    wanted = body or EnqueueIn()
    job = actions.enqueue_job(
        services, job_id, first=wanted.position == "first", start_queue=wanted.start_queue
    )
    return job_response(job, 202)


@router.post("/jobs/{job_id}/dequeue", response_model=JobOut, responses=errors(404, 409))
def dequeue_job(job_id: str, services: Served) -> Response:
    """Take a job out of the queue; it is a draft again."""
    return job_response(services.store.dequeue(job_id))


@router.get("/jobs/{job_id}/events", response_model=EventList, responses=errors(404))
def list_events(
    job_id: str, services: Served,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
) -> Response:  # fmt: skip
    """What happened to a job, oldest first."""
    services.store.get(job_id)
    found = services.store.events(job_id, after, limit)
    shown = ("id", "who", "from_status", "to_status", "attempt", "reason")
    return JSONResponse({"events": [{k: e[k] for k in shown} | {"at": iso(e["at"])} for e in found]})


@router.get("/jobs/{job_id}/config", response_model=ConfigOut, responses=errors(404))
def read_config(job_id: str, services: Served) -> dict[str, Any]:
    """A job's config, and the snapshot of it that was last enqueued."""
    text, snapshot = services.store.config(job_id), services.store.snapshot(job_id)
    kept = snapshot or (None, None)
    return {"config_yaml": text, "snapshot_yaml": kept[0], "snapshot_sha256": kept[1]}


@router.post("/config/validate", response_model=CheckOut, tags=["config"])
def validate_config(body: ConfigIn, services: Served) -> CheckOut:
    """Everything that is wrong with a config."""
    found = actions.check(services, actions.config_text(body.config, body.config_yaml), body.name)
    listed = [
        FieldError(pointer=p.key or "", detail=p.message, code=p.code, line=p.line, remedy=p.remedy)
        for p in found.problems
    ]
    normalized = None
    if found.loaded is not None and not listed:
        normalized = found.loaded.config.model_dump(mode="json")
    return CheckOut(ok=not listed, errors=listed, notes=found.notes, normalized=normalized)


@router.get("/config/schema", response_model=dict[str, Any], tags=["config"])
def read_schema() -> dict[str, Any]:
    """The JSON Schema of configs."""
    from toolkit.config_modules.job import job_schema

    return job_schema()
