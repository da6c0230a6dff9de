"""How large a request may be and how slowly it may come, counted while it is read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from starlette.types import Message

from web.security.http import ASGIApp, Receive, Scope, Send, header, local_path, refuse

DEFAULT_LIMIT = 2 * 1024 * 1024  # a config of 1 MiB as JSON text, with room for its escapes
IDLE_S = 30.0

# (pattern of the path below root_path, bytes): paths that take files. The first that matches counts.
UPLOADS: tuple[tuple[str, int], ...] = ((r"/api/datasets/[^/]+/items", 4 * 1024**3),)


class _Refused(Exception):  # noqa: N818 - never seen outside of this file
    pass


class _Body:
    """A body on its way to the app: its bytes counted, its pauses timed. status: why it was refused."""

    def __init__(self, receive: Receive, send: Send, limit: int, idle_s: float) -> None:
        self._receive, self._send, self._limit, self._idle_s = receive, send, limit, idle_s
        self._size = 0
        self._complete = False
        self.answered = False
        self.status: int | None = None

    async def receive(self) -> Message:
        """The next piece. Raises _Refused, which the app may take for a broken connection."""
        if self._complete:
            return await self._receive()  # waits for the client to go away; that may take for ever
        try:
            message = await asyncio.wait_for(self._receive(), self._idle_s)
        except TimeoutError:
            self.status = 408
            raise _Refused from None
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._size > self._limit:
            self.status = 413
            raise _Refused
        return message

    async def send(self, message: Message) -> None:
        """Pass an answer on, unless the body was refused before it began."""
        if self.status is not None and not self.answered:
            return
        self.answered = True
        await self._send(message)


class BodyLimit:
    """413 for a body over the limit of its path, announced or not; 408 for one that stops coming."""

    def __init__(
        self, app: ASGIApp, limit: int = DEFAULT_LIMIT,
        uploads: Sequence[tuple[str, int]] = UPLOADS, idle_s: float = IDLE_S,
    ) -> None:  # fmt: skip
        self.app, self.limit, self.idle_s = app, limit, idle_s
        self.uploads = [(re.compile(pattern), size) for pattern, size in uploads]

    def limit_of(self, path: str) -> int:
        """The bytes that a request to this path may have."""
        return next((size for pattern, size in self.uploads if pattern.fullmatch(path)), self.limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a body that is counted, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limit_of(local_path(scope))
        announced = header(scope, b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit:
            await self._too_large(scope, receive, send, limit)
            return
        body = _Body(receive, send, limit, self.idle_s)
        try:
            await self.app(scope, body.receive, body.send)
        except _Refused:
            if body.answered:
                raise
        if body.answered or body.status is None:
            return
        if body.status == 413:
            await self._too_large(scope, receive, send, limit)
        else:
            text = f"no data came for {self.idle_s:g} s"
            await refuse(scope, receive, send, 408, "web.slow", text, Connection="close")

    async def _too_large(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        text = f"the request is larger than {limit} bytes"
        await refuse(scope, receive, send, 413, "web.too_large", text, Connection="close")
