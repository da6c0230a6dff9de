"""Which Host a request may name, and from which pages a request that changes something may come.

A page of another site can make a browser send requests here. Under another name for this address (DNS
rebinding) it could even read the answers, so names are allowed one by one; an address in digits is safe.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from web.security.http import SAFE_METHODS, ASGIApp, Receive, Scope, Send, header, headers, refuse
from web.security.sessions import COOKIE, cookie_value

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(\d{1,5}))?", re.ASCII)


def parse_host(text: str) -> tuple[str, int | None] | None:
    """(host in small letters, port) of a Host header; None if it is not one.

    >>> parse_host("LOCALHOST:8675")
    ('localhost', 8675)
    """
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    port = None if match[2] is None else int(match[2])
    if port is not None and not 0 < port < 65536:
        return None
    return match[1].lower(), port


def is_allowed_host(host: str, allowed: frozenset[str]) -> bool:
    """Whether a host (no port) is localhost, an address in digits, or one of the allowed names."""
    if host == "localhost" or host in allowed:
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


class HostGuard:
    """400 for a request whose Host is missing, doubled, malformed or not allowed; reads included."""

    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        self.app, self.allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        found = headers(scope, b"host")
        parsed = parse_host(found[0]) if len(found) == 1 else None
        if parsed is None or not is_allowed_host(parsed[0], self.allowed):
            text = "this name of the server is not allowed; list it in AI_TOOLKIT_ALLOWED_HOSTS"
            await refuse(scope, receive, send, 400, "web.bad_host", text)
            return
        await self.app(scope, receive, send)


class OriginGuard:
    """403 for a request that changes something and was sent by a page of another site.

    Browsers say so in Sec-Fetch-Site, or (over plain http to another machine) in Origin. A request with
    neither was not sent by a browser; it may pass unless it carries our cookie.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS and not comes_from_here(scope):
            text = "this request was sent by a page of another site"
            await refuse(scope, receive, send, 403, "web.cross_site", text)
            return
        await self.app(scope, receive, send)


def comes_from_here(scope: Scope) -> bool:
    """Whether a request was sent by one of our own pages, or by no page at all."""
    sites, origins = headers(scope, b"sec-fetch-site"), headers(scope, b"origin")
    if sites:
        return sites in (["same-origin"], ["none"])
    if origins:
        return len(origins) == 1 and _same_origin(origins[0], header(scope, b"host") or "")
    return cookie_value(scope, COOKIE) is None


def _same_origin(origin: str, host: str) -> bool:
    """Whether an Origin names the Host. A proxy may have ended TLS, so the scheme is not compared."""
    here = parse_host(host)
    if here is None:
        return False
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or parts.path or parts.query or "@" in parts.netloc:
        return False
    there = parse_host(parts.netloc)
    usual = 443 if parts.scheme == "https" else 80
    if there is None or there[0] != here[0]:
        return False
    return (port or usual) == here[1] or (here[1] is None and port in (None, usual))
