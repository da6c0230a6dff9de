"""What a training process puts on record for the torture: every draw and every loss, to the bit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from jobs import build, training_run
from toolkit.data.items import Batch
from toolkit.data.tensor_store import tensors_hash
from toolkit.diffusion.diffusion_loss import ItemLosses
from toolkit.runs.checkpoints import list_checkpoints
from toolkit.runs.metrics import read_metrics
from toolkit.training.checkpoints import load_checkpoint

Rows = dict[str, Any]


def digest(tensor: Tensor | None) -> str | None:
    """A short hash of a tensor's bytes."""
    if tensor is None:
        return None
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.sha256(data).hexdigest()[:16]


def record_into(path: Path, *, nan_at: int | None = None, no_memory_at: int | None = None) -> None:
    """From now on every micro-batch and step of this process appends a line to `path`.

    nan_at, no_memory_at: positions of micro-batches whose loss is made NaN, and which find no memory.
    """
    handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)

    def write(**row: Any) -> None:
        os.write(handle, (json.dumps(row) + "\n").encode())

    make_trainer, start, after_step = (
        build.trainer, training_run.TrainingRun.__init__, training_run.TrainingRun.after_step
    )  # fmt: skip
    per_epoch = 1
    seen: dict[str, Any] = {"step": None, "micro": 0}

    def trainer(*args: Any, **kwargs: Any) -> Any:
        made = make_trainer(*args, **kwargs)
        losses = made.losses

        def recorded(batch: Batch) -> Any:
            step = made.state.step + 1
            seen.update(micro=seen["micro"] + 1 if seen["step"] == step else 0, step=step)
            position = position_of(made.state.position, seen["micro"], made.left_out)
            if position == no_memory_at and position not in made.left_out:
                seen["step"] = None
                raise torch.OutOfMemoryError("planted")
            write(
                at=f"{step}/{seen['micro']}", epoch=position // per_epoch, items=[i.id for i in batch.items],
                captions=batch.captions, t=[value.hex() for value in batch.t.tolist()],
                noise=digest(batch.noise), latents=digest(batch.latents), pixels=digest(batch.pixels),
            )  # fmt: skip
            found = losses(batch)
            if position == nan_at and isinstance(found, ItemLosses):
                found = replace(found, sums=found.sums * float("nan"))
            return found

        made.losses = recorded
        return made

    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal per_epoch
        start(self, *args, **kwargs)
        per_epoch = self.identity.batches_per_epoch

    def stepped(self: Any, report: Any) -> bool:
        write(
            at=f"{report.step}", loss=float(report.loss).hex(), grad_norm=float(report.grad_norm).hex(),
            per_item=digest(report.per_item), lr=report.lr.hex(),
        )  # fmt: skip
        return after_step(self, report)

    build.trainer = trainer
    training_run.TrainingRun.__init__ = begin  # type: ignore[method-assign]
    training_run.TrainingRun.after_step = stepped  # type: ignore[method-assign]


def position_of(first: int, index: int, left_out: set[int]) -> int:
    """The position of micro-batch `index` of a step that begins at `first`."""
    kept = (position for position in count(first) if position not in left_out)
    return next(islice(kept, index, None))


def read_rows(path: Path) -> list[Rows]:
    """Every whole line, in order."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def last_rows(path: Path) -> dict[str, Rows]:
    """The last row of each step and micro-batch: what led to where the run ended."""
    return {row["at"]: row for row in read_rows(path)}


def final_state(folder: Path) -> dict[str, Any]:
    """Hashes of all that a finished run left: weights, optimizer, EMA, place, model file, losses."""
    step, newest = list_checkpoints(folder / "checkpoints")[-1]
    saved = load_checkpoint(newest)
    state: dict[str, Any] = {f"hash of {group}": tensors_hash(t) for group, t in saved.tensors.items()}
    state |= {key: value for key, value in saved.values.items() if key != "identity"} | {"step": step}
    files = sorted(folder.glob(f"{folder.name}*.safetensors"))
    files += sorted(folder.glob(f"{folder.name}*/**/*.safetensors"))
    parts = sorted(path.name for path in folder.glob(".*.part"))
    state["half written"] = [name for name in parts if not name.startswith(".run.lock.")]
    state["model files"] = [(path.name, tensors_hash(load_file(path))) for path in files]
    state["losses"] = [
        (row["step"], row["loss"], row["lr"]) for row in read_metrics(folder / "metrics.jsonl")
    ]
    return state


def differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Names of what differs."""
    return sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
