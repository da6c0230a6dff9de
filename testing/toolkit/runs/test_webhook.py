"""The webhook: what arrives, and that nothing it does can harm."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from toolkit.runs.webhook import post_json

SECRET = "/hooks/s3cret"


@contextmanager
def server(code: int = 200, pause_s: float = 0.0) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server on loopback that notes what it is sent: (address, requests)."""
    taken: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append({"path": self.path, "type": self.headers["Content-Type"], "json": json.loads(body)})
            time.sleep(pause_s)
            try:
                self.send_response(code)
                self.end_headers()
            except BrokenPipeError:
                pass  # the client did not wait

        def log_message(self, *arguments: Any) -> None:
            pass

    web = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}{SECRET}", taken
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def test_the_json_arrives():
    with server() as (url, taken):
        assert post_json(url, {"name": "foo", "step": 3}) is None
    assert taken == [{"path": SECRET, "type": "application/json", "json": {"name": "foo", "step": 3}}]


@pytest.mark.parametrize("code", [404, 500])
def test_a_refusal_is_told_without_the_address(code):
    with server(code) as (url, _):
        told = post_json(url, {})
    assert f"127.0.0.1 answered {code}" in told
    assert "s3cret" not in told


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = post_json(f"http://127.0.0.1:{port}{SECRET}", {})
    assert told == "127.0.0.1 cannot be reached: Connection refused"


def test_nobody_answers():
    with server(pause_s=2.0) as (url, _):
        began = time.monotonic()
        told = post_json(url, {}, timeout_s=0.2)
        assert time.monotonic() - began < 1.8
    assert "127.0.0.1" in told
    assert "s3cret" not in told


def test_an_answer_that_is_no_http():
    with socket.create_server(("127.0.0.1", 0)) as raw:

        def answer() -> None:
            client, _ = raw.accept()
            with client:
                client.recv(4096)
                client.sendall(b"nonsense\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        told = post_json(f"http://127.0.0.1:{raw.getsockname()[1]}{SECRET}", {})
        thread.join()
    assert "127.0.0.1" in told
    assert "s3cret" not in told
