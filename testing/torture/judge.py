"""What must hold after the torture of the queue, whatever was done to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from testing.torture.real_runs import real_attempts, real_steps
from web.launchers.local import marked
from web.queue.states import FOLLOWERS

Interval = tuple[float, float, str]  # first and last sign of life, and whose


def judge(
    given: Mapping[str, dict[str, Any]], jobs: list[dict[str, Any]],
    events: Mapping[str, list[dict[str, Any]]], queue: dict[str, Any], *,
    folder: Path, kills: Mapping[tuple[str, int], set[str]], stops: Mapping[str, set[str]],
) -> list[str]:  # fmt: skip
    """Everything that is wrong; empty if nothing is."""
    found = [f"{name} is not there" for name in set(given) - {job["id"] for job in jobs}]
    found += [f"{lane['device']} is held by {lane['job_id']}" for lane in queue["lanes"] if lane["job_id"]]
    by_device: dict[str, list[Interval]] = defaultdict(list)
    for job in jobs:
        told = given[job["id"]]
        place = folder / "output" / told["name"]
        real = told.get("real", False)
        runs = list(
            real_attempts(place, told["name"]) if real else attempts(place / "marks.txt", told["name"])
        )
        found += [f"{told['name']} ran twice at once: {line}" for line in overlaps(runs)]
        for device in told["devices"]:
            by_device[device] += runs
        found += [f"{told['name']}: {line}" for line in chain_faults(events[job["id"]])]
        truth = untruth(job, told, place, kills, stops[job["id"]])
        found += [f"{told['name']} {job['status']} ({job['reason']}): {truth}"] if truth else []
        for attempt in range(1, job["attempt"] + 1):
            left = [process.pid for process in marked(f"{job['id']}.{attempt}")]
            found += [f"{told['name']} left processes {left}"] if left else []
    for device, runs in by_device.items():
        found += [f"{device} was used twice at once: {line}" for line in overlaps(runs)]
    return found


def attempts(path: Path, name: str) -> Iterator[Interval]:
    """The time from first to last step of each process that ran a job."""
    times: dict[str, list[float]] = defaultdict(list)
    if path.exists():
        for line in path.read_text().splitlines():
            pid, at, _step = line.split()
            times[pid].append(float(at))
    for pid, seen in times.items():
        yield min(seen), max(seen), f"{name} ({pid})"


def overlaps(intervals: list[Interval]) -> list[str]:
    """Pairs of neighbours in time that overlap."""
    ordered = sorted(intervals)
    return [f"{a[2]} and {b[2]}" for a, b in pairwise(ordered) if b[0] <= a[1]]


def chain_faults(events: list[dict[str, Any]]) -> Iterator[str]:
    """Transitions that do not follow one another, or that are not allowed."""
    state = None
    for event in events:
        if event["to_status"] is None:
            continue
        if event["from_status"] != state:
            yield f"was {state}, then went from {event['from_status']}"
        if state is not None and event["to_status"] not in FOLLOWERS[state]:
            yield f"went from {state} to {event['to_status']}"
        state = event["to_status"]


def untruth(
    job: dict[str, Any], told: Mapping[str, Any], folder: Path,
    kills: Mapping[tuple[str, int], set[str]], stops: set[str],
) -> str | None:  # fmt: skip
    """Why the state of a job cannot be true, or None."""
    saved = folder / "step.txt"
    marked_step = int(saved.read_text()) if saved.exists() else 0
    step = real_steps(folder) if told.get("real") else marked_step
    whole = step == told["steps"]
    killed = kills.get((job["id"], job["attempt"]), set())
    status = job["status"]
    if status == "completed":
        return None if whole and not told["exit"] else f"only {step} of {told['steps']} steps were made"
    if status == "stopped":
        return None if stops else "nobody asked it to stop"
    if status == "failed":
        if job["exit"]["signal"] is not None:
            return None if "child" in killed else f"nobody killed it in attempt {job['attempt']}"
        return None if told["exit"] and whole else "it was not told to fail"
    if status == "lost":
        return None if "shim" in killed else "its shim was left alone"
    return "it has not ended"
