"""What bench_web measures: a server with much in it, bare servers and bare clients."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
from fastapi import FastAPI
from PIL import Image

from toolkit.paths import ROOT
from web.app import create_app
from web.doorbell import MOST_PER_CLIENT
from web.launchers.attempt import AttemptFolder
from web.settings import WebSettings

_START_S = 60.0
FIRST_STEP = 10**6  # so that all have the same number of digits
_BARE = """
import json, sys
import uvicorn
from fastapi import FastAPI
app = FastAPI()
def add(number, content):
    app.add_api_route(f"/{number}", lambda: content)
for number, content in enumerate(json.load(open(sys.argv[1]))):
    add(number, content)
uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


def free_port() -> int:
    """A port that nothing listens at."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Scene:
    """A server's folders: many jobs, one of which ran long, and twenty datasets. All of it in `folder`."""

    def __init__(self, folder: Path, *, port: int, num_jobs: int, num_steps: int) -> None:
        self.folder, self.port = folder, port
        self.num_jobs, self.num_steps = num_jobs, num_steps
        self.settings = WebSettings(
            data_root=folder / "data", output_root=folder / "output", datasets_root=folder / "datasets",
            devices=("gpu:0", "cpu:0"), schedule=False, port=port,
        )  # fmt: skip
        for number in range(20):
            place = folder / "datasets" / f"set {number}"
            place.mkdir(parents=True)
            for name in ("a", "b"):
                Image.new("RGB", (16, 16)).save(place / f"{name}.png")
                (place / f"{name}.txt").write_text(f"picture {name}", encoding="utf-8")
        self._fill()

    @property
    def database(self) -> Path:
        """The server's database."""
        return self.settings.database_path

    @cached_property
    def metrics(self) -> Path:
        """metrics.jsonl of the long run."""
        return self.folder / "output" / "long" / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What the long run printed."""
        return AttemptFolder(self.settings.jobs_root, self.long_job, 1).output_path

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of metrics: all have the same number."""
        return len(_row(0))

    @property
    def routes(self) -> list[str]:
        """The JSON routes that are measured."""
        job, since = f"/api/jobs/{self.long_job}", FIRST_STEP + self.num_steps - 201
        return [
            "/api/jobs?limit=20", "/api/jobs?limit=100", job, f"{job}/events", f"{job}/log?max=16384",
            f"{job}/metrics?keys=loss&since_step={since}", "/api/queue", "/api/datasets",
            "/api/eval_dataset", "/api/settings",
        ]  # fmt: skip

    def named(self, path: str) -> str:
        """A path without what differs from run to run."""
        return path.replace(self.long_job, "ID").replace(str(FIRST_STEP + self.num_steps - 201), "N")

    def app(self) -> FastAPI:
        """A server in this process."""
        return create_app(self.settings)

    def _fill(self) -> None:
        app = self.app()
        store = app.state.services.store
        config = (ROOT / "config" / "examples" / "demo.yml").read_text(encoding="utf-8")
        self.long_job = store.create("long", "train", config, ("cpu:0",)).id
        app.state.services.database.close()
        self.log.parent.mkdir(parents=True)
        self.metrics.parent.mkdir(parents=True)
        with self.metrics.open("wb") as file:
            file.writelines(_row(step) for step in range(self.num_steps))
        with self.log.open("w", encoding="utf-8") as file:
            file.writelines(f"step {step:07d}: loss 0.12345\n" for step in range(self.num_steps))
        with closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute(
                "UPDATE jobs SET status = 'completed', attempt = 1, run_folders = ?",
                (json.dumps([str(self.metrics.parent)]),),
            )
            (row,) = connection.execute("SELECT * FROM jobs").fetchall()
            names = [column[1] for column in connection.execute("PRAGMA table_info(jobs)")]
            copies = []
            for number in range(self.num_jobs - 1):
                values = dict(zip(names, row, strict=True))
                values |= {"id": secrets.token_hex(6), "name": f"job {number}", "status": "draft"}
                values |= {"created_at": values["created_at"] - number, "run_folders": "[]", "attempt": 0}
                copies.append(tuple(values.values()))
            marks = ", ".join("?" * len(names))
            connection.executemany(f"INSERT INTO jobs VALUES ({marks})", copies)  # noqa: S608 - own text


def _row(step: int) -> bytes:
    values = b'"attempt": 1, "time": 1790000000.0, "loss": 0.1234, "lr": 0.0001'
    return b'{"step": %07d, %b}\n' % (step + FIRST_STEP, values)


@contextmanager
def our_server(scene: Scene) -> Iterator[tuple[HTTPConnection, psutil.Process]]:
    """`python -m web` over a scene, and one connection to it."""
    environment = os.environ | {
        "AI_TOOLKIT_DATA": str(scene.settings.data_root), "AI_TOOLKIT_PORT": str(scene.port),
        "AI_TOOLKIT_OUTPUT": str(scene.settings.output_root), "AI_TOOLKIT_DEVICES": "cpu:0",
        "AI_TOOLKIT_DATASETS": str(scene.settings.datasets_root),
    }  # fmt: skip
    with _server([sys.executable, "-m", "web"], scene.port, environment) as found:
        yield found


@contextmanager
def bare_server(
    folder: Path, contents: Mapping[str, bytes]
) -> Iterator[tuple[HTTPConnection, psutil.Process]]:
    """A FastAPI app whose route /0, /1 … returns the first, second … content, and nothing else."""
    file, port = folder / "contents.json", free_port()
    file.write_text(json.dumps([json.loads(content) for content in contents.values()]), encoding="utf-8")
    with _server([sys.executable, "-c", _BARE, str(file), str(port)], port, dict(os.environ)) as found:
        yield found


@contextmanager
def _server(
    command: list[str], port: int, environment: dict[str, str]
) -> Iterator[tuple[HTTPConnection, psutil.Process]]:
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command} does not serve") from None
                time.sleep(0.1)
        with closing(HTTPConnection("127.0.0.1", port)) as connection:
            yield connection, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def listeners(port: int, count: int) -> Iterator[None]:
    """So many open streams of events."""
    with ExitStack() as stack:
        for number in range(count):
            source = (f"127.0.0.{2 + number // MOST_PER_CLIENT}", 0)  # one address may open only so many
            made = socket.create_connection(("127.0.0.1", port), source_address=source)
            connection = stack.enter_context(closing(made))
            connection.sendall(
                b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"
            )
            answer = connection.recv(200)
            if b"200" not in answer:
                raise RuntimeError(f"a listener was refused: {answer!r}")
        yield


def asgi_get(
    app: FastAPI, path: str, accept: str = "application/json", *, count: int = 1
) -> Callable[[], bytes]:
    """A function that asks an app in this process for a path, `count` times in a row; the last body."""
    where, _, query = path.partition("?")
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": where,
        "raw_path": where.encode(), "query_string": query.encode(), "scheme": "http", "root_path": "",
        "headers": [(b"host", b"127.0.0.1"), (b"accept", accept.encode())], "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
    }  # fmt: skip
    loop = asyncio.new_event_loop()

    async def ask() -> bytes:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        await app(dict(scope, state={}), receive, send)
        if sent[0]["status"] != 200:
            raise RuntimeError(f"{path}: {sent[0]['status']}")
        return b"".join(message.get("body", b"") for message in sent[1:])

    async def ask_all() -> bytes:
        # In one task: the threads that run routes live as long as it does.
        body = b""
        for _ in range(count):
            body = await ask()
        return body

    return lambda: loop.run_until_complete(ask_all())
