"""Who is signed in: a session cookie kept by the server, or the token itself as Bearer."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import deque
from http.cookies import CookieError, SimpleCookie

from sqlalchemy import delete, insert, select, update

from web.database import Database
from web.schema import sessions
from web.security.http import Scope, header, headers

COOKIE = "aitk_session"
IDLE_S = 12 * 3600.0
_SEEN_EVERY_S = 60.0
_PER_CLIENT, _ALTOGETHER, _WINDOW_S = 5, 30, 60.0


def cookie_value(scope: Scope, name: str) -> str | None:
    """The value of a cookie of the request, or None."""
    for line in headers(scope, b"cookie"):
        try:
            cookies = SimpleCookie(line)
        except CookieError:
            continue
        for key in (name, f"__Host-{name}"):
            if key in cookies:
                return cookies[key].value
    return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class Sessions:
    """Checks credentials against the token; without one everybody is signed in."""

    def __init__(self, database: Database, token: str | None) -> None:
        self.database = database
        self._token_hash = None if token is None else _digest(token)

    @property
    def required(self) -> bool:
        """Whether there is a token at all."""
        return self._token_hash is not None

    def is_token(self, text: str) -> bool:
        """Whether `text` is the token; takes as long whatever it is."""
        return self._token_hash is not None and secrets.compare_digest(_digest(text), self._token_hash)

    def open(self) -> str:
        """A new session; the value of its cookie, of which only a hash is kept."""
        value, now = secrets.token_urlsafe(32), time.time()
        with self.database.write() as tx:
            tx.execute(delete(sessions).where(sessions.c.seen_at < now - IDLE_S))
            row = {
                "id_hash": _digest(value),
                "token_hash": self._token_hash,
                "created_at": now,
                "seen_at": now,
            }
            tx.execute(insert(sessions).values(row))
        return value

    def close(self, value: str) -> None:
        """End a session."""
        with self.database.write() as tx:
            tx.execute(delete(sessions).where(sessions.c.id_hash == _digest(value)))

    def is_open(self, value: str) -> bool:
        """Whether a cookie is that of a session in use; notes that it was seen, once a minute."""
        query = select(sessions).where(sessions.c.id_hash == _digest(value))
        with self.database.read() as connection:
            row = connection.execute(query).one_or_none()
        now = time.time()
        if row is None or row.token_hash != self._token_hash or row.seen_at < now - IDLE_S:
            return False
        if now - row.seen_at > _SEEN_EVERY_S:
            with self.database.write() as tx:
                tx.execute(update(sessions).where(sessions.c.id_hash == row.id_hash).values(seen_at=now))
        return True

    def is_signed_in(self, scope: Scope) -> bool:
        """Whether a request carries the token as Bearer, or the cookie of a session."""
        if not self.required:
            return True
        kind, _, token = (header(scope, b"authorization") or "").partition(" ")
        if kind.lower() == "bearer":
            return self.is_token(token.strip())
        value = cookie_value(scope, COOKIE)
        return value is not None and self.is_open(value)


class LoginLimit:
    """At most 5 wrong tokens a minute from one address, 30 from all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed: deque[tuple[float, str]] = deque()

    def wait(self, client: str) -> int:
        """Seconds until this client may try again; 0 for now."""
        now = time.monotonic()
        with self._lock:
            while self._failed and self._failed[0][0] < now - _WINDOW_S:
                self._failed.popleft()
            own = [at for at, who in self._failed if who == client]
            for tries, most in ((own, _PER_CLIENT), ([at for at, _ in self._failed], _ALTOGETHER)):
                if len(tries) >= most:
                    return max(1, int(tries[-most] + _WINDOW_S - now) + 1)
        return 0

    def failed(self, client: str) -> None:
        """Note a wrong token."""
        with self._lock:
            self._failed.append((time.monotonic(), client))
