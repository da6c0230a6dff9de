"""python -m testing.torture.queue --jobs 200: the queue while what it is made of is killed at random.

Short jobs on three lanes, real trainings among them; SIGKILL for the server, a shim, a job or both, and stops
of every kind, at random moments; each training is also killed in one of its phases, and queued again.
Afterwards: no job ran twice at once and no device two jobs at once, none is lost or stuck, no device is held,
no process is left, and each job's state is what really happened to it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from testing.torture.judge import judge
from testing.torture.real_runs import REAL_STEPS, PhaseKiller, real_process
from toolkit.paths import ROOT
from web.launchers.attempt import AttemptFolder

FINAL = {"completed", "stopped", "failed", "lost"}
DEVICES = (["gpu:0"], ["gpu:1"], ["cpu:0"], ["gpu:0", "gpu:1"])
STEPS = 12
ATTEMPTS = 4  # of a real training, at most


class Torture:
    """A server over a folder, the jobs given to it, and what was done to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.port = _free_port()
        self.server: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20, trust_env=False)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.kills: dict[tuple[str, int], set[str]] = defaultdict(set)
        self.stops: dict[str, set[str]] = defaultdict(set)
        self.done: Counter[str] = Counter()
        self.killer = PhaseKiller(folder, lambda job, attempt, who: self.kills[job, attempt].add(who))

    # -- the server ---------------------------------------------------------------------------------

    def start_server(self) -> None:
        """Start a server and wait until it answers."""
        command = [sys.executable, "-m", "testing.torture.server", str(self.folder), str(self.port)]
        log = (self.folder / "server.log").open("ab")
        self.server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(httpx.HTTPError):
                if self.client.get("/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError("the server does not answer: " + (self.folder / "server.log").read_text()[-2000:])

    def kill_server(self) -> None:
        """SIGKILL; another one takes its place a moment later."""
        assert self.server is not None
        self.server.kill()
        self.server.wait()
        self.done["server killed"] += 1
        time.sleep(self.random.uniform(0, 0.5))
        self.start_server()

    # -- the jobs -----------------------------------------------------------------------------------

    def add(self, number: int, *, real: bool) -> None:
        """A job of random length on random devices, some of which fail by themselves; or a real training."""
        name = f"job{number:04d}"
        devices = self.random.choices(DEVICES, weights=(3, 3, 3, 1))[0]
        meta = {
            "steps": self.random.randint(1, STEPS),
            "seconds": 0.05,
            "exit": int(self.random.random() < 0.1),
        }
        if real:
            meta = {"real": True, "steps": REAL_STEPS, "exit": 0}
        process = real_process(self.folder / "output") | (
            {} if real else {"train": {"steps": 4, "dtype": "fp32"}}
        )
        config = {"job": "train", "config": {"name": name, "process": [process]}, "meta": meta}
        made = self.client.post("/api/jobs", json={"config": config, "devices": devices})
        made.raise_for_status()
        job_id = made.json()["id"]
        self.jobs[job_id] = {"name": name, "devices": devices, "real": real, **meta}
        if real:
            self.killer.add(job_id, name)
        self.client.post(f"/api/jobs/{job_id}/enqueue", json={}).raise_for_status()

    def all_jobs(self) -> list[dict[str, Any]]:
        """Every job as the API shows it."""
        found, cursor = [], None
        while True:
            page = self.client.get(
                "/api/jobs", params={"limit": 500, **({"cursor": cursor} if cursor else {})}
            )
            page.raise_for_status()
            found += page.json()["jobs"]
            cursor = page.json()["next_cursor"]
            if cursor is None:
                return found

    # -- the torture --------------------------------------------------------------------------------

    def hurt(self) -> None:
        """Do one bad thing."""
        if self.random.random() < 0.12:
            self.kill_server()
            return
        query = {"status": ["starting", "running", "stopping"]}
        active = self.client.get("/api/jobs", params=query).json()["jobs"]
        # A training needs seconds to get to the phase that it is to be killed in.
        active = [job for job in active if not self.jobs[job["id"]]["real"] or self.random.random() < 0.05]
        if not active:
            return
        job = self.random.choice(active)
        if self.random.random() < 0.5:
            self._stop(job)
        else:
            self._kill(job)

    def _stop(self, job: dict[str, Any]) -> None:
        mode = self.random.choice(["save", "save", "now", "kill"])
        requeue = self.random.random() < 0.5
        answer = self.client.post(f"/api/jobs/{job['id']}/stop", json={"mode": mode, "requeue": requeue})
        if answer.status_code == 202:
            self.stops[job["id"]].add(mode)
            self.done[f"stop {mode}"] += 1

    def _kill(self, job: dict[str, Any]) -> None:
        owners = AttemptFolder(self.folder / "data" / "jobs", job["id"], job["attempt"]).owners()
        if owners is None or owners.shim is None:
            return
        who = self.random.choice(["shim", "child", "both"])
        for name in ("shim", "child"):
            victim = getattr(owners, name)
            if who not in (name, "both") or victim is None or not victim.is_running():
                continue
            # Noted before: it may be looked at before we come to note it.
            self.kills[job["id"], job["attempt"]].add(name)
            with suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
            self.done[f"{name} killed"] += 1

    def again(self, jobs: list[dict[str, Any]]) -> bool:
        """Queue real trainings that did not get through once more; whether there were any."""
        ended = [job for job in jobs if job["status"] in FINAL - {"completed"} and job["attempt"] < ATTEMPTS]
        found = [job for job in ended if self.jobs[job["id"]]["real"]]
        for job in found:
            self.client.post(f"/api/jobs/{job['id']}/enqueue", json={}).raise_for_status()
            self.done["real queued again"] += 1
        return bool(found)

    def run(self, count: int, real: int, limit_s: float, pause_s: float) -> list[dict[str, Any]]:
        """Queue the jobs, hurt them until all have ended; the jobs then."""
        self.start_server()
        chosen = set(self.random.sample(range(count), real))
        for number in range(count):
            self.add(number, real=number in chosen)
        self.killer.start()
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            time.sleep(self.random.uniform(0, 2 * pause_s))
            jobs = self.all_jobs()
            with suppress(httpx.TransportError):
                if not self.again(jobs) and all(job["status"] in FINAL for job in jobs):
                    return jobs
                self.hurt()
        return self.all_jobs()

    def close(self) -> None:
        """End the server."""
        self.killer.close()
        if self.server is not None:
            self.server.kill()
            self.server.wait()
        self.client.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m testing.torture.queue", description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--real", type=int, default=30, help="how many of them are trainings by run.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--pause", type=float, default=0.4, help="seconds between two bad things, on average")
    parser.add_argument("--keep", help="work in this folder and leave it")
    wanted = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="aitk-torture-") as temporary:
        folder = Path(wanted.keep or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        torture = Torture(folder, wanted.seed)
        started = time.monotonic()
        try:
            jobs = torture.run(wanted.jobs, wanted.real, 60 * wanted.minutes, wanted.pause)
            events = {
                job["id"]: torture.client.get(f"/api/jobs/{job['id']}/events").json()["events"]
                for job in jobs
            }
            queue = torture.client.get("/api/queue").json()
        finally:
            torture.close()
        found = judge(
            torture.jobs, jobs, events, queue, folder=folder, kills=torture.kills, stops=torture.stops
        )
        spent = time.monotonic() - started
    states = Counter(job["status"] for job in jobs)
    attempts = sum(job["attempt"] for job in jobs)
    print(f"{len(jobs)} jobs, {attempts} attempts, {spent:.0f} s; {dict(states)}; "
          f"{dict(torture.done + torture.killer.done)}")  # fmt: skip
    for line in found:
        print(f"wrong: {line}")
    if found:
        print(json.dumps({"seed": wanted.seed}))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
