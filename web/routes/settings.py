"""GET and PATCH /api/settings."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from web.models import SettingsIn, SettingsOut, errors
from web.preferences import Key
from web.services import Served, Services

router = APIRouter(prefix="/api", tags=["settings"], responses=errors())
_KEYS: tuple[Key, ...] = ("training_folder", "datasets_folder", "hf_token")


def _shown(services: Services) -> SettingsOut:
    preferences = services.preferences
    return SettingsOut(
        training_folder=str(preferences.output_root), datasets_folder=str(preferences.datasets_root),
        hf_token_set=preferences.hf_token is not None, devices=list(services.settings.devices),
    )  # fmt: skip


@router.get("/settings", response_model=SettingsOut)
def read_settings(services: Served) -> Response:
    """The folders, and whether there is a token of the model hub: itself it is never told."""
    return JSONResponse(_shown(services).model_dump())


@router.patch("/settings", response_model=SettingsOut)
def change_settings(body: SettingsIn, services: Served) -> SettingsOut:
    """Change what is given; null puts the default back."""
    for key in _KEYS:
        if key in body.model_fields_set:
            services.preferences.set(key, getattr(body, key))
    return _shown(services)
