"""The API for what a job has made: metrics, previews, models."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from toolkit.runs.layout import RunFolder
from web.archive import zip_stream
from web.files import file_response, safe_file
from web.importing.apply import is_imported_folder
from web.launchers.attempt import AttemptFolder
from web.models import CompareOut, FileList, LossOut, MetricsOut, SampleList, errors
from web.pictures import thumbnail
from web.problems import conflict, invalid, not_found
from web.queue.jobs import Job, iso
from web.runs import artifacts
from web.runs.folders import Number, path_of, run_of
from web.runs.metrics_index import Index
from web.services import Served, Services

router = APIRouter(prefix="/api", tags=["results"], responses=errors(404))
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {}}},
    206: {"description": "The ranges asked for.", "content": {"image/*": {}}},
}  # fmt: skip
BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}},
    206: {"description": "The ranges asked for.", "content": {"application/octet-stream": {}}},
}
Since = Annotated[int, Query(ge=-1, lt=2**63, description="Only steps behind this one.")]


def run_folder(services: Services, job: Job, number: int = 1) -> Path:
    """The folder of a job's run, if it lies where runs may lie or was imported. Raises 404."""
    folder = path_of(job, number)
    if folder is None or not may_be_shown(services, job, folder):
        raise not_found("the run folder of this job")
    return folder


def shown_run(services: Services, job: Job, number: int = 1) -> RunFolder | None:
    """The run of a job as pages may show it; None if it has none, or its folder may not be shown."""
    run = run_of(job, number)
    return run if run is not None and may_be_shown(services, job, run.path) else None


def shown_pictures(services: Services, job: Job, number: int = 1) -> RunFolder | None:
    """Where the pictures of a job are: its run's previews, or what its last attempt at `generate` drew."""
    if job.kind != "generate":
        return shown_run(services, job, number)
    path_of(job, number)  # raises 404
    attempt = AttemptFolder(services.settings.jobs_root, job.id, job.attempt).path
    return RunFolder(attempt.parent, attempt.name)


def _pictures(services: Services, job_id: str, number: int) -> Path:
    found = shown_pictures(services, services.store.get(job_id), number)
    if found is None:
        raise not_found("the run folder of this job")
    return found.path


def may_be_shown(services: Services, job: Job, folder: Path) -> bool:
    """Whether the files of this folder may be given away: a run of ours, or one that was imported."""
    resolved = folder.resolve()
    if resolved.is_relative_to(services.preferences.output_root):
        return True
    return resolved == folder and is_imported_folder(services.database, job.id, folder)


def _index(services: Services, job_id: str, number: int = 1) -> Index:
    folder = run_folder(services, services.store.get(job_id), number)
    return services.metrics.of(folder / "metrics.jsonl")


@router.get("/jobs/{job_id}/metrics", response_model=MetricsOut)
def read_metrics(
    job_id: str, services: Served,
    keys: Annotated[str | None, Query(max_length=2000, description="With commas; default: all.")] = None,
    since_step: Since = -1,
    max_points: Annotated[int, Query(ge=2, le=20_000)] = 2000,
    run: Number = 1,
) -> Response:  # fmt: skip
    """The series of a run, thinned out to the extremes where there are too many points."""
    index = _index(services, job_id, run)
    wanted = index.keys if keys is None else [key for key in keys.split(",") if key]
    series = {key: index.points(key, since_step, max_points) for key in wanted}
    return JSONResponse({"keys": index.keys, "series": series, "generation": index.generation})


@router.get("/jobs/{job_id}/loss", response_model=LossOut)
def read_loss(
    job_id: str, services: Served, *,
    key: Annotated[str, Query(max_length=200)] = "loss",
    since_step: Since = -1,
    stride: Annotated[int, Query(ge=1, le=10_000)] = 1,
    limit: Annotated[int, Query(ge=1, le=20_000)] = 2000,
    run: Number = 1,
) -> Response:  # fmt: skip
    """One series in the form of ai-toolkit: every `stride`-th point, at most the last `limit`."""
    index = _index(services, job_id, run)
    points = index.points(key, since_step, max_points=2**62)[::stride][-limit:]
    listed = [{"step": step, "wall_time": time, "value": value} for step, time, value in points]
    return JSONResponse({"key": key, "keys": index.keys, "points": listed})


@router.get("/metrics/compare", response_model=CompareOut)
def compare_metrics(
    services: Served,
    jobs: Annotated[str, Query(max_length=400, description="Up to 4 ids, with commas.")],
    key: Annotated[str, Query(max_length=200)] = "loss",
    max_points: Annotated[int, Query(ge=2, le=20_000)] = 2000,
) -> Response:  # fmt: skip
    """One series of several runs."""
    ids = list(dict.fromkeys(job_id for job_id in jobs.split(",") if job_id))
    if not 1 <= len(ids) <= 4:
        raise invalid("give the ids of 1 to 4 jobs", "/query/jobs")
    series = {job_id: _index(services, job_id).points(key, -1, max_points) for job_id in ids}
    return JSONResponse({"key": key, "series": series})


@router.get("/jobs/{job_id}/samples", response_model=SampleList)
def list_samples(
    job_id: str, services: Served, *,
    step: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    prompt: Annotated[int | None, Query(ge=0, lt=2**31, description="Number of the prompt.")] = None,
    before_step: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Steps, the last ones.")] = 50,
    run: Number = 1,
) -> Response:  # fmt: skip
    """The previews of a run, by step; the pictures of a generate job, as step 0."""
    folder = _pictures(services, job_id, run)
    whose = f"run={run}" if run > 1 else ""
    base = f"{services.settings.root_path}/api/jobs/{job_id}/samples"
    chosen = [
        sample for sample in artifacts.samples(folder)
        if step in (None, sample.step) and prompt in (None, sample.index)
        and (before_step is None or sample.step < before_step)
    ]  # fmt: skip
    steps = [(number, list(group)) for number, group in groupby(chosen, key=lambda sample: sample.step)]
    shown = [
        {
            "step": number,
            "samples": [
                {
                    "prompt_index": sample.index, "name": sample.path.name,
                    "url": f"{base}/{sample.path.name}" + (whose and f"?{whose}"),
                    "thumb_url": f"{base}/{sample.path.name}?thumb=256" + (whose and f"&{whose}"),
                    "made_at": iso(sample.ms / 1000),
                    "recipe": artifacts.recipe(sample.path),
                }
                for sample in group
            ],
        }
        for number, group in steps[-limit:]
    ]  # fmt: skip
    return JSONResponse({"steps": shown, "more": len(steps) > limit})


@router.get("/jobs/{job_id}/samples/archive", responses={200: {"content": {"application/zip": {}}}})
def download_samples(job_id: str, services: Served, run: Number = 1) -> StreamingResponse:
    """All previews of a run, or pictures of a generate job, in a zip file."""
    found = artifacts.samples(_pictures(services, job_id, run))
    if not found:
        raise conflict("there are no pictures yet")
    headers = {"Content-Disposition": f'attachment; filename="{job_id}_samples.zip"'}
    stream = zip_stream((sample.path.name, sample.path) for sample in found)
    return StreamingResponse(stream, media_type="application/zip", headers=headers)


@router.get("/jobs/{job_id}/samples/{name}", responses={**PICTURE, **errors(404, 416)})
def read_sample(
    job_id: str, name: str, request: Request, services: Served,
    thumb: Annotated[int | None, Query(ge=32, le=1024)] = None,
    run: Number = 1,
) -> Response:  # fmt: skip
    """A preview, whole or small."""
    path = safe_file(_pictures(services, job_id, run), f"samples/{name}")
    if thumb is not None:
        path = thumbnail(path, thumb, services.settings.data_root / "thumbs")
    return file_response(request, path, inline=True)


@router.get("/jobs/{job_id}/files", response_model=FileList)
def list_files(job_id: str, services: Served, run: Number = 1) -> Response:
    """The models that a run has saved."""
    folder = run_folder(services, services.store.get(job_id), run)
    whose = f"?run={run}" if run > 1 else ""
    base = f"{services.settings.root_path}/api/jobs/{job_id}/files"
    listed = [
        {"name": file.name, "path": file.name, "size": file.size, "step": file.step,
         "modified_at": iso(file.modified_at), "url": f"{base}/{file.name}{whose}"}
        for file in artifacts.model_files(folder)
    ]  # fmt: skip
    return JSONResponse({"files": listed})


@router.get("/jobs/{job_id}/files/{name}", responses={**BYTES, **errors(404, 416)})
def download_file(job_id: str, name: str, request: Request, services: Served, run: Number = 1) -> Response:
    """A saved model."""
    folder = run_folder(services, services.store.get(job_id), run)
    if name not in {file.name for file in artifacts.model_files(folder)}:
        raise not_found("this file")
    return file_response(request, safe_file(folder, name))
