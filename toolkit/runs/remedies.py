"""What to change in a job that ran out of memory, cheapest first. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MOST = 3
_FULL_STATE = ("adam", "adamw")  # two numbers of optimizer state for each weight that learns


def memory_remedies(process: Mapping[str, Any], phase: str = "training") -> list[str]:
    """The cheapest changes of an entry of `process` (as in the file) that make it need less memory.

    phase: what it was doing, as in status.json. Cheap means: changes least of what is learned.
    """
    found = list(_sampling(process)) if phase == "sampling" else []
    found += _training(process)
    return found[:MOST] or ["use a smaller model, or a machine with more memory"]


def _section(process: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = process.get(name)
    return section if isinstance(section, Mapping) else {}


def _sampling(process: Mapping[str, Any]) -> Iterator[str]:
    sample = _section(process, "sample")
    width, height = sample.get("width", 512), sample.get("height", 512)
    yield f"draw smaller previews: sample.width and sample.height below {width} x {height}"
    yield "or draw none: train.disable_sampling: true"


def _training(process: Mapping[str, Any]) -> Iterator[str]:
    train = _section(process, "train")
    datasets = [entry for entry in process.get("datasets") or [] if isinstance(entry, Mapping)]
    batch_size = _whole(train.get("batch_size"), 1)
    if train.get("gradient_checkpointing", process.get("type") != "vae") is False:
        yield "set train.gradient_checkpointing: true (about 30 % more time, the same result)"
    if batch_size > 1:
        given = train.get("gradient_accumulation", train.get("gradient_accumulation_steps"))
        accumulation = _whole(given, 1) * batch_size
        yield (
            f"set train.batch_size: 1 and train.gradient_accumulation: {accumulation} "
            f"(as many pictures a step as now)"
        )
    if any(entry.get("cache_latents") and not entry.get("cache_latents_to_disk") for entry in datasets):
        yield "set cache_latents_to_disk: true in place of cache_latents"
    if str(train.get("dtype", "fp32")) in ("fp32", "float32", "float", "single"):
        yield "set train.dtype: bf16"
    if str(train.get("optimizer", "adamw")).lower() in _FULL_STATE:
        yield "set train.optimizer: adamw8bit (needs bitsandbytes and a GPU)"
    resolution = _largest(datasets)
    if resolution > 512:
        yield f"train at a smaller resolution than {resolution}"
    if _whole(_section(process, "network").get("linear", _section(process, "network").get("rank")), 4) > 16:
        yield "set a lower rank: network.linear"


def _whole(value: Any, default: int) -> int:
    """A whole number from a raw value, or the default."""
    try:
        return int(float(value))
    except (TypeError, ValueError):
        return default


def _largest(datasets: list[Mapping[str, Any]]) -> int:
    """The largest resolution of the datasets in pixels, 512 where none is given."""
    sides = [512]
    for entry in datasets:
        value = entry.get("resolution")
        sides += [_whole(side, 512) for side in (value if isinstance(value, list) else [value])]
    return max(sides)
