"""How the benchmarks measure: ratios against a bare baseline in one process, taken in turns.

On a machine that does other things too, times move by factors while ratios of neighbours hold. So all
variants run in rotating order, round by round, and every round gives its own ratios; reported are their
median and quartiles. The baseline is there twice (A/A): its ratio to itself shows what this machine can
tell apart today. CPU time of the process (threads included) is what other processes disturb least; on a GPU
only the clock counts.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

BARE, AGAIN = "bare", "bare again"


@dataclass
class Times:
    """Seconds of every round: CPU time of the process, and time on the clock."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


class Stopwatch:
    """Times blocks of work; waits for the device at both ends."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._cuda = device if device is not None and device.type == "cuda" else None
        self.start()

    def start(self) -> None:
        """Begin a block."""
        self._wait()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self, times: Times, count: int = 1) -> None:
        """End a block of so many pieces."""
        self._wait()
        times.cpu.append((time.process_time() - self._cpu) / count)
        times.wall.append((time.perf_counter() - self._wall) / count)

    def _wait(self) -> None:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of the ratios of neighbouring rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio(ours: list[float], bare: list[float]) -> Ratio:
    """The ratios round by round. Raises ValueError unless both have the same rounds."""
    pairs = sorted(a / b for a, b in zip(ours, bare, strict=True))
    low, median, high = statistics.quantiles(pairs * 2 if len(pairs) == 1 else pairs, n=4, method="inclusive")
    return Ratio(round(median, 4), round(low, 4), round(high, 4))


@dataclass(frozen=True)
class Row:
    """One measured ratio. control: of the baseline to itself. higher_is_better: of speeds, not of times."""

    name: str
    ratio: Ratio
    wall_ratio: Ratio
    control: Ratio
    ours_ms: float
    bare_ms: float
    goal: float | None = None
    higher_is_better: bool = False

    @property
    def verdict(self) -> str:
        """Whether the goal is reached: "yes", "no", or "too close": nearer than the baseline is to itself."""
        missing = 0.0 if self.goal is None else self.ratio.median - self.goal
        missing = -missing if self.higher_is_better else missing
        noise = (self.control.high - self.control.low) / 2
        return "yes" if missing <= 0 else "too close" if missing <= noise else "no"

    def __str__(self) -> str:
        sign = ">=" if self.higher_is_better else "<="
        goal = "" if self.goal is None else f"; goal {sign} {self.goal}: {self.verdict}"
        times = f"{self.ours_ms:.1f} ms against {self.bare_ms:.1f} ms"
        ratios = f"{self.ratio} x, by the clock {self.wall_ratio} x, A/A {self.control}"
        return f"{self.name}: {ratios}; {times}{goal}"


@contextmanager
def caches_in(folder: Path) -> Iterator[None]:
    """Let caches of this process and its children lie in `folder`, not among the user's."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def take_turns(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 2,
    device: torch.device | None = None,
) -> dict[str, Times]:
    """The times of all variants on one thread, in rotating order; the first rounds are not counted."""
    torch.set_num_threads(1)
    names = list(variants)
    times = {name: Times() for name in names}
    watch = Stopwatch(device)
    for number in range(warm_up + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            watch.start()
            variants[name]()
            watch.stop(times[name] if number >= warm_up else Times())
    return times


def make_row(
    name: str,
    ours: Times,
    bare: Times,
    again: Times,
    *,
    clock: str = "cpu",
    goal: float | None = None,
    speed: bool = False,
) -> Row:
    """Ours against the baseline: of times, or (speed) of speeds. clock: "cpu" or "wall", for the ratio."""

    def of(kind: str) -> Ratio:
        a, b = getattr(ours, kind), getattr(bare, kind)
        return ratio(b, a) if speed else ratio(a, b)

    return Row(
        name,
        ratio=of(clock),
        wall_ratio=of("wall"),
        control=ratio(getattr(again, clock), getattr(bare, clock)),
        ours_ms=round(1000 * statistics.median(getattr(ours, clock)), 3),
        bare_ms=round(1000 * statistics.median(getattr(bare, clock)), 3),
        goal=goal,
        higher_is_better=speed,
    )


def report(rows: list[Row], **more: object) -> int:
    """Print every row for people and one line of JSON for programs; 1 if a goal was missed, else 0."""
    for row in rows:
        print(row)
    print(json.dumps({"rows": [asdict(row) for row in rows], **more}))
    return int(any(row.verdict == "no" for row in rows))
