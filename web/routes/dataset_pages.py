"""The pages of datasets. Every one works by plain links and forms; scripts only make it quicker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query, Request, Response

from web.datasets import bulk, looks
from web.datasets.items import ItemQuery, Show, Sort, find_items, get_item, order_of
from web.evaluations.files import path_of
from web.evaluations.queueing import library_of, list_evaluations
from web.evaluations.reports import METRICS, ImageResult, Metric, ReportInfo, results
from web.routes.datasets import newest_reports
from web.routes.page_route import page_router
from web.services import Served, Services

router = page_router()
PAGE = 60
SHOWS: list[tuple[Show, str]] = [
    ("all", "All"), ("no-caption", "No caption"), ("flagged", "Flagged"), ("duplicates", "Duplicates"),
]  # fmt: skip
SORTS: list[tuple[Sort, str]] = [("name", "Name"), ("newest", "Newest"), ("worst", "Worst first")]
# What a form has done, as the page that follows tells it. Only these: a link cannot put words into a page.
NOTES = {
    "restored": "Restored from the trash.", "deleted": "Moved to the trash.", "saved": "Saved.",
    "undone": "The change was taken back.", "partly": "Taken back, but for captions that were edited since.",
    "applied": "The captions were changed.", "queued": "The evaluation waits in the queue.",
    "erased": "Erased.", "created": "The dataset was made.", "renamed": "The dataset was renamed.",
}  # fmt: skip
Done = Annotated[str, Query(max_length=20)]


@dataclass(frozen=True, slots=True)
class View:
    """What a dataset's page shows, as its address says."""

    q: str = ""
    show: Show = "all"
    sort: Sort = "name"
    metric: Metric = "log_ratio"
    report: str = ""
    page: int = 1

    def query(self, **changes: Any) -> str:
        """The address with some of it changed, from ? on; what is usual is left out."""
        values = {
            key: getattr(self, key) for key in ("q", "show", "sort", "metric", "report", "page")
        } | changes
        usual = View()
        chosen = {key: value for key, value in values.items() if value != getattr(usual, key)}
        return f"?{urlencode(chosen)}" if chosen else "?"


def reports_of(services: Services, name: str) -> list[ReportInfo]:
    """The reports about a dataset, the newest first. Raises 404."""
    preferences = services.preferences
    folder = library_of(services).folder(name)
    return services.reports.of_dataset(folder, preferences.output_root, preferences.datasets_root)


def chosen_results(
    services: Services, name: str, reports: list[ReportInfo], path: str
) -> tuple[str, Mapping[str, ImageResult]]:
    """(path of the report that was chosen, or the newest one; what it says of each picture)."""
    if not reports:
        return "", {}
    found = next((each for each in reports if path_of(services, each.path) == path), reports[0])
    folder = library_of(services).folder(name)
    return path_of(services, found.path), results(services.reports.read(found.path), folder)


@router.get("/datasets")
def datasets_page(request: Request, services: Served, done: Done = "") -> Response:
    """Every dataset."""
    library, reports = library_of(services), newest_reports(services)
    summaries = library.summaries()
    covers = {each.name: _cover(services, each.name) for each in summaries if each.num_pictures}
    context = {
        "datasets": summaries, "covers": covers, "links": library.links(), "root_folder": str(library.root),
        "reports": {each.name: reports.get(library.root / each.name) for each in summaries},
        "trash": len(library.trash.all()), "note": NOTES.get(done, ""),
    }  # fmt: skip
    return services.pages.page(request, "datasets.html", context)


def _cover(services: Services, name: str) -> list[str]:
    pictures = library_of(services).listing(name).pictures
    step = max(1, len(pictures) // 4)
    return [entry.rel for entry in pictures[::step][:4]]


@router.get("/trash")
def trash_page(request: Request, services: Served, done: Done = "") -> Response:
    """What was deleted."""
    context = {"deleted": library_of(services).trash.all(), "note": NOTES.get(done, "")}
    return services.pages.page(request, "trash.html", context)


@router.get("/datasets/{name}")
def dataset_page(
    name: str, request: Request, services: Served, *,
    q: Annotated[str, Query(max_length=500)] = "",
    show: Show = "all",
    sort: Sort = "name",
    metric: Metric = "log_ratio",
    report: Annotated[str, Query(max_length=4000)] = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
    done: Done = "",
) -> Response:  # fmt: skip
    """A dataset: its pictures and captions, and what evaluations say of them."""
    library, reports = library_of(services), reports_of(services, name)
    path, known = chosen_results(services, name, reports, report)
    view = View(q, show, sort, metric, report, page)
    query = ItemQuery(show=show, text=q, sort=sort, metric=metric, offset=(page - 1) * PAGE, limit=PAGE)
    found = find_items(library, name, query, known)
    changes = bulk.history(library, name)
    context = {
        "name": name, "view": view, "found": found, "pages": max(1, -(-found.total // PAGE)),
        "shows": SHOWS, "sorts": SORTS, "metrics": [(key, label) for key, (label, _) in METRICS.items()],
        "reports": [(path_of(services, each.path), each) for each in reports], "report": path,
        "measured": len(known), "last_change": changes[0] if changes else None,
        "evaluations": list_evaluations(services, name, 10), "note": NOTES.get(done, ""),
    }  # fmt: skip
    return services.pages.page(request, "dataset.html", context)


@router.get("/datasets/{name}/evaluations")
def recent_evaluations(name: str, request: Request, services: Served) -> Response:
    """The table of a dataset's evaluations, for a page that is open."""
    library_of(services).folder(name)
    context = {"evaluations": list_evaluations(services, name, 10)}
    return services.pages.fragment(request, "_evaluations.html", context)


@router.get("/datasets/{name}/picture/{item:path}")
def picture_page(
    name: str, item: str, request: Request, services: Served, *,
    q: Annotated[str, Query(max_length=500)] = "",
    show: Show = "all",
    sort: Sort = "name",
    metric: Metric = "log_ratio",
    report: Annotated[str, Query(max_length=4000)] = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
    done: Done = "",
) -> Response:  # fmt: skip
    """One picture with its caption; its neighbours are those of the page that it was opened from."""
    library = library_of(services)
    path, known = chosen_results(services, name, reports_of(services, name), report)
    query = ItemQuery(show=show, text=q, sort=sort, metric=metric, offset=0, limit=0)
    order = [entry.rel for entry in order_of(library, name, query, known)]
    at = order.index(item) if item in order else None
    context = {
        "name": name, "item": get_item(library, name, item, known), "report": path,
        "view": View(q, show, sort, metric, report, page), "metrics": METRICS,
        "number": None if at is None else at + 1, "total": len(order),
        "before": order[at - 1] if at else None,
        "after": order[at + 1] if at is not None and at + 1 < len(order) else None,
        "note": NOTES.get(done, ""), "conflict": None,
    }  # fmt: skip
    return services.pages.page(request, "dataset_picture.html", context)


@router.get("/datasets/{name}/replace")
def replace_page(
    name: str, request: Request, services: Served, *,
    find: Annotated[str, Query(max_length=2000)] = "",
    replace: Annotated[str, Query(max_length=2000)] = "",
    prefix: Annotated[str, Query(max_length=2000)] = "",
    suffix: Annotated[str, Query(max_length=2000)] = "",
    match_case: bool = False,
    whole_words: bool = False,
    done: Done = "",
) -> Response:  # fmt: skip
    """Find and replace in all captions: the form, and what would change."""
    library = library_of(services)
    wanted = bulk.Replacement(find, replace, prefix, suffix, match_case, whole_words)
    asked = bool(find or replace or prefix or suffix)
    changes = bulk.preview(library, name, wanted) if asked else []
    history = bulk.history(library, name)
    context = {
        "name": name, "wanted": wanted, "asked": asked, "changes": changes, "digest": bulk.digest(changes),
        "history": history, "note": NOTES.get(done, ""),
    }  # fmt: skip
    return services.pages.page(request, "dataset_replace.html", context)


@router.get("/datasets/{name}/duplicates")
def duplicates_page(name: str, request: Request, services: Served, done: Done = "") -> Response:
    """Pictures that are the same, and those that look the same."""
    found = looks.find_duplicates(library_of(services), name)
    rels = {rel for group in [*found.exact, *found.near] for rel in group}
    library = library_of(services)
    items = {rel: get_item(library, name, rel) for rel in sorted(rels)[:1000]}
    context = {"name": name, "found": found, "items": items, "note": NOTES.get(done, "")}
    return services.pages.page(request, "dataset_duplicates.html", context)


@router.get("/datasets/{name}/delete")
def delete_page(name: str, request: Request, services: Served) -> Response:
    """Ask before a dataset is deleted; and the form that renames it."""
    context = {"name": name, "summary": library_of(services).summary(name)}
    return services.pages.page(request, "dataset_delete.html", context)
