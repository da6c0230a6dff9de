"""GET and PATCH /api/settings; what ai-toolkit has left becomes jobs."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from web.import_models import ImportedJob, ImportIn, ImportOut
from web.importing.plan import Entry
from web.importing.service import import_ai_toolkit, import_roots
from web.models import FieldError, SettingsIn, SettingsOut, errors
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


@router.post("/import/ai-toolkit", response_model=ImportOut, tags=["import"], responses=errors(409))
def import_from_ai_toolkit(body: ImportIn, services: Served) -> ImportOut:
    """Make jobs of the jobs and runs of ai-toolkit; those that were imported before are left out."""
    database = Path(body.db) if body.db else None
    plan = import_ai_toolkit(
        services, Path(body.path), database, dry_run=body.dry_run, roots=import_roots(services)
    )
    return ImportOut(
        source=str(plan.source), dry_run=body.dry_run, num_imported=len(plan.imported),
        jobs=[_imported(entry) for entry in plan.entries], settings=dict(plan.settings), notes=plan.notes,
    )  # fmt: skip


def _imported(entry: Entry) -> ImportedJob:
    taken = not entry.skipped
    problems = [
        FieldError(pointer=p.key or "", detail=p.message, code=p.code, line=p.line, remedy=p.remedy)
        for p in entry.problems
    ]
    return ImportedJob(
        origin=entry.origin, id=entry.id or None, name=entry.name if taken else None,
        status=entry.state if taken else None, reason=entry.reason if taken else entry.skipped,
        folder=str(entry.folder) if entry.folder else None, problems=problems, notes=entry.notes,
    )  # fmt: skip
