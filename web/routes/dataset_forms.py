"""The forms on the pages of datasets: each does one thing and leads to a page that shows it."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import Form, Request, Response

from web.datasets import bulk, captions
from web.datasets.items import delete_item, get_item
from web.evaluations.queueing import library_of
from web.evaluations.reports import METRICS
from web.problems import ApiError
from web.routes.dataset_pages import View
from web.routes.datasets import changed, check_unused
from web.routes.page_route import back_to, page_router
from web.routes.public import local_target
from web.services import Served

router = page_router()
Text = Annotated[str, Form(max_length=64 * 1024)]
Short = Annotated[str, Form(max_length=4000)]


def with_note(target: str, note: str) -> str:
    """A path of this server, with what the page there shall tell."""
    path, hash_, anchor = local_target(target).partition("#")
    return f"{path}{'&' if '?' in path else '?'}done={note}{hash_}{anchor}"


def _home(name: str) -> str:
    return f"/datasets/{quote(name)}"


def _back(name: str, back: str) -> str:
    """Where a form was sent from, if that is a page of datasets."""
    return back if local_target(back) == back and back.startswith("/datasets/") else _home(name)


@router.post("/datasets")
def create_form(
    request: Request, services: Served, name: Annotated[str, Form(max_length=200)] = ""
) -> Response:
    """Make a dataset."""
    name = name.strip()
    library_of(services).create(name)
    changed(services, name)
    return back_to(request, with_note(_home(name), "created"))


@router.post("/datasets/{name}/rename")
def rename_form(name: str, request: Request, services: Served, new: Short = "") -> Response:
    """Rename a dataset."""
    check_unused(services, name)
    library_of(services).rename(name, new.strip())
    changed(services, name)
    return back_to(request, with_note(_home(new.strip()), "renamed"))


@router.post("/datasets/{name}/delete")
def delete_form(name: str, request: Request, services: Served, confirm: Short = "") -> Response:
    """Move a dataset to the trash, if its name was typed. Raises 422."""
    if confirm.strip() != name:
        raise ApiError(422, "web.invalid", f"to delete the dataset, type its name: {name}")
    check_unused(services, name)
    library_of(services).delete(name)
    changed(services, name)
    return back_to(request, with_note("/datasets", "deleted"))


@router.post("/datasets/{name}/caption")
def caption_form(
    name: str, request: Request, services: Served, *, item: Short, caption: Text = "", etag: Short = "",
    back: Short = "",
) -> Response:  # fmt: skip
    """Set a caption; if it was changed elsewhere, both texts are shown (409) and nothing is written."""
    library = library_of(services)
    try:
        captions.write(library, name, item, caption, etag or None)
    except ApiError as error:
        if error.status != 412:
            raise
        found = get_item(library, name, item)
        context = {
            "name": name, "item": found, "report": "", "view": View(), "metrics": METRICS, "number": None,
            "total": 0, "before": None, "after": None, "note": "", "conflict": caption,
        }  # fmt: skip
        return services.pages.page(request, "dataset_picture.html", context, status=409)
    changed(services, name)
    return back_to(request, with_note(_back(name, back), "saved"))


@router.post("/datasets/{name}/delete-picture")
def delete_picture_form(
    name: str, request: Request, services: Served, item: Short, back: Short = ""
) -> Response:
    """Move a picture and its caption to the trash."""
    delete_item(library_of(services), name, item)
    changed(services, name)
    return back_to(request, with_note(_back(name, back), "deleted"))


@router.post("/datasets/{name}/replace")
def replace_form(
    name: str, request: Request, services: Served, *, find: Short = "", replace: Short = "",
    prefix: Short = "", suffix: Short = "", match_case: Annotated[bool, Form()] = False,
    whole_words: Annotated[bool, Form()] = False, expected: Short = "",
) -> Response:  # fmt: skip
    """Make the change that was shown. Raises 412 if captions have changed since."""
    wanted = bulk.Replacement(find, replace, prefix, suffix, match_case, whole_words)
    bulk.apply(library_of(services), name, wanted, expected=expected or None)
    changed(services, name)
    return back_to(request, with_note(f"{_home(name)}/replace", "applied"))


@router.post("/datasets/{name}/undo")
def undo_form(name: str, request: Request, services: Served, change: Short, back: Short = "") -> Response:
    """Take a change of many captions back."""
    _, kept = bulk.undo(library_of(services), name, change)
    changed(services, name)
    return back_to(request, with_note(_back(name, back), "partly" if kept else "undone"))


@router.post("/trash/{identifier}/restore")
def restore_form(identifier: str, request: Request, services: Served) -> Response:
    """Put back what was deleted."""
    deleted = library_of(services).trash.restore(identifier)
    changed(services, deleted.dataset)
    return back_to(request, with_note(_home(deleted.dataset), "restored"))


@router.post("/trash/{identifier}/erase")
def erase_form(identifier: str, request: Request, services: Served) -> Response:
    """Erase something from the trash for good."""
    library_of(services).trash.erase(identifier)
    return back_to(request, with_note("/trash", "erased"))
