"""The page of settings: folders, the token of the model hub, what the server was started with."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request, Response

from web.preferences import Key
from web.problems import ApiError
from web.routes.page_route import back_to, page_router
from web.services import Served, Services

router = page_router()


def _page(
    request: Request, services: Services, *, error: str = "", wrong: str = "", saved: bool = False,
    given: dict[str, str] | None = None, status: int = 200,
) -> Response:  # fmt: skip
    preferences = services.preferences
    folders = {
        "training_folder": str(preferences.output_root), "datasets_folder": str(preferences.datasets_root),
    }  # fmt: skip
    context = {
        "folders": folders | (given or {}), "token_set": preferences.hf_token is not None, "error": error,
        "wrong": wrong, "saved": saved, "server": services.settings,
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
