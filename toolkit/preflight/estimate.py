"""What a run is predicted to need, as data for other programs and as lines for a person. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from toolkit.text import columns, size

TITLES = {
    "weights": "weights of the model",
    "trained_weights": "of these, weights that are trained",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "ema": "moving average",
    "saved_activations": "activations kept for the backward pass",
    "working": "working memory besides",
    "program": "the program itself",
}
# Parts that are counted in another one.
INCLUDED = ("trained_weights",)


@dataclass(frozen=True, slots=True)
class TimePart:
    """Something a run does `times` times, its seconds and FLOPs in all (None: not known)."""

    what: str
    times: int
    seconds: float | None
    flops: int | None = None


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What real steps of the largest bucket took. memory: as in Estimate, counted of live tensors.

    peak_device_bytes: the most that the device's allocator held; None on a CPU.
    """

    steps: int
    seconds_per_step: float
    wall_seconds_per_step: float
    loading_seconds: float
    memory: dict[str, int]
    peak_device_bytes: int | None = None


@dataclass(slots=True)
class Estimate:
    """Memory in bytes by part (see TITLES), and time. seconds are of the process's CPU time on a CPU.

    largest: the batch that the memory is of. measured: the share of the seconds of a step whose operations
    were timed here. available_bytes: memory of the card, or of the host. unprobed_seconds: what total_seconds
    was before real steps were measured, None without a probe.
    """

    device: str
    largest: str
    memory: dict[str, int]
    flops_per_step: int
    seconds_per_step: float
    flops_per_second: float
    measured: float
    time: list[TimePart]
    available_bytes: int | None = None
    remedies: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    probe: ProbeReport | None = None
    unprobed_seconds: float | None = None

    @property
    def peak_bytes(self) -> int:
        """Everything at once, at the worst moment of a step."""
        return sum(value for name, value in self.memory.items() if name not in INCLUDED)

    @property
    def total_seconds(self) -> float:
        """Seconds of a whole run, as far as its parts are known."""
        return sum(part.seconds or 0.0 for part in self.time)

    @property
    def fits(self) -> bool:
        """Whether it fits the memory there is, as far as that is known."""
        return self.available_bytes is None or self.peak_bytes <= self.available_bytes

    def as_json(self) -> dict[str, Any]:
        """The stable form for other programs."""
        values = asdict(self)
        return values | {
            "peak_bytes": self.peak_bytes, "total_seconds": self.total_seconds, "fits": self.fits,
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """The tables for a person."""
        yield f"memory on {self.device}, largest batch {self.largest}:"
        yield from (f"  {line}" for line in columns(list(self._memory_rows())))
        what = "CPU time" if self.device == "cpu" else "time"
        yield f"{what}:"
        yield from (f"  {line}" for line in columns(list(self._time_rows())))
        yield from self._sureness()
        if not self.fits:
            yield (
                f"warning: needs {size(self.peak_bytes)}, and there are {size(self.available_bytes or 0)}; "
                f"cheapest remedies: {'; '.join(self.remedies)}"
            )

    def _memory_rows(self) -> Iterator[list[str]]:
        counted = None if self.probe is None else self.probe.memory
        if counted is not None:
            yield ["", "predicted", "probed", ""]
        for name, title in TITLES.items():
            if name in self.memory:
                probed = [] if counted is None else [size(counted[name]) if name in counted else "-"]
                yield [title, size(self.memory[name]), *probed, ""]
        peak = [] if counted is None else ["-"]
        if self.probe is not None and self.probe.peak_device_bytes is not None:
            peak = [size(self.probe.peak_device_bytes)]
        yield ["peak", size(self.peak_bytes), *peak, ""]

    def _time_rows(self) -> Iterator[list[str]]:
        for part in self.time:
            known = "unknown" if part.seconds is None else duration(part.seconds)
            flops = "" if not part.flops else f"{part.flops / 1e12:.3g} TFLOP"
            yield [part.what, f"{part.times} x" if part.times != 1 else "", known, flops]
        yield ["in all", "", duration(self.total_seconds), ""]

    def _sureness(self) -> Iterator[str]:
        step = f"a step: {duration(self.seconds_per_step)}, {self.flops_per_step / 1e12:.3g} TFLOP"
        if self.probe is None:
            how = f"operations that make {100 * self.measured:.0f} % of it were timed here, the rest inferred"
            yield f"{step} ({how}); --probe measures real steps"
        else:
            real = f"{duration(self.probe.seconds_per_step)} a micro-batch with its update was probed"
            yield f"{step} was predicted; {real}, by which the times above were corrected"
            if self.unprobed_seconds is not None:
                yield f"in all {duration(self.unprobed_seconds)} without the probe"


def duration(seconds: float) -> str:
    """Seconds in the unit that leaves few digits."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    if minutes < 120:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"
