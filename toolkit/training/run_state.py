"""What a run must have to go on as if it had never stopped, and whether a checkpoint is its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit.runs.lineage import ForeignCheckpointError, differences, foreign
from toolkit.training import checkpoints
from toolkit.training.checkpoints import Checkpoint
from toolkit.training.trainer import Trainer

NUM_KEPT = 2  # full states on disk: the newest, and the one before in case it is damaged


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint belongs to.

    nature: what must not change between two attempts (optimizer, adapter, base model ...), by plain names.
    items: hash of the item list; the others count micro-batches and items.
    """

    nature: dict[str, Any]
    items: str
    num_items: int
    batches_per_epoch: int
    batch_size: int
    accumulation: int

    @property
    def layout(self) -> tuple[Any, ...]:
        """What positions in the data are counted in."""
        return self.items, self.num_items, self.batches_per_epoch, self.batch_size


def snapshot(trainer: Trainer, identity: RunIdentity) -> Checkpoint:
    """The full state of a trainer between two steps, copied to the host's memory."""
    state = trainer.state
    tensors, optimizer = checkpoints.pack_optimizer(trainer.updates.optimizer)
    groups = {"weights": _copies(trainer.parameters), "optimizer": tensors}
    if trainer.ema is not None:
        groups["ema"] = _copies(trainer.ema.shadow)
    values = asdict(state) | {
        "epoch": state.position // identity.batches_per_epoch,
        "optimizer": optimizer,
        "scaler": trainer.updates.scaler.state_dict() if trainer.updates.scaler else None,
        "ema_updates": trainer.ema.num_updates if trainer.ema else 0,
        "identity": asdict(identity),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    values.pop("step")
    return Checkpoint(state.step, groups, values)


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: checkpoints.host_copy(tensor) for name, tensor in tensors.items()}


def load_state(root: Path, trainer: Trainer, identity: RunIdentity) -> tuple[int | None, list[str]]:
    """Bring a trainer to the newest valid checkpoint; (its step, or None if there is none, and notes).

    Damaged checkpoints are set aside. Raises RunError if the checkpoint belongs to something else.
    """
    folder, damaged = checkpoints.newest_valid(root)
    notes = [
        f"{path.name} is damaged and was set aside as {checkpoints.set_aside(path).name}" for path in damaged
    ]
    if folder is None:
        return None, notes
    saved = checkpoints.load_checkpoint(folder)
    _require_same_nature(saved, identity, folder)
    _load_weights(saved, trainer, folder)
    trainer.updates.load_state_dict(
        checkpoints.unpack(saved.values["optimizer"], saved.tensors.get("optimizer", {}))
    )
    if trainer.updates.scaler is not None and saved.values["scaler"]:
        trainer.updates.scaler.load_state_dict(saved.values["scaler"])
    if trainer.ema is not None:
        # An average that is switched on only now begins at the weights as they are.
        averaged = saved.tensors.get("ema", saved.tensors["weights"])
        trainer.ema.load(averaged, saved.values["ema_updates"])
    state = trainer.state
    state.step, state.items, state.skipped = saved.step, saved.values["items"], saved.values["skipped"]
    state.refused_in_a_row = saved.values.get("refused_in_a_row", 0)  # not in the first versions
    state.position = _position(saved, identity, notes)
    trainer.forget()
    if saved.values["threads"] != torch.get_num_threads():
        notes.append(
            f"the checkpoint was made with {saved.values['threads']} threads, this run has "
            f"{torch.get_num_threads()}: it goes on, but not to the very same bits"
        )
    return saved.step, notes


def _require_same_nature(saved: Checkpoint, identity: RunIdentity, folder: Path) -> None:
    before: Mapping[str, Any] = saved.values["identity"]["nature"]
    lines = differences(before, identity.nature)
    if lines:
        raise ForeignCheckpointError([foreign(folder, line) for line in lines])


@torch.no_grad()
def _load_weights(saved: Checkpoint, trainer: Trainer, folder: Path) -> None:
    weights = saved.tensors["weights"]
    shapes = {name: tuple(parameter.shape) for name, parameter in trainer.parameters.items()}
    if {name: tuple(tensor.shape) for name, tensor in weights.items()} != shapes:
        what = _misfit({name: tuple(tensor.shape) for name, tensor in weights.items()}, shapes)
        raise ForeignCheckpointError(foreign(folder, what))
    for name, parameter in trainer.parameters.items():
        parameter.copy_(weights[name])


def _misfit(saved: Mapping[str, tuple[int, ...]], now: Mapping[str, tuple[int, ...]]) -> str:
    """What differs between the weights of a checkpoint and those of this config, by names and shapes."""
    for name in (name for name in now if name in saved and saved[name] != now[name]):
        if ".lora_A." in name:
            key = "network.conv" if now[name][2:] not in ((), (1, 1)) else "network.linear"
            return f"was made with {key} {saved[name][0]}, this config has {now[name][0]}"
        shapes = " and ".join(" x ".join(map(str, shape)) for shape in (saved[name], now[name]))
        return f"does not fit this config: {name} is {shapes}"
    more = {"it alone": saved.keys() - now.keys(), "the config alone": now.keys() - saved.keys()}
    parts = [f"{who} has {len(names)} weights such as {min(names)}" for who, names in more.items() if names]
    return f"does not fit this config: {', '.join(parts)}"


def _position(saved: Checkpoint, identity: RunIdentity, notes: list[str]) -> int:
    """The micro-batch to go on with. Other data or batches are entered at the same share of an epoch."""
    before = RunIdentity(**saved.values["identity"])
    if before.layout == identity.layout:
        return int(saved.values["position"])
    changed = "the pictures" if before.items != identity.items else "the batch size"
    notes.append(f"{changed} changed since the checkpoint: training goes on at the same point of the epoch")
    epochs = saved.values["position"] / before.batches_per_epoch
    return round(epochs * identity.batches_per_epoch)
