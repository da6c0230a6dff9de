"""Stands in for run.py: keeps the contract of the run folder and computes nothing.

    python testing/torture/stand_in.py CONFIG --name=NAME

`meta:` of the config says how it behaves: steps, seconds (of a step), exit (its code), ignore (stops); with
real it is run.py itself. Each
step of each attempt is written to marks.txt with the process's number, so that a test can see whether two
ever ran at once.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import yaml

from toolkit.errors import EXIT_INTERRUPTED, EXIT_STOPPED, JobStopped
from toolkit.runs import atomic
from toolkit.runs.commands import CommandBox, StopRequest, start_of_attempt
from toolkit.runs.layout import RunFolder
from toolkit.runs.lock import RunLock
from toolkit.runs.metrics import MetricsWriter
from toolkit.runs.status import StatusWriter


def main(argv: list[str]) -> int:
    """Run; the exit code."""
    config = yaml.safe_load(Path(argv[0]).read_text(encoding="utf-8"))
    if (config.get("meta") or {}).get("real"):  # no stand-in is wanted
        os.execv(sys.executable, [sys.executable, "run.py", *argv])  # noqa: S606 - our own program
    name = argv[1].removeprefix("--name=")
    wanted = {"steps": 5, "seconds": 0.05, "exit": 0, "ignore": False, **(config.get("meta") or {})}
    process = config["config"]["process"][0]
    folder = RunFolder(Path(process["training_folder"]), name)
    folder.create()
    try:
        with RunLock(folder.lock_path):
            return run(folder, wanted)
    except JobStopped as stop:
        sys.stdout.write(f"stopped: {stop}\n")
        return EXIT_STOPPED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def run(folder: RunFolder, wanted: dict) -> int:
    """The steps of an attempt, from where the last one got to."""
    saved = folder.path / "step.txt"
    start = int(saved.read_text()) if saved.exists() else 0
    with (
        MetricsWriter(folder.metrics_path) as metrics,
        StatusWriter(
            folder.status_path, job="train", name=folder.name, attempt=metrics.attempt,
            total_steps=wanted["steps"], interval=0.1,
        ) as status,
    ):  # fmt: skip
        box = CommandBox(folder.commands)
        box.clear(before=start_of_attempt())
        stop = StopRequest(box)
        with stop.install():
            sys.stdout.write(f"attempt {metrics.attempt} from step {start}\n")
            status.phase("training")
            for step in range(start + 1, wanted["steps"] + 1):
                with (folder.path / "marks.txt").open("a") as marks:
                    marks.write(f"{os.getpid()} {time.time():.6f} {step}\n")
                time.sleep(wanted["seconds"])
                atomic.write_text(saved, f"{step}", durable=False)
                status.tick(step, loss=1 / step)
                metrics.write(step, loss=1 / step)
                for name in ("save", "sample"):
                    if box.take(name):
                        (folder.path / f"{name}_{step}.txt").touch()
                if stop.requested and not wanted["ignore"]:
                    raise JobStopped(stop.reason)
        if wanted["exit"]:
            status.finish("failed", code=wanted["exit"], error=["it was told to fail"])
    return int(wanted["exit"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
