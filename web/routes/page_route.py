"""Routes that browsers follow: what cannot be had is told as a page, or as JSON to scripts that ask."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute

from toolkit.errors import UserError
from web.problems import ApiError, of_user_error
from web.routes.public import local_target
from web.services import Services


class PageRoute(APIRoute):
    """A route of pages and of forms on them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with its errors as pages for who accepts HTML."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except (ApiError, UserError, RequestValidationError) as error:
                if "text/html" not in request.headers.get("accept", ""):
                    raise
                return _error_page(request, error)

        return handle


def page_router() -> APIRouter:
    """A router for pages."""
    return APIRouter(include_in_schema=False, default_response_class=HTMLResponse, route_class=PageRoute)


def back_to(request: Request, target: str) -> Response:
    """Where a browser goes after a form: a path of this server. Scripts see that it worked."""
    return RedirectResponse(request.scope.get("root_path", "") + local_target(target), status_code=303)


def _error_page(request: Request, error: ApiError | UserError | RequestValidationError) -> Response:
    services = request.app.state.services
    assert isinstance(services, Services)
    status, detail, listed = 422, "a value is missing or cannot be used", _field_errors(error)
    headers: Mapping[str, str] = {}
    if isinstance(error, UserError):
        error = of_user_error(error)
    if isinstance(error, ApiError):
        status, detail, listed, headers = error.status, error.detail, error.errors, error.headers
    context = {
        "status": status, "title": HTTPStatus(status).phrase, "detail": detail if len(listed) != 1 or
        not listed[0].get("line") else "the config cannot be used", "errors": listed,
    }  # fmt: skip
    return services.pages.page(request, "error.html", context, status=status, headers=headers)


def _field_errors(error: Exception) -> Sequence[Mapping[str, Any]]:
    if not isinstance(error, RequestValidationError):
        return []
    return [
        {"pointer": str(entry["loc"][-1]), "detail": str(entry["msg"]), "line": None, "remedy": None}
        for entry in error.errors()
    ]
