"""What a config says and leaves to do about steps that fail: policies, and what would need less memory."""

from __future__ import annotations

from jobs.setbacks import Policies
from toolkit.config_modules.process import DiffusionProcess, VaeProcess


def policies(section: DiffusionProcess | VaeProcess) -> Policies:
    """What to do about a step that fails."""
    roll_back = section.train.on_non_finite == "rollback"
    return Policies(roll_back=roll_back, remedies=tuple(memory_remedies(section)))


def memory_remedies(section: DiffusionProcess | VaeProcess) -> list[str]:
    """What would need less memory and is not set yet, the cheapest first."""
    train = section.train
    found = []
    if train.dtype == "float32":
        found.append("train.dtype: bf16")
    if not train.gradient_checkpointing:
        found.append("train.gradient_checkpointing: true")
    if train.batch_size > 1:
        half = train.batch_size // 2
        same = ""
        if train.gradient_accumulation > 0:  # else a whole epoch, whatever its batches
            total = -(-train.batch_size * train.gradient_accumulation // half)
            same = f" with gradient_accumulation: {total}"
        found.append(f"train.batch_size: {half}{same}")
    if not all(dataset.cache_latents or dataset.cache_latents_to_disk for dataset in section.datasets):
        found.append("cache_latents_to_disk: true")
    if train.optimizer in ("adam", "adamw"):
        found.append(f"train.optimizer: {train.optimizer}8bit")
    if isinstance(section, DiffusionProcess) and section.network is None:
        found.append("a network (LoRA) instead of the whole model")
    return [*found, "a smaller datasets.resolution"]
