"""The API for what is in a dataset: pictures and their captions."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from web.dataset_models import (
    BulkIn,
    BulkOut,
    CaptionIn,
    CaptionOut,
    ChangeOut,
    DuplicatesOut,
    ItemList,
    ItemOut,
    RefusedOut,
    SavedOut,
    UndoOut,
    UploadOut,
)
from web.datasets import archives, bulk, captions, looks, uploads
from web.datasets.captions import Caption
from web.datasets.items import Item, ItemQuery, Show, Sort, delete_item, find_items
from web.datasets.names import ARCHIVES, suffix_of
from web.datasets.uploads import MOST_FILES, MOST_TOTAL_BYTES, Outcome, Sent
from web.evaluations.queueing import library_of
from web.evaluations.reports import ImageResult, Metric, results
from web.models import errors
from web.problems import invalid
from web.routes.datasets import changed
from web.routes.page_route import PageRoute
from web.services import Served, Services

router = APIRouter(prefix="/api", tags=["datasets"], responses=errors(404), route_class=PageRoute)
IfMatch = Annotated[str | None, Header(alias="If-Match", max_length=200)]


def newest_results(services: Services, name: str) -> Mapping[str, ImageResult]:
    """What the newest report says of the pictures of a dataset. Raises 404."""
    folder = library_of(services).folder(name)
    preferences = services.preferences
    found = services.reports.of_dataset(folder, preferences.output_root, preferences.datasets_root)
    return results(services.reports.read(found[0].path), folder) if found else {}


def item_json(services: Services, name: str, item: Item) -> ItemOut:
    """A picture as the API shows it."""
    url = f"{services.settings.root_path}/api/img/datasets/{quote(name)}/{quote(item.rel)}"
    result = item.result
    return ItemOut(
        rel=item.rel, url=url, thumb_url=f"{url}?thumb=256", size=item.entry.size,
        width=item.size[0] if item.size else None, height=item.size[1] if item.size else None,
        caption=item.caption.text, caption_file=item.caption.file, etag=item.caption.etag,
        problem=item.caption.problem, loss=result.value("loss") if result else None,
        values=dict(result.values) if result else {}, flagged=bool(result and result.flagged),
        reasons=list(result.reasons) if result else [], stale=item.is_stale,
    )  # fmt: skip


@router.get("/datasets/{name}/items", response_model=ItemList)
def list_items(
    name: str, services: Served, *,
    q: Annotated[str, Query(max_length=500, description="In the caption or the name.")] = "",
    show: Show = "all",
    caption: Annotated[str | None, Query(pattern="^missing$", description="As show=no-caption.")] = None,
    sort: Annotated[str, Query(pattern="^(name|newest|worst|loss)$", description="loss: worst.")] = "name",
    metric: Metric = "log_ratio",
    limit: Annotated[int, Query(ge=1, le=500)] = 60,
    cursor: Annotated[str | None, Query(pattern=r"^\d{1,9}$")] = None,
) -> Response:  # fmt: skip
    """A page of pictures with their captions, and what the newest report says of them."""
    chosen: Metric = "loss" if sort == "loss" else metric
    order: Sort = "newest" if sort == "newest" else "name" if sort == "name" else "worst"
    start = int(cursor or 0)
    query = ItemQuery(
        show="no-caption" if caption else show, text=q, sort=order, metric=chosen, offset=start, limit=limit
    )
    page = find_items(library_of(services), name, query, newest_results(services, name))
    following = start + limit
    body = ItemList(
        items=[item_json(services, name, item) for item in page.items], total=page.total,
        next_cursor=str(following) if following < page.total else None,
        refused=[RefusedOut(name=rel, reason=reason) for rel, reason in page.refused],
    )  # fmt: skip
    return JSONResponse(body.model_dump())


UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "replace": {"type": "string", "description": "1: captions that are there give way."},
                    },
                }
            }
        },
    }
}


@router.post(
    "/datasets/{name}/items", response_model=UploadOut, status_code=201, openapi_extra=UPLOAD_BODY,
    responses=errors(404, 413, 415, 507),
)  # fmt: skip
async def upload_items(name: str, request: Request, services: Served) -> Response:
    """Add pictures, captions and zips of them. A browser without scripts gets a page that tells the rest."""
    await run_in_threadpool(library_of(services).folder, name)
    announced = request.headers.get("content-length", "")
    if announced.isdigit():
        uploads.check_space(Path(tempfile.gettempdir()), int(announced))
    form = await request.form(max_files=MOST_FILES, max_fields=20, max_part_size=64 * 1024)
    try:
        outcome = await run_in_threadpool(_take, services, name, form)
    finally:
        await form.close()
    if outcome.saved:
        changed(services, name)
    if "text/html" in request.headers.get("accept", ""):
        context = {"name": name, "outcome": outcome}
        return services.pages.page(request, "dataset_uploaded.html", context, status=201)
    body = UploadOut(
        saved=[SavedOut(name=given, rel=rel) for given, rel in outcome.saved],
        skipped=[RefusedOut(name=given, reason=reason) for given, reason in outcome.skipped],
    )
    return JSONResponse(body.model_dump(), 201)


def _take(services: Services, name: str, form: FormData) -> Outcome:
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile) and value.filename]
    if not files:
        raise invalid("no file was sent; send them as multipart/form-data under the name files", "/files")
    library, outcome = library_of(services), Outcome()
    uploads.check_space(library.root, sum(file.size or 0 for file in files))
    with uploads.staging(library) as place:
        sent: list[Sent] = []
        for number, file in enumerate(files):
            given, suffix = file.filename or "", suffix_of(file.filename or "")
            target = place / f"file-{number}{suffix if suffix.isascii() and suffix[1:].isalnum() else ''}"
            uploads.copy_counted(file.file, target, MOST_TOTAL_BYTES)
            if suffix in ARCHIVES:
                sent += archives.unpack(target, uploads.shown(given), place, outcome)
                target.unlink()
            else:
                sent.append(Sent(given, target))
        added = uploads.add_files(
            library, name, sent, replace=str(form.get("replace", "")) in ("1", "on", "true")
        )
    return Outcome([*outcome.saved, *added.saved], [*outcome.skipped, *added.skipped])


def caption_response(rel: str, found: Caption) -> Response:
    """A caption with its ETag."""
    body = CaptionOut(rel=rel, caption=found.text, etag=found.etag, file=found.file, problem=found.problem)
    return JSONResponse(body.model_dump(), headers={"ETag": found.etag})


@router.get("/datasets/{name}/items/{item:path}/caption", response_model=CaptionOut)
def read_caption(name: str, item: str, services: Served) -> Response:
    """The caption of a picture."""
    library = library_of(services)
    captions.picture_path(library, name, item)
    return caption_response(item, captions.read(library.folder(name), item))


@router.put(
    "/datasets/{name}/items/{item:path}/caption", response_model=CaptionOut, responses=errors(404, 412)
)
def write_caption(
    name: str, item: str, body: CaptionIn, services: Served, if_match: IfMatch = None
) -> Response:
    """Set the caption of a picture; with If-Match only if it is still that one, else 412 tells it."""
    found = captions.write(library_of(services), name, item, body.caption, if_match)
    changed(services, name)
    return caption_response(item, found)


@router.delete("/datasets/{name}/items/{item:path}", status_code=204)
def delete_item_(name: str, item: str, services: Served) -> Response:
    """Move a picture and its caption to the trash; the header Trash-Id says what restores them."""
    identifier = delete_item(library_of(services), name, item)
    changed(services, name)
    return Response(status_code=204, headers={"Trash-Id": identifier})


@router.post("/datasets/{name}/captions/bulk", response_model=BulkOut, responses=errors(404, 409, 412))
def change_captions(name: str, body: BulkIn, services: Served) -> BulkOut:
    """Change many captions at once, or only tell what would change."""
    wanted = bulk.Replacement(
        body.find, body.replace, body.prefix, body.suffix, body.match_case, body.whole_words
    )  # fmt: skip
    library = library_of(services)
    if body.dry_run:
        changes, identifier = bulk.preview(library, name, wanted, body.items), None
    else:
        done = bulk.apply(library, name, wanted, body.items, body.expected)
        changes, identifier = list(done.changes), done.id
        changed(services, name)
    listed = [ChangeOut(rel=each.rel, before=each.before, after=each.after) for each in changes]
    return BulkOut(changes=listed, digest=bulk.digest(changes), id=identifier)


@router.post(
    "/datasets/{name}/captions/changes/{identifier}/undo", response_model=UndoOut, responses=errors(404, 409)
)
def undo_change(name: str, identifier: str, services: Served) -> UndoOut:
    """Take a change of many captions back; captions that were edited since stay as they are."""
    restored, kept = bulk.undo(library_of(services), name, identifier)
    changed(services, name)
    return UndoOut(restored=restored, kept=kept)


@router.get("/datasets/{name}/duplicates", response_model=DuplicatesOut)
def list_duplicates(name: str, services: Served) -> DuplicatesOut:
    """Pictures that are the same or look the same; looks for some seconds at most, ask again for the rest."""
    found = looks.find_duplicates(library_of(services), name)
    return DuplicatesOut(
        exact=found.exact, near=found.near, num_left=found.num_left, unreadable=found.unreadable
    )
