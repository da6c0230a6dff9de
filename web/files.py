"""Files that users may fetch: which path a name means, and how a browser may use what it gets.

A client never names a path, only one of our folders and what lies below it.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response

from web.problems import ApiError, not_found
from web.security.policy import FILE_POLICY

_LONGEST = 4000
_MOST_RANGES = 10
# Shown by a browser; everything else is only ever saved. No svg, html or xml: those can hold programs.
INLINE = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp",
    ".gif": "image/gif", ".avif": "image/avif", ".mp4": "video/mp4", ".webm": "video/webm",
}  # fmt: skip
_FORBIDDEN = re.compile(r"[\\:\x00-\x1f\x7f]")


def safe_path(root: Path, relative: str) -> Path:
    """The file or folder `relative` below `root`. No link on the way is followed. Raises 404."""
    parts = relative.split("/")
    bad = not relative or len(relative) > _LONGEST or _FORBIDDEN.search(relative)
    if bad or any(
        part in ("", ".", "..") or part.startswith(".") or len(part.encode()) > 255 for part in parts
    ):
        raise not_found("this file")
    path = root
    for part in parts:
        path = path / part
        try:
            mode = path.lstat().st_mode
        except OSError:
            raise not_found("this file") from None
        if stat.S_ISLNK(mode):
            raise not_found("this file")
    return path


def safe_file(root: Path, relative: str) -> Path:
    """The file `relative` below `root`. Raises 404 for anything that is not a plain file."""
    path = safe_path(root, relative)
    if not path.is_file():
        raise not_found("this file")
    return path


def file_response(request: Request, path: Path, *, inline: bool = False, name: str | None = None) -> Response:
    """A file, whole or the ranges that are asked for. Raises 416 for too many ranges."""
    ranges = request.headers.get("range", "")
    if ranges.count(",") >= _MOST_RANGES:
        raise ApiError(416, "web.ranges", f"at most {_MOST_RANGES} ranges in one request")
    kind = INLINE.get(path.suffix.lower())
    disposition = "inline" if inline and kind is not None else "attachment"
    headers = {"Content-Security-Policy": FILE_POLICY, "Cache-Control": "private, no-cache"}
    return FileResponse(
        path, media_type=kind or "application/octet-stream", filename=name or path.name, headers=headers,
        content_disposition_type=disposition,
    )  # fmt: skip
