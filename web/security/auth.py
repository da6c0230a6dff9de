"""Nothing is served to who is not signed in, but for a short list of paths. Runs before a body is read."""

from __future__ import annotations

from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from web.pages import Pages
from web.security.http import ASGIApp, Receive, Scope, Send, header, local_path, refuse
from web.security.sessions import Sessions

# Exact paths, and what lies below /static/. They give away nothing about jobs or data.
PUBLIC = frozenset(
    {"/login", "/logout", "/api/auth", "/api/auth/login", "/api/auth/logout", "/healthz", "/readyz"}
)
PUBLIC_FOLDER = "/static/"


def is_public(path: str) -> bool:
    """Whether a path is served to everyone."""
    return path in PUBLIC or path.startswith(PUBLIC_FOLDER)


class AuthGuard:
    """401 without credentials; a browser that asks for a page gets the login form with it."""

    def __init__(self, app: ASGIApp, sessions: Sessions, pages: Pages) -> None:
        self.app, self.sessions, self.pages = app, sessions, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and not is_public(local_path(scope)):
            # In a thread, since the cookie of a session is looked up in the database.
            sessions = self.sessions
            if sessions.required and not await run_in_threadpool(sessions.is_signed_in, scope):
                await self._refuse(scope, receive, send)
                return
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there are none here
            return
        await self.app(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, root = local_path(scope), str(scope.get("root_path", ""))
        wants_page = "text/html" in (header(scope, b"accept") or "") and not path.startswith("/api/")
        if not wants_page:
            text = "sign in, or send the token as Authorization: Bearer"
            await refuse(scope, receive, send, 401, "web.unauthorized", text, WWW_Authenticate="Bearer")
            return
        if header(scope, b"hx-request") == "true":
            target = f"{root}/login"
            response = Response(status_code=401, headers={"HX-Redirect": target})
        else:
            query = scope["query_string"].decode("latin-1")
            after = quote(path, safe="/") + (f"?{query}" if query and scope["method"] == "GET" else "")
            response = self.pages.login(scope, after=after, status=401)
        await response(scope, receive, send)
