"""GET /api/events: what changed, as it changes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from web.doorbell import Doorbell, Subscriber
from web.models import errors
from web.security.sessions import COOKIE, cookie_value
from web.services import Served

router = APIRouter(prefix="/api", tags=["events"], responses=errors(429))


class _Stream(StreamingResponse):
    """A stream of the doorbell; its place is free again however it ends."""

    def __init__(self, doorbell: Doorbell, reader: Subscriber, last_id: str | None) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(doorbell.stream(reader, last_id), media_type="text/event-stream", headers=headers)
        self._doorbell, self._reader = doorbell, reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._doorbell.leave(self._reader)


@router.get(
    "/events", response_class=StreamingResponse,
    responses={200: {"description": "Named events without end.", "content": {"text/event-stream": {}}}},
)  # fmt: skip
async def read_events(
    request: Request, services: Served,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=100)] = None,
) -> StreamingResponse:  # fmt: skip
    """Named events: `jobs`, `job-<id>`, `deleted-<id>`, `log-<id>`, `queue`, `datasets`, `dataset-<name>`;
    and `resync` when everything should be read again."""
    session = cookie_value(request.scope, COOKIE)
    client = session or (request.client.host if request.client else "")
    return _Stream(services.doorbell, services.doorbell.open(client), last_event_id)
