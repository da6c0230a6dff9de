"""The pages of one job: overview, loss, samples, files, config, events; and what their scripts ask for."""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse

from toolkit.runs.checkpoints import list_checkpoints
from web.forms.drawing import drawable
from web.launchers.attempt import AttemptFolder
from web.problems import not_found
from web.queue.jobs import Job
from web.queue.states import ACTIVE, EDITABLE, STOP_MODES
from web.routes.page_route import page_router
from web.routes.results import may_be_shown, shown_pictures, shown_run
from web.runs.folders import Number, path_of
from web.runs.logs import read_slice
from web.runs.pictures import recipe_of, sample_grid
from web.runs.results import list_results
from web.runs.sketch import sketch
from web.runs.validation import validation_view
from web.services import Served, Services

router = page_router()
_LOG_BYTES = 64 * 1024
MOST_PICTURES = 500  # of a generate job on one page
_FIRST, _LAST = ("", "Overview"), (("/config", "Config"), ("/events", "Events"))
TABS = (_FIRST, ("/loss", "Loss"), ("/samples", "Samples"), ("/files", "Files"), *_LAST)
# Of kinds that train nothing, the pages that can have something to show.
TABS_OF = {
    "generate": (_FIRST, ("/samples", "Pictures"), *_LAST),
    "eval": (_FIRST, *_LAST), "caption": (_FIRST, *_LAST),
}  # fmt: skip


class _Log(NamedTuple):
    name: str
    path: Path


def job_context(services: Services, job: Job) -> dict[str, Any]:
    """What the head of every page of a job shows."""
    modes = STOP_MODES if job.stop_mode is None else STOP_MODES[STOP_MODES.index(job.stop_mode) + 1 :]
    return {
        "job": job, "active": job.status in ACTIVE, "editable": job.status in EDITABLE,
        "tabs": TABS_OF.get(job.kind, TABS), "trains": job.kind not in TABS_OF,
        "stop_modes": modes if job.status in ACTIVE else (), "grace": services.settings.stop_grace_s,
        "resumes_at": _resumes_at(services, job),
        # These have no checkpoint, and a record of all that is done.
        "goes_on": job.kind in ("eval", "caption") and job.attempt > 0 and job.status != "completed",
    }  # fmt: skip


def _resumes_at(services: Services, job: Job) -> int | None:
    """The step that an ended job goes on from; None if it has no checkpoint to go on from."""
    if job.status not in EDITABLE or job.attempt == 0 or job.status == "completed":
        return None
    for number in range(len(job.run_folders), 0, -1):  # of several runs the last one that has begun
        run = shown_run(services, job, number)
        if run is not None and (found := list_checkpoints(run.checkpoints)):
            return found[-1][0]
    return None


def _page(
    request: Request, services: Services, template: str, job: Job, number: int = 1, **values: Any
) -> Response:
    """A page of a job; number: of its runs the one that is shown."""
    whose = f"run={number}" if number > 1 else ""
    runs = [Path(folder).name for folder in job.run_folders]
    path = path_of(job, number)
    hidden = path if path is not None and not may_be_shown(services, job, path) else None
    shown = {
        "hidden": hidden,
        "runs": runs,
        "run": number,
        "whose": whose and f"?{whose}",
        "and_whose": whose and f"&{whose}",
    }
    context = {**job_context(services, job), **shown, **values}
    return services.pages.page(request, template, context, block="tab")


@router.get("/jobs/{job_id}")
def job_overview(job_id: str, request: Request, services: Served, run: Number = 1) -> Response:
    """State, log and results of a job."""
    job = services.store.get(job_id)
    log = _log(services, job, run)
    piece = read_slice(log.path, None, _LOG_BYTES)
    drawn = sample_grid(shown_pictures(services, job, run)) if job.kind == "generate" else None
    return _page(request, services, "job_overview.html", job, run, log=log, piece=piece, grid=drawn,
                 results=list_results(shown_run(services, job, run))[:6],
                 drawable=_drawable(services, job, run))  # fmt: skip


@router.get("/jobs/{job_id}/head")
def job_head(job_id: str, request: Request, services: Served) -> Response:
    """The head of a job's pages, to be drawn again when it changes."""
    return services.pages.fragment(
        request, "_job_head.html", job_context(services, services.store.get(job_id))
    )


@router.get("/jobs/{job_id}/loss")
def job_loss(job_id: str, request: Request, services: Served, run: Number = 1) -> Response:
    """The curves of a run."""
    job = services.store.get(job_id)
    folder = shown_run(services, job, run)
    points = [] if folder is None else services.metrics.of(folder.metrics_path).points("loss", -1, 600)
    found = None if folder is None else validation_view(folder.validation_path)
    return _page(request, services, "job_loss.html", job, run, line=sketch(points), validation=found)


@router.get("/jobs/{job_id}/samples")
def job_samples(job_id: str, request: Request, services: Served, run: Number = 1) -> Response:
    """The previews of a run: prompts by steps."""
    job = services.store.get(job_id)
    grid = sample_grid(shown_pictures(services, job, run))
    return _page(request, services, "job_samples.html", job, run, grid=grid, most=MOST_PICTURES)


@router.get("/jobs/{job_id}/samples/view")
def job_sample(
    job_id: str, request: Request, services: Served, *, step: Annotated[int, Query(ge=0, lt=2**62)],
    prompt: Annotated[int, Query(ge=0, lt=2**31)],
    against: Annotated[int | None, Query(ge=0, lt=2**62)] = None,
    run: Number = 1,
) -> Response:  # fmt: skip
    """One preview, its neighbours, and if asked for another step of the same prompt to compare with."""
    job = services.store.get(job_id)
    folder = shown_pictures(services, job, run)
    grid = sample_grid(folder)
    name = grid.cells.get(step, {}).get(prompt)
    if folder is None or name is None:
        raise not_found("this preview")
    steps = [each for each in grid.steps if prompt in grid.cells[each]]
    row = sorted(grid.cells[step])
    values = {
        "name": name, "step": step, "prompt": prompt, "steps": steps, "row": row,
        "recipe": recipe_of(folder.samples / name) or _written(grid.prompt(prompt)),
        "against": against if against in steps else None,
        "names": {each: grid.cells[each][prompt] for each in steps},
        "near": {"up": _next_to(steps, step, -1), "down": _next_to(steps, step, 1),
                 "left": _next_to(row, prompt, -1), "right": _next_to(row, prompt, 1)},
    }  # fmt: skip
    return _page(request, services, "job_sample.html", job, run, **values)


@router.get("/jobs/{job_id}/files")
def job_files(job_id: str, request: Request, services: Served, run: Number = 1) -> Response:
    """What a run has saved."""
    job = services.store.get(job_id)
    folder = shown_run(services, job, run)
    return _page(request, services, "job_files.html", job, run, results=list_results(folder), folder=folder,
                 drawable=_drawable(services, job, run))  # fmt: skip


@router.get("/jobs/{job_id}/log")
def job_log(
    job_id: str, services: Served,
    offset: Annotated[int | None, Query(ge=0, lt=2**62)] = None,
    of: Annotated[str, Query(max_length=20)] = "",
    run: Number = 1,
) -> Response:  # fmt: skip
    """The lines of the log that the overview shows, from `offset` on. of: the log that offset is for."""
    log = _log(services, services.store.get(job_id), run)
    known = offset if of == log.name else None
    piece = read_slice(log.path, known, _LOG_BYTES)
    body = {"text": piece.text, "offset": piece.offset, "reset": piece.reset or known is None, "of": log.name}
    return JSONResponse(body)


@router.get("/jobs/{job_id}/config")
def job_config(job_id: str, request: Request, services: Served) -> Response:
    """The config of a job, and how it differs from the one that was run."""
    job, text = services.store.get(job_id), services.store.config(job_id)
    snapshot = services.store.snapshot(job_id)
    changes: list[str] = []
    if snapshot is not None and snapshot[0] != text:
        changes = list(difflib.unified_diff(
            snapshot[0].splitlines(), text.splitlines(), "as it was run", "as it is now", lineterm="",
        ))  # fmt: skip
    return _page(request, services, "job_config.html", job, text=text, snapshot=snapshot, changes=changes)


@router.get("/jobs/{job_id}/events")
def job_events(job_id: str, request: Request, services: Served) -> Response:
    """Everything that happened to a job, the newest first."""
    job = services.store.get(job_id)
    found = services.store.events(job_id, limit=2000)
    return _page(request, services, "job_events.html", job, events=found[::-1])


def _log(services: Services, job: Job, number: int) -> _Log:
    """The log of the run if this attempt writes one; before that, what the attempt printed."""
    run = shown_run(services, job, number)
    attempt = AttemptFolder(services.settings.jobs_root, job.id, job.attempt)
    if run is not None and not run.log_path.is_symlink():
        with suppress(OSError):
            is_new = run.log_path.stat().st_mtime >= (job.started_at or 0) - 2
            if is_new or not attempt.output_path.is_file():
                return _Log("run", run.log_path)
    return _Log(f"attempt {job.attempt}", attempt.output_path)


def _drawable(services: Services, job: Job, number: int) -> tuple[str, ...]:
    return drawable(services.store.ran(job.id), number) if job.kind == "train" else ()


def _written(prompt: str) -> dict[str, Any]:
    """What a config says of a picture that itself says nothing."""
    return {"prompt": prompt} if prompt else {}


def _next_to(values: list[int], value: int, by: int) -> int | None:
    index = values.index(value) + by
    return values[index] if 0 <= index < len(values) else None
