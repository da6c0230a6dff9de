"""What the web server costs against bare loops, as ratios of CPU time taken in turns.

    python -m testing.benchmarks.bench_web [--quick] [--only routes|page]

routes: JSON routes of a server, with its middleware and database, against a bare FastAPI app whose routes
return the same content; both are processes of their own behind one keep-alive connection, and their own CPU
time counts: ratios are of requests per second of CPU. page: the first 50 of 10,000 jobs against their bare
indexed SELECT and encoding. slices: the end of a log and of metrics of 1,000,000 steps, once indexed, against
the bare read of the same. stream: the share of a core that 100 idle listeners take. import: of web.app
against its libraries.
"""

from __future__ import annotations

import argparse
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from testing.benchmarks.measuring import AGAIN, BARE, Row, Times, make_row, report, take_turns
from testing.benchmarks.web_kit import (
    FIRST_STEP,
    Scene,
    asgi_get,
    bare_server,
    free_port,
    listeners,
    our_server,
)

OURS = "ours"
REPEAT = 20  # requests in a row


def routes(scene: Scene, *, requests: int, rounds: int) -> list[Row]:
    """Every JSON route that pages ask for often."""
    rows = []
    with our_server(scene) as (ours, server):
        contents = {path: _get(ours, path) for path in scene.routes}
        with bare_server(scene.folder, contents) as (bare, other):
            places = {path: f"/{number}" for number, path in enumerate(contents)}
            for path, place in places.items():
                times = {name: Times() for name in (OURS, BARE, AGAIN)}
                turns: list[tuple[str, HTTPConnection, psutil.Process, str]] = [
                    (BARE, bare, other, place), (OURS, ours, server, path), (AGAIN, bare, other, place),
                ]  # fmt: skip
                for number in range(rounds + 1):
                    for name, connection, process, where in turns:
                        took = _cpu_of(
                            process, lambda c=connection, w=where: [_get(c, w) for _ in range(requests)]
                        )
                        if number:  # the first round warms up
                            times[name].cpu.append(took[0] / requests)
                            times[name].wall.append(took[1] / requests)
                name = f"requests per second of {scene.named(path)}"
                rows.append(make_row(name, times[OURS], times[BARE], times[AGAIN], goal=0.5, speed=True))
    return rows


def _get_often(connection: HTTPConnection, path: str, count: int) -> None:
    for _ in range(count):
        _get(connection, path)


def _get(connection: HTTPConnection, path: str) -> bytes:
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        answer = connection.getresponse()
    except RemoteDisconnected:  # it was idle for long while the other was measured
        connection.close()
        return _get(connection, path)
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {body[:200]!r}")
    return body


def _cpu_of(process: psutil.Process, work: Callable[[], object]) -> tuple[float, float]:
    """CPU time of another process, and time on the clock, while `work` is done here."""

    def spent() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    before, start = spent(), time.perf_counter()
    work()
    return max(spent() - before, 1e-3), time.perf_counter() - start  # the system counts in 10 ms


def page(scene: Scene, *, rounds: int) -> list[Row]:
    """The first page of all jobs, as JSON and as HTML; bare is its SELECT, and its JSON or template."""
    app = scene.app()
    connection = sqlite3.connect(scene.database)
    select = "SELECT * FROM jobs ORDER BY {} DESC, id DESC LIMIT 51"
    names = [column[1] for column in connection.execute("PRAGMA table_info(jobs)")]

    def read(column: str) -> list[dict[str, Any]]:
        return [dict(zip(names, row, strict=True)) for row in connection.execute(select.format(column))]

    pages: Any = app.state.services.pages
    template, context = _rendered(pages, asgi_get(app, "/jobs", "text/html"))

    def html() -> str:
        read("updated_at")
        return str(template.render(context))

    rows = []
    for what, accept, path, bare in (
        ("JSON", "application/json", "/api/jobs?limit=50", lambda: json.dumps(read("created_at"))),
        ("HTML", "text/html", "/jobs", html),
    ):
        ours = asgi_get(app, path, accept, count=REPEAT)
        name = f"first page of {scene.num_jobs:,} jobs, {what}"
        rows.append(_row(name, ours, bare, rounds=rounds, goal=3.0))
    connection.close()
    return rows


def _rendered(pages: Any, ask: Callable[[], object]) -> tuple[Any, dict[str, Any]]:
    """The template that answers, and all that it is given."""
    seen: list[tuple[Any, dict[str, Any]]] = []
    original = type(pages).page

    def page_(self: Any, request: Any, template: str, context: Any, **options: Any) -> Any:
        seen.append((self.environment.get_template(template), {**self._shared(request.scope), **context}))
        return original(self, request, template, context, **options)

    with mock.patch.object(type(pages), "page", page_):
        ask()
    return seen[0]


def slices(scene: Scene, *, rounds: int) -> list[Row]:
    """The end of a long log and of long metrics."""
    app, size, count = scene.app(), 256 * 1024, 2000

    def log() -> str:
        with scene.log.open("rb") as file:
            file.seek(-size, 2)
            return json.dumps({"text": file.read().decode()})

    def metrics() -> str:
        with scene.metrics.open("rb") as file:
            file.seek(-count * scene.row_bytes, 2)
            rows = [json.loads(line) for line in file.read().splitlines()]
        return json.dumps({"series": {"loss": [[row["step"], row["time"], row["loss"]] for row in rows]}})

    since = FIRST_STEP + scene.num_steps - count - 1
    job = f"/api/jobs/{scene.long_job}"
    end_of_log = asgi_get(app, f"{job}/log?max={size}", count=REPEAT)
    end_of_metrics = asgi_get(app, f"{job}/metrics?keys=loss&since_step={since}", count=REPEAT)
    steps = f"metrics, last {count:,} of {scene.num_steps:,} steps"
    return [
        _row("log, last 256 KiB", end_of_log, log, rounds=rounds, goal=3.0),
        _row(steps, end_of_metrics, metrics, rounds=rounds, goal=3.0),
    ]


def _row(
    name: str, ours: Callable[[], object], bare: Callable[[], object], *, rounds: int, goal: float
) -> Row:
    """ours: does its work REPEAT times; bare: once."""

    def bare_often() -> None:
        for _ in range(REPEAT):
            bare()

    taken = take_turns({BARE: bare_often, OURS: ours, AGAIN: bare_often}, rounds=rounds)
    return make_row(name, taken[OURS], taken[BARE], taken[AGAIN], goal=goal)


def stream(scene: Scene, *, seconds: float, count: int = 100) -> dict[str, float]:
    """Share of a core that idle listeners take, beside that of a server without any."""
    with our_server(scene) as (_, process):
        port = scene.port
        time.sleep(3)
        alone, _ = _cpu_of(process, lambda: time.sleep(seconds))
        with listeners(port, count):
            time.sleep(2)
            taken, _ = _cpu_of(process, lambda: time.sleep(seconds))
    return {"listeners": count, "core_share": taken / seconds, "core_share_alone": alone / seconds}


def imports(*, rounds: int) -> Row:
    """What starting costs before anything is served."""

    def run(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    codes = {BARE: "import fastapi, sqlalchemy, jinja2", OURS: "import web.app"}
    times = {name: Times() for name in (*codes, AGAIN)}
    for number in range(rounds + 1):
        for name in times:
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            run(codes[BARE if name == AGAIN else name])()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if number:
                cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                times[name].cpu.append(cpu)
                times[name].wall.append(time.perf_counter() - start)
    return make_row("import web.app", times[OURS], times[BARE], times[AGAIN], goal=2.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a goal was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small and few, for a look and for the tests")
    parser.add_argument("--only", choices=["routes", "page"], help="only these")
    arguments = parser.parse_args(argv)
    quick, only = arguments.quick, arguments.only
    with tempfile.TemporaryDirectory() as name:
        sizes = (
            {"num_jobs": 200, "num_steps": 20_000} if quick else {"num_jobs": 10_000, "num_steps": 1_000_000}
        )
        scene = Scene(Path(name), port=free_port(), **sizes)
        rows = []
        if only != "page":
            rows += routes(scene, requests=20 if quick else 300, rounds=2 if quick else 9)
        if only != "routes":
            rows += page(scene, rounds=2 if quick else 15)
        if only is not None:
            return 0 if quick else report(rows)
        rows += slices(scene, rounds=2 if quick else 15)
        rows.append(imports(rounds=1 if quick else 5))
        idle = stream(scene, seconds=2 if quick else 20)
    print(f"{idle['listeners']} idle listeners take {idle['core_share']:.1%} of a core; goal <= 5 %")
    missed = report(rows, stream=idle)
    return 0 if quick else max(missed, int(idle["core_share"] > 0.05))


if __name__ == "__main__":
    raise SystemExit(main())
