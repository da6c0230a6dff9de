"""Errors of the API: application/problem+json (RFC 9457) with a member `error` beside its `detail`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from toolkit.errors import UserError
from web.security.policy import ALWAYS, POLICY

logger = logging.getLogger(__name__)


class ApiError(Exception):
    """What a request cannot have. `code` is stable, see docs/errors.md; errors: one for each field."""

    def __init__(
        self, status: int, code: str, detail: str, *,
        errors: Sequence[Mapping[str, Any]] = (), headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.errors, self.headers = list(errors), dict(headers or {})


def not_found(what: str) -> ApiError:
    """404: there is no such thing."""
    return ApiError(404, "web.not_found", f"{what} does not exist")


def conflict(detail: str) -> ApiError:
    """409: not in the state that things are in."""
    return ApiError(409, "web.conflict", detail)


def invalid(detail: str, pointer: str = "", errors: Sequence[Mapping[str, Any]] = ()) -> ApiError:
    """422: a value that cannot be used."""
    listed = list(errors) or [{"pointer": pointer, "detail": detail}]
    return ApiError(422, "web.invalid", detail, errors=listed)


def of_user_error(error: UserError) -> ApiError:
    """422 with every problem of a config: code, key, line, message and remedy."""
    problems = [
        {
            "pointer": problem.key or "", "detail": problem.message, "code": problem.code,
            "line": problem.line, "remedy": problem.remedy,
        }
        for problem in error.problems
    ]  # fmt: skip
    return ApiError(422, "web.config", str(error), errors=problems)


def problem_body(
    status: int, code: str, detail: str, instance: str, errors: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The JSON of an error."""
    body: dict[str, Any] = {
        "type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail,
        "instance": instance, "code": code, "error": detail,
    }  # fmt: skip
    return {**body, "errors": list(errors)} if errors else body


def problem_response(
    status: int, code: str, detail: str, instance: str = "",
    *, errors: Sequence[Mapping[str, Any]] = (), headers: Mapping[str, str] | None = None,
) -> Response:  # fmt: skip
    """An error as a response."""
    body = problem_body(status, code, detail, instance, errors)
    # In ASCII, so that whatever a client sent and is told of can be written.
    text = json.dumps(body)
    return Response(text, status, headers=dict(headers or {}), media_type="application/problem+json")


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return problem_response(
        error.status, error.code, error.detail, request.scope["path"], errors=error.errors,
        headers=error.headers,
    )  # fmt: skip


async def _on_user_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, UserError)
    return await _on_api_error(request, of_user_error(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    return problem_response(
        error.status_code, "web.http", detail, request.scope["path"], headers=error.headers
    )


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [
        # What was sent is left out: it may be a secret.
        {"pointer": "/" + "/".join(map(str, entry["loc"])), "detail": str(entry["msg"])}
        for entry in error.errors()
    ]
    detail = "; ".join(f"{entry['pointer']}: {entry['detail']}" for entry in errors)
    return problem_response(422, "web.invalid", detail, request.scope["path"], errors=errors)


async def _on_busy(request: Request, error: Exception) -> Response:
    logger.warning("database: %s", error.__cause__ or type(error).__name__)
    text = "the database is busy or cannot be written; try again"
    return problem_response(503, "web.busy", text, request.scope["path"], headers={"Retry-After": "2"})


async def _on_bug(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    text = "something went wrong in the server; its log says what"
    # This answer is made outside of the middleware that completes the headers.
    headers = {**ALWAYS, "Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
    return problem_response(500, "web.internal", text, request.scope["path"], headers=headers)


def install(app: FastAPI) -> None:
    """Answer every error of the app in this form."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(UserError, _on_user_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(OperationalError, _on_busy)
    app.add_exception_handler(Exception, _on_bug)
