"""What every part of the security middleware needs: headers of a request, and an answer that refuses it."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from web.problems import problem_response

__all__ = ["ASGIApp", "Receive", "Scope", "Send", "header", "headers", "local_path", "refuse"]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def headers(scope: Scope, name: bytes) -> list[str]:
    """Every value of a header, as sent."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def header(scope: Scope, name: bytes) -> str | None:
    """The value of a header; None if it is missing, or was sent more than once."""
    found = headers(scope, name)
    return found[0] if len(found) == 1 else None


def local_path(scope: Scope) -> str:
    """The path below `root_path`. Taken from the scope: a Host header has no part in it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :] or "/"
    return path


async def refuse(
    scope: Scope, receive: Receive, send: Send, status: int, code: str, detail: str, **extra: str
) -> None:
    """Answer with a problem and go no further."""
    added = {key.replace("_", "-"): value for key, value in extra.items()}
    response = problem_response(status, code, detail, str(scope["path"]), headers=added)
    await response(scope, receive, send)
