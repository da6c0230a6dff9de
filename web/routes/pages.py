"""The dashboard, the page of jobs and that of the API: whole, and the fragments that htmx asks for."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from web.lane_view import lane_views
from web.queue.lanes import active_jobs
from web.queue.listing import JobQuery, count_jobs, list_jobs
from web.queue.states import EDITABLE, STATES, State
from web.routes.page_route import page_router
from web.services import Served

router = page_router()


@router.get("/")
def dashboard(request: Request, services: Served) -> Response:
    """The machine, and what runs on it."""
    waiting = services.lanes.order(5)
    recent, _ = list_jobs(services.database, JobQuery(status=tuple(EDITABLE), sort="updated", limit=5))
    context = {
        "machine": services.monitor.look(), "active": active_jobs(services.database), "waiting": waiting,
        "recent": recent, "counts": count_jobs(services.database),
    }  # fmt: skip
    return services.pages.page(request, "dashboard.html", context, block="dashboard")


@router.get("/jobs")
def jobs_page(
    request: Request, services: Served,
    status: Annotated[list[State] | None, Query()] = None,
    q: Annotated[str | None, Query(max_length=200)] = None,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> Response:  # fmt: skip
    """Jobs by lane, and the others; asked for by htmx only these."""
    searches = bool(q or status or cursor)
    query = JobQuery(
        status=tuple(status or () if searches else EDITABLE), text=q, sort="updated", cursor=cursor
    )
    found, following = list_jobs(services.database, query)
    lanes, stranded = ([], []) if searches else lane_views(services)
    pairs = [("q", q or ""), *(("status", each) for each in status or [])]
    context = {
        "jobs": found, "q": q or "", "statuses": status or [], "states": STATES, "searches": searches,
        "lanes": lanes, "stranded": stranded, "devices": services.lanes.devices,
        "counts": count_jobs(services.database),
        "pairs": pairs, "here": [*pairs, *([("cursor", cursor)] if cursor else [])],
        "older": [*pairs, ("cursor", following)] if following else None,
    }  # fmt: skip
    return services.pages.page(request, "jobs.html", context, block="jobs")


@router.get("/docs")
def docs_page(request: Request, services: Served) -> Response:
    """Every operation of the API."""
    schema = request.app.openapi()
    operations = [
        {"method": method.upper(), "path": path,
         "summary": entry.get("description") or entry.get("summary", ""),
         "tag": (entry.get("tags") or ["other"])[0], "parameters": entry.get("parameters", []),
         "answers": [status for status in entry["responses"] if status.startswith("2")]}
        for path, methods in schema["paths"].items()
        for method, entry in methods.items()
    ]  # fmt: skip
    return services.pages.page(request, "docs.html", {"operations": operations})
