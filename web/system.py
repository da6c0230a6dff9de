"""What the machine is doing: GPUs as nvidia-smi tells, processors, memory and disks. Torch-free."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_FIELDS = (
    "index", "name", "temperature.gpu", "utilization.gpu", "memory.used", "memory.total", "power.draw",
    "power.limit", "fan.speed", "clocks.sm", "driver_version",
)  # fmt: skip
_MIB = 1024 * 1024
_FRESH_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU; None where it does not tell. Memory in bytes, temperature in °C, power in W, clock in MHz."""

    index: int
    name: str
    driver: str
    temperature: float | None
    load: float | None
    memory_used: float | None
    memory_total: float | None
    power: float | None
    power_limit: float | None
    fan: float | None
    clock: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system of a folder."""

    label: str
    path: str
    used: int
    total: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A moment. gpus None: there is no nvidia-smi, or it fails (gpu_note says how)."""

    gpus: list[Gpu] | None
    gpu_note: str
    cores: int
    load: float
    memory_used: int
    memory_total: int
    swap_used: int
    disks: list[Disk]


class Monitor:
    """Looks at the machine, at most once a second however many ask. Thread-safe."""

    def __init__(self, folders: Callable[[], Sequence[tuple[str, Path]]]) -> None:
        self._folders = folders
        self._lock = threading.Lock()
        self._seen: tuple[float, Machine] | None = None

    def look(self) -> Machine:
        """The machine as it is now."""
        with self._lock:
            now = time.monotonic()
            if self._seen is None or now - self._seen[0] > _FRESH_S:
                self._seen = (now, self._measure(first=self._seen is None))
            return self._seen[1]

    def _measure(self, *, first: bool) -> Machine:
        import psutil

        gpus, note = read_gpus()
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        return Machine(
            gpus=gpus, gpu_note=note, cores=psutil.cpu_count() or 1,
            load=psutil.cpu_percent(interval=0.1 if first else None),
            memory_used=memory.total - memory.available, memory_total=memory.total, swap_used=swap.used,
            disks=read_disks(self._folders()),
        )  # fmt: skip


def read_gpus(program: str | None = None) -> tuple[list[Gpu] | None, str]:
    """(GPUs, "") or (None, why they cannot be seen)."""
    found = program or shutil.which("nvidia-smi")
    if found is None:
        return None, "no nvidia-smi here"
    command = [found, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"nvidia-smi does not answer: {error}"
    if shown.returncode:
        return None, f"nvidia-smi: {(shown.stdout or shown.stderr).strip()[:200]}"
    return parse_gpus(shown.stdout), ""


def parse_gpus(text: str) -> list[Gpu]:
    """What nvidia-smi prints as CSV; lines that are none are left out."""
    found = []
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if len(row) != len(_FIELDS) or not row[0].strip().isdigit():
            continue
        numbers = [_number(value) for value in row]
        used, total = numbers[4], numbers[5]
        found.append(Gpu(
            index=int(row[0]), name=row[1], driver=row[10], temperature=numbers[2], load=numbers[3],
            memory_used=None if used is None else used * _MIB,
            memory_total=None if total is None else total * _MIB,
            power=numbers[6], power_limit=numbers[7], fan=numbers[8], clock=numbers[9],
        ))  # fmt: skip
    return found


def read_disks(folders: Sequence[tuple[str, Path]]) -> list[Disk]:
    """The file systems of (label, folder); two folders on one system are one entry."""
    found: dict[tuple[int, int], Disk] = {}
    for label, folder in folders:
        place = next((each for each in (folder, *folder.parents) if each.exists()), None)
        if place is None:
            continue
        try:
            usage, device = shutil.disk_usage(place), place.stat().st_dev
        except OSError:
            continue
        key = (device, usage.total)
        if key in found:
            label = f"{found[key].label}, {label}"
        found[key] = Disk(label=label, path=str(folder), used=usage.used, total=usage.total, free=usage.free)
    return list(found.values())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # [N/A], [Not Supported]
