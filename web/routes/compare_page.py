"""Runs side by side: their curves, what their configs say differently, the same prompts."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query, Request, Response

from web.problems import invalid
from web.queue.jobs import Job
from web.queue.listing import JobQuery, list_jobs
from web.routes.page_route import page_router
from web.routes.results import shown_pictures
from web.runs.pictures import SampleGrid, sample_grid
from web.services import Served, Services

router = page_router()
MOST = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """A preview of one of the runs. step: which of its steps, the last one up to the step asked for."""

    job_id: str
    name: str
    step: int


@router.get("/compare")
def compare_page(
    request: Request, services: Served,
    job: Annotated[list[str] | None, Query(max_length=40)] = None,
    step: Annotated[int | None, Query(ge=0, lt=2**62)] = None,
    q: Annotated[str, Query(max_length=200)] = "",
) -> Response:  # fmt: skip
    """Up to four runs; without any, a list to choose from."""
    ids = list(dict.fromkeys(job or []))
    if len(ids) > MOST:
        raise invalid(f"choose at most {MOST} jobs", "/query/job")
    chosen = [services.store.get(each) for each in ids]
    grids = [sample_grid(shown_pictures(services, each)) for each in chosen]
    listed, _ = list_jobs(services.database, JobQuery(text=q, sort="updated", limit=100))
    steps = sorted({each for grid in grids for each in grid.steps})
    at = step if step is not None else (steps[-1] if steps else 0)
    context = {
        "chosen": chosen, "listed": [each for each in listed if _has_run(each) and each not in chosen],
        "q": q, "most": MOST, "steps": steps, "step": at, "rows": _rows(chosen, grids, at),
        "differences": _differences(services, chosen),
        "here": [*(("job", each) for each in ids), *([("step", step)] if step is not None else [])],
    }  # fmt: skip
    return services.pages.page(request, "compare.html", context)


def _has_run(job: Job) -> bool:
    """Whether there can be something to compare; an imported job has ended without any attempt here."""
    return bool(job.attempt or job.ended_at)


def _rows(chosen: list[Job], grids: list[SampleGrid], step: int) -> list[tuple[str, list[Picture | None]]]:
    """Of each prompt that any of the runs draws, the picture of each run."""
    texts = [grid.prompts() for grid in grids]
    prompts = list(dict.fromkeys(text for listed in texts for text in listed.values() if text))
    runs = list(zip(chosen, grids, texts, strict=True))
    return [(prompt, [_picture(*run, prompt, step) for run in runs]) for prompt in prompts]


def _picture(job: Job, grid: SampleGrid, texts: dict[int, str], prompt: str, step: int) -> Picture | None:
    numbers = [number for number, text in texts.items() if text == prompt]
    for at in reversed([each for each in grid.steps if each <= step]):
        for number in numbers:
            if number in grid.cells[at]:
                return Picture(job.id, grid.cells[at][number], at)
    return None


def _differences(services: Services, chosen: list[Job]) -> list[tuple[Job, list[str]]]:
    """From the config of the first job to that of each other one, as they were last run."""
    texts = [services.store.ran(job.id) for job in chosen]
    found: list[tuple[Job, list[str]]] = []
    for job, text in list(zip(chosen, texts, strict=True))[1:]:
        lines: Any = difflib.unified_diff(
            texts[0].splitlines(), text.splitlines(), chosen[0].name, job.name, lineterm="", n=2
        )
        found.append((job, list(lines)))
    return found
