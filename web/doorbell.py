"""One stream of events for each tab: it only says what changed; the page then asks for it.

What waits for a slow reader is kept once per name, so that nobody can make the server hold much.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from web.problems import ApiError

MOST_STREAMS, MOST_PER_CLIENT, MOST_NAMES = 100, 10, 500
RESYNC = "resync"  # ask for everything again
PING_S = 15.0


class Subscriber:
    """A reader: the events that wait for it, by name, and a signal that there are some."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: str) -> None:
        self.client = client
        self._loop = loop
        self._signal = asyncio.Event()
        self._lock = threading.Lock()
        self._waiting: dict[str, Any] = {}

    def put(self, name: str, data: Any) -> None:
        """Leave an event; of one that waits already the new data counts. Any thread."""
        with self._lock:
            if len(self._waiting) >= MOST_NAMES and name not in self._waiting:
                self._waiting = {RESYNC: {}}
            elif RESYNC not in self._waiting:
                self._waiting[name] = data
        self._loop.call_soon_threadsafe(self._signal.set)

    async def take(self, timeout: float) -> dict[str, Any]:
        """What waits, oldest first; empty if nothing came in time."""
        try:
            await asyncio.wait_for(self._signal.wait(), timeout)
        except TimeoutError:
            return {}
        self._signal.clear()
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        return waiting


class Doorbell:
    """Hands every event to every reader. The id of an event holds a mark of this server and a count."""

    def __init__(self, describe: Callable[[str], Any] | None = None, pause_s: float = 0.2) -> None:
        self._describe = describe or (lambda _topic: {})
        self._pause_s = pause_s  # events that come close together are sent together
        self._lock = threading.Lock()
        self._subscribers: set[Subscriber] = set()
        self._server = uuid.uuid4().hex[:8]
        self._count = 0
        self._closed = False

    @property
    def readers(self) -> int:
        """How many streams are open."""
        return len(self._subscribers)

    def ring(self, topics: Iterable[str]) -> None:
        """Tell every reader that these changed. Any thread."""
        with self._lock:
            self._count += 1
            readers = list(self._subscribers)
        if not readers:
            return
        for topic in topics:
            data = self._describe(topic)
            for reader in readers:
                reader.put(topic, data)

    def open(self, client: str) -> Subscriber:
        """A new reader, for the running event loop. Raises 429 if there are too many."""
        reader = Subscriber(asyncio.get_running_loop(), client)
        with self._lock:
            own = sum(other.client == client for other in self._subscribers)
            if own >= MOST_PER_CLIENT or len(self._subscribers) >= MOST_STREAMS:
                text = "too many event streams are open; close a tab"
                raise ApiError(429, "web.too_many_streams", text, headers={"Retry-After": "10"})
            self._subscribers.add(reader)
        return reader

    def leave(self, reader: Subscriber) -> None:
        """Forget a reader."""
        with self._lock:
            self._subscribers.discard(reader)

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        for reader in list(self._subscribers):
            reader.put("close", {})

    async def stream(self, reader: Subscriber, last_id: str | None) -> AsyncIterator[str]:
        """The events as text/event-stream, until the reader goes away."""
        try:
            yield f"retry: 2000\n{self._message('hello', {})}"
            if last_id is not None and last_id != self._id():
                yield self._message(RESYNC, {})
            while not self._closed:
                waiting = await reader.take(PING_S)
                if not waiting:
                    yield ": still here\n\n"
                for name, data in waiting.items():
                    yield self._message(name, data)
                await asyncio.sleep(self._pause_s)
        finally:
            self.leave(reader)

    def _id(self) -> str:
        return f"{self._server}-{self._count}"

    def _message(self, name: str, data: Any) -> str:
        return f"id: {self._id()}\nevent: {name}\ndata: {json.dumps(data)}\n\n"
