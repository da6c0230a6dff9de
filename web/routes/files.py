"""Files below the folders of datasets and of runs: downloads, and small pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from web.files import INLINE, file_response, safe_file
from web.models import errors
from web.pictures import thumbnail
from web.problems import ApiError
from web.routes.results import BYTES, PICTURE
from web.services import Served, Services

router = APIRouter(prefix="/api", tags=["files"], responses=errors(404, 416))
Root = Literal["datasets", "output"]


def folder_of(services: Services, root: Root) -> Path:
    """The folder that a root's name stands for."""
    preferences = services.preferences
    return preferences.datasets_root if root == "datasets" else preferences.output_root


@router.get("/files/{root}/{path:path}", responses=BYTES)
def download(root: Root, path: str, request: Request, services: Served) -> Response:
    """A file, to be saved."""
    return file_response(request, safe_file(folder_of(services, root), path))


@router.get("/img/{root}/{path:path}", responses={**PICTURE, **errors(404, 415, 416)})
def show(
    root: Root, path: str, request: Request, services: Served,
    thumb: Annotated[int | None, Query(ge=32, le=1024, description="Longest side in pixels.")] = None,
) -> Response:  # fmt: skip
    """A picture or a film, to be shown."""
    file = safe_file(folder_of(services, root), path)
    if thumb is not None:
        return file_response(
            request, thumbnail(file, thumb, services.settings.data_root / "thumbs"), inline=True
        )
    if file.suffix.lower() not in INLINE:
        raise ApiError(415, "web.no_picture", "this file is no picture or film that a browser may show")
    return file_response(request, file, inline=True)
