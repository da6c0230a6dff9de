"""What is served without being signed in: signing in and out, and whether the server lives."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from web.models import AuthOut, HealthOut, LoginIn, errors
from web.problems import ApiError
from web.security.sessions import COOKIE, cookie_value
from web.services import Served, Services

router = APIRouter(responses=errors())


def local_target(after: str) -> str:
    """Where to go after signing in: a path of this server, whatever was asked for.

    >>> local_target("//evil.example/"), local_target("/jobs?status=queued")
    ('/', '/jobs?status=queued')
    """
    parts = urlsplit(after)
    is_path = after.startswith("/") and not after.startswith(("//", "/\\")) and "\\" not in after
    plain = is_path and not parts.scheme and not parts.netloc and all(ord(letter) > 31 for letter in after)
    return after if plain else "/"


def _cookie_name(services: Services) -> str:
    return f"__Host-{COOKIE}" if services.settings.secure_cookie else COOKIE


def _sign_in(services: Services, request: Request, response: Response, token: str) -> bool:
    """Set the cookie if the token is right; whether it was. Raises 429 after too many wrong ones."""
    client = request.client.host if request.client else ""
    wait = services.logins.wait(client)
    if wait:
        text = f"too many wrong tokens; try again in {wait} s"
        raise ApiError(429, "web.too_many_logins", text, headers={"Retry-After": str(wait)})
    if services.sessions.required and not services.sessions.is_token(token.strip()):
        services.logins.failed(client)
        return False
    if services.sessions.required:
        response.set_cookie(
            _cookie_name(services), services.sessions.open(), httponly=True, samesite="strict",
            secure=services.settings.secure_cookie, path="/",
        )  # fmt: skip
    return True


def _sign_out(services: Services, request: Request, response: Response) -> None:
    value = cookie_value(request.scope, COOKIE)
    if value is not None:
        services.sessions.close(value)
    secure = services.settings.secure_cookie
    response.delete_cookie(_cookie_name(services), path="/", secure=secure, httponly=True, samesite="strict")


@router.get("/api/auth", response_model=AuthOut, tags=["auth"])
def read_auth(request: Request, services: Served) -> AuthOut:
    """Whether the caller is signed in."""
    return AuthOut(
        isAuthenticated=services.sessions.is_signed_in(request.scope), required=services.sessions.required
    )


@router.post("/api/auth/login", status_code=204, tags=["auth"], responses=errors(429))
def login(body: LoginIn, request: Request, services: Served) -> Response:
    """Sign in with the token; the answer sets a cookie."""
    response = Response(status_code=204)
    if not _sign_in(services, request, response, body.token):
        raise ApiError(401, "web.unauthorized", "this is not the token")
    return response


@router.post("/api/auth/logout", status_code=204, tags=["auth"])
def logout(request: Request, services: Served) -> Response:
    """Sign out."""
    response = Response(status_code=204)
    _sign_out(services, request, response)
    return response


@router.get("/login", include_in_schema=False)
def login_page(request: Request, services: Served, next: str = "/") -> Response:
    """The form that asks for the token."""
    return services.pages.login(request.scope, after=local_target(next))


@router.post("/login", include_in_schema=False)
def login_form(
    request: Request, services: Served, token: Annotated[str, Form(max_length=1000)],
    next: Annotated[str, Form(max_length=2000)] = "/",
) -> Response:  # fmt: skip
    """Sign in and go on to the page that was asked for."""
    target = local_target(next)
    response: Response = RedirectResponse(request.scope.get("root_path", "") + target, status_code=303)
    try:
        right = _sign_in(services, request, response, token)
    except ApiError as error:
        page = services.pages.login(request.scope, after=target, status=429, error=error.detail)
        page.headers.update(error.headers)
        return page
    if not right:
        return services.pages.login(request.scope, after=target, status=401, error="This is not the token.")
    return response


@router.post("/logout", include_in_schema=False)
def logout_form(request: Request, services: Served) -> Response:
    """Sign out and show the form."""
    response = RedirectResponse(request.scope.get("root_path", "") + "/login", status_code=303)
    _sign_out(services, request, response)
    return response


@router.get("/healthz", response_model=HealthOut, tags=["health"])
def healthz() -> HealthOut:
    """The server answers."""
    return HealthOut(status="ok")


@router.get("/readyz", response_model=HealthOut, tags=["health"])
def readyz(services: Served) -> HealthOut:
    """The server can read its database."""
    with services.database.read() as connection:
        connection.exec_driver_sql("SELECT 1")
    return HealthOut(status="ok")
