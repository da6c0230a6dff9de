"""Headers that every answer carries: what a page may load, who may frame it, what a browser may keep."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders

from web.security.http import ASGIApp, Receive, Scope, Send, local_path
from web.security.policy import ALWAYS, POLICY


class SecurityHeaders:
    """Adds them; a route may set another Content-Security-Policy or Cache-Control before."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and complete the headers of its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_vendored = local_path(scope).startswith("/static/vendor/")

        async def completed(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in ALWAYS.items():
                    found[name] = value
                found.setdefault("Content-Security-Policy", POLICY)
                keep = "public, max-age=31536000, immutable" if is_vendored else "no-store"
                found.setdefault("Cache-Control", keep if message["status"] < 400 else "no-store")
            await send(message)

        await self.app(scope, receive, completed)
