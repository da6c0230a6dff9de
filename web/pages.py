"""Rendering: a whole page, or the block of it that a fragment asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.types import Scope

from web.formats import FILTERS
from web.navigation import NAVIGATION

TEMPLATES = Path(__file__).parent / "templates"
VARY = "HX-Request, HX-Request-Type, HX-History-Restore-Request"


def wants_fragment(request: Request) -> bool:
    """Whether htmx asks for part of a page: not for the page itself, nor to restore it."""
    headers = request.headers
    return (
        headers.get("hx-request") == "true"
        and headers.get("hx-request-type") != "full"
        and headers.get("hx-boosted") != "true"
        and headers.get("hx-history-restore-request") != "true"
    )


@dataclass(frozen=True, slots=True)
class Pages:
    """The templates. What is put into them is escaped; an unknown name is an error."""

    environment: Environment
    sign_in: bool

    def page(
        self, request: Request, template: str, context: Mapping[str, Any], *,
        block: str | None = None, status: int = 200, headers: Mapping[str, str] | None = None,
    ) -> HTMLResponse:  # fmt: skip
        """`template` with `context`; for htmx its `block` only, where the route names one.

        A template extends page.html and fills its blocks `title` and `content`.
        """
        values = {**self._shared(request.scope), **context}
        found = self.environment.get_template(template)
        if block is not None and wants_fragment(request):
            text = "".join(found.blocks[block](found.new_context(values)))
        else:
            text = found.render(values)
        return _html(text, status, headers)

    def fragment(
        self, request: Request, template: str, context: Mapping[str, Any], status: int = 200
    ) -> HTMLResponse:
        """A template that is only ever part of a page (its name begins with _)."""
        text = self.environment.get_template(template).render({**self._shared(request.scope), **context})
        return _html(text, status, None)

    def login(self, scope: Scope, *, after: str = "/", status: int = 200, error: str = "") -> HTMLResponse:
        """The form that asks for the token."""
        values = {**self._shared(scope), "after": after, "error": error}
        return _html(self.environment.get_template("login.html").render(values), status, None)

    def _shared(self, scope: Scope) -> dict[str, Any]:
        return {
            "root": scope.get("root_path", ""), "path": scope["path"], "navigation": NAVIGATION,
            "sign_in": self.sign_in,
        }  # fmt: skip


def make_pages(sign_in: bool) -> Pages:
    """The templates of this package. sign_in: whether there is somebody to sign out."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(FILTERS)
    return Pages(environment, sign_in)


def _html(text: str, status: int, headers: Mapping[str, str] | None) -> HTMLResponse:
    # A browser that goes back must not be shown a fragment as the page.
    return HTMLResponse(text, status, headers={"Vary": VARY, "Cache-Control": "no-store", **(headers or {})})
