"""Pages: whole ones, and the fragments that htmx asks for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from web.queue.listing import JobQuery, count_jobs, list_jobs
from web.queue.states import State
from web.services import Served

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/")
def index(request: Request) -> Response:
    """The first page."""
    return RedirectResponse(request.scope.get("root_path", "") + "/jobs", status_code=303)


@router.get("/jobs")
def jobs_page(
    request: Request, services: Served,
    status: Annotated[list[State] | None, Query()] = None,
    q: Annotated[str | None, Query(max_length=200)] = None,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> Response:  # fmt: skip
    """Jobs by lane, and the others; asked for by htmx only the table."""
    query = JobQuery(status=tuple(status or ()), text=q, cursor=cursor)
    found, following = list_jobs(services.database, query)
    context = {
        "jobs": found, "next_cursor": following, "q": q or "", "statuses": status or [],
        "lanes": services.lanes.all(), "counts": count_jobs(services.database),
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
