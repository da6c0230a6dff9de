"""Real trainings among the stand-ins: each is killed in a phase, and queued again until it is through."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from toolkit.paths import ROOT
from toolkit.runs.layout import RunFolder
from toolkit.runs.metrics import read_metrics
from toolkit.runs.status import Phase, read_status
from web.launchers.attempt import AttemptFolder

PHASES: tuple[Phase, ...] = ("loading", "caching", "training", "saving", "sampling")
REAL_STEPS = 16
_LOOK_S = 0.004


def real_process(output: Path) -> dict[str, Any]:
    """A LoRA of the embedded model that passes through every phase: caches, steps, saves, previews."""
    return {
        "type": "sd_trainer", "training_folder": str(output), "device": "cpu",
        "model": {"name_or_path": "tiny-sd"}, "network": {"type": "lora", "linear": 4},
        "datasets": [{"folder_path": str(ROOT / "datasets" / "drawings"), "caption_ext": "txt",
                      "resolution": 32, "cache_latents": True}],
        "train": {"steps": REAL_STEPS, "batch_size": 2, "dtype": "fp32", "num_threads": 1},
        "save": {"save_every": 4},
        "sample": {"prompts": ["a red circle", "a blue square"], "sample_every": 8, "width": 32, "height": 32,
                   "sample_steps": 6, "sampler": "ddim"},
    }  # fmt: skip


class PhaseKiller:
    """Kills each real training once when it is in its phase, on a thread of its own.

    note(job, attempt, who) is called before a process is killed; done counts by phase.
    """

    def __init__(self, folder: Path, note: Callable[[str, int, str], None]) -> None:
        self.folder, self.note = folder, note
        self.done: Counter[str] = Counter()
        self._wanted: dict[str, tuple[str, Phase]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def add(self, job_id: str, name: str) -> None:
        """Kill this one too."""
        self._wanted[job_id] = (name, PHASES[len(self._wanted) % len(PHASES)])

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Watch no more."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            for job_id, (name, phase) in list(self._wanted.items()):
                path = self.folder / "output" / name / "status.json"
                with suppress(OSError):
                    status = read_status(path)
                    if status is not None and status.phase == phase and self._kill(job_id, path, phase):
                        del self._wanted[job_id]

    def _is_due(self, path: Path, phase: Phase, process: int) -> bool:
        status = read_status(path)
        if (
            status is None or status.pid != process or status.phase != phase
        ):  # of this attempt, not of one before
            return False
        return phase != "training" or status.step >= 5  # there is a checkpoint to go on from

    def _kill(self, job_id: str, path: Path, phase: Phase) -> bool:
        root = self.folder / "data" / "jobs"
        number = max((int(each.name) for each in (root / job_id).iterdir() if each.name.isdigit()), default=0)
        owners = AttemptFolder(root, job_id, number).owners() if number else None
        child = None if owners is None else owners.child
        if child is None or not self._is_due(path, phase, child.pid) or not child.is_running():
            return False
        self.note(job_id, number, "child")
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        self.done[f"killed while {phase}"] += 1
        return True


def real_steps(folder: Path) -> int:
    """The steps that a training has behind it: all of them only once its model is there."""
    rows = [row["step"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    whole = (folder / f"{folder.name}.safetensors").is_file()
    return max(rows, default=0) if whole or max(rows, default=0) < REAL_STEPS else REAL_STEPS - 1


def real_attempts(folder: Path, name: str) -> Iterator[tuple[float, float, str]]:
    """First and last sign of life of each attempt that made a step."""
    times: dict[int, list[float]] = defaultdict(list)
    for row in _rows(RunFolder(folder.parent, folder.name)):
        times[row["attempt"]].append(row["time"])
    for attempt, seen in times.items():
        yield min(seen), max(seen), f"{name} (attempt {attempt})"


def _rows(run: RunFolder) -> list[dict[str, Any]]:
    if not run.metrics_path.exists():
        return []
    found = []
    for line in run.metrics_path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            row = json.loads(line)
            if "loss" in row:
                found.append(row)
    return found
