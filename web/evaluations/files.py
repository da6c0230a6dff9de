"""Reports by a path that clients may send: the name of one of our folders, and what lies below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from web.evaluations.reports import is_report_name
from web.files import safe_file
from web.problems import ApiError, not_found
from web.services import Services


def path_of(services: Services, path: Path) -> str:
    """A report's path as clients send it: output/… or datasets/…"""
    preferences = services.preferences
    for name, root in (("output", preferences.output_root), ("datasets", preferences.datasets_root)):
        if path.is_relative_to(root):
            return f"{name}/{path.relative_to(root).as_posix()}"
    raise not_found("this report")


def file_of(services: Services, path: str) -> Path:
    """The file that such a path means. Raises 400 for what is no such path, 404."""
    name, _, rel = path.partition("/")
    preferences = services.preferences
    roots = {"output": preferences.output_root, "datasets": preferences.datasets_root}
    if name not in roots or not rel:
        raise ApiError(400, "web.bad_path", "give a path as GET /api/eval_dataset/files lists it")
    try:
        found = safe_file(roots[name], rel)
    except UnicodeEncodeError:
        raise not_found("this report") from None
    if not is_report_name(found.name):
        raise not_found("this report")
    return found


def read_file(services: Services, path: str) -> dict[str, Any]:
    """The report that such a path means. Raises 400, 404, 500."""
    return services.reports.read(file_of(services, path))
