"""The page of settings: folders, the token of the model hub, what the server was started with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from fastapi import Form, Request, Response

from toolkit.errors import UserError
from web.importing.service import import_ai_toolkit, import_roots
from web.preferences import Key
from web.problems import ApiError
from web.routes.page_route import back_to, page_router
from web.services import Served, Services

router = page_router()


def _page(
    request: Request, services: Services, *, error: str = "", wrong: str = "", saved: bool = False,
    given: dict[str, str] | None = None, path: str = "", db: str = "", status: int = 200,
) -> Response:  # fmt: skip
    preferences = services.preferences
    folders = {
        "training_folder": str(preferences.output_root), "datasets_folder": str(preferences.datasets_root),
    }  # fmt: skip
    context = {
        "folders": folders | (given or {}), "token_set": preferences.hf_token is not None, "error": error,
        "wrong": wrong, "saved": saved, "server": services.settings,
        "import_roots": import_roots(services), "path": path, "db": db,
    }  # fmt: skip
    return services.pages.page(request, "settings.html", context, status=status)


@router.get("/settings")
def settings_page(request: Request, services: Served, saved: bool = False) -> Response:
    """What can be set; the token is never shown."""
    return _page(request, services, saved=saved)


@router.post("/settings")
def change_settings(
    request: Request, services: Served,
    training_folder: Annotated[str, Form(max_length=4000)] = "",
    datasets_folder: Annotated[str, Form(max_length=4000)] = "",
    hf_token: Annotated[str, Form(max_length=1000)] = "",
    forget_token: Annotated[bool, Form()] = False,
) -> Response:  # fmt: skip
    """Store the folders; an empty one puts back the default, an empty token leaves the one there is."""
    given = {"training_folder": training_folder, "datasets_folder": datasets_folder}
    defaults = {str(services.settings.output_root.resolve()), str(services.settings.datasets_root.resolve())}
    wanted: dict[Key, str | None] = {
        "training_folder": None if training_folder in defaults else training_folder,
        "datasets_folder": None if datasets_folder in defaults else datasets_folder,
    }
    if hf_token.strip() or forget_token:
        wanted["hf_token"] = None if forget_token else hf_token
    for key, value in wanted.items():
        try:
            services.preferences.set(key, value)
        except ApiError as error:
            return _page(request, services, error=error.detail, wrong=key, given=given, status=error.status)
    return back_to(request, "/settings?saved=true")


@router.post("/settings/import")
def import_jobs(
    request: Request, services: Served,
    path: Annotated[str, Form(max_length=4000)] = "",
    db: Annotated[str, Form(max_length=4000)] = "",
    action: Annotated[Literal["look", "import"], Form()] = "look",
) -> Response:  # fmt: skip
    """What would become of the jobs and runs of ai-toolkit at a path, or what became of them."""
    path, db = path.strip(), db.strip()
    if not path:
        return _page(request, services, error="give a folder of the server", wrong="import", status=422)
    try:
        plan = import_ai_toolkit(
            services,
            Path(path),
            Path(db) if db else None,
            dry_run=action == "look",
            roots=import_roots(services),
        )
    except (ApiError, UserError) as error:
        status = error.status if isinstance(error, ApiError) else 422
        return _page(request, services, error=str(error), wrong="import", path=path, db=db, status=status)
    context = {"plan": plan, "done": action == "import", "path": path, "db": db}
    return services.pages.page(request, "import.html", context)
