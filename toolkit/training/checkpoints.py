"""Full-state checkpoints: everything a run needs to go on as if it had never stopped. No pickle.

    checkpoints/step_000000250/
        weights.safetensors  optimizer.safetensors  ema.safetensors  state.json  manifest.json

Written as a hidden folder beside and renamed, the manifest with the sha256 of every other file last.
A folder without a manifest, or one that does not match it, is never resumed from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from toolkit.errors import Problem, RunError
from toolkit.runs import atomic
from toolkit.runs.checkpoints import PREFIX, list_checkpoints
from toolkit.training.tensor_files import write_tensors

SCHEMA_VERSION = 1


@dataclass
class Checkpoint:
    """What is saved: named tensors in groups, and plain JSON values."""

    step: int
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def host_copy(tensor: Tensor) -> Tensor:
    """A copy in the host's memory that the next step does not change."""
    tensor = tensor.detach()
    return tensor.clone().contiguous() if tensor.device.type == "cpu" else tensor.cpu().contiguous()


def pack(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Copy a tree of dicts and lists, moving its tensors to `tensors`; `unpack` is the inverse.

    Dicts become lists of pairs, because JSON would turn their integer keys into strings.
    """
    if isinstance(tree, Tensor):
        tensors[path] = host_copy(tree)
        return {"tensor": path}
    if isinstance(tree, Mapping):
        return {"dict": [[key, pack(value, tensors, f"{path}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        items = [pack(value, tensors, f"{path}.{index}") for index, value in enumerate(tree)]
        return {"tuple" if isinstance(tree, tuple) else "list": items}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    raise TypeError(f"cannot save a {type(tree).__name__} at {path!r} in a checkpoint")


def unpack(tree: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Rebuild what `pack` took apart."""
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(value, tensors) for key, value in content}
    if kind in ("list", "tuple"):
        items = [unpack(value, tensors) for value in content]
        return tuple(items) if kind == "tuple" else items
    return content


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"{PREFIX}{step:09d}"


def save_checkpoint(root: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically and return its folder; one of the same step is replaced."""
    root.mkdir(parents=True, exist_ok=True)
    target = folder_of(root, checkpoint.step)
    with atomic.writing_folder(target) as folder:
        digests = {
            f"{name}.safetensors": write_tensors(folder / f"{name}.safetensors", tensors)
            for name, tensors in checkpoint.tensors.items()
        }
        state = {"schema_version": SCHEMA_VERSION, "step": checkpoint.step, **checkpoint.values}
        path = folder / "state.json"
        path.write_text(json.dumps(state, indent=1), encoding="utf-8")
        digests[path.name] = sha256_of(path)
        manifest = {"schema_version": SCHEMA_VERSION, "files": digests}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return target


def is_valid(folder: Path) -> bool:
    """Whether every file of the manifest is there with its sha256."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return all(sha256_of(folder / name) == digest for name, digest in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # the last three: JSON, but no manifest


def newest_valid(root: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that can be resumed from, and the damaged ones that were passed over."""
    damaged: list[Path] = []
    for _, folder in reversed(list_checkpoints(root)):
        if is_valid(folder):
            return folder, damaged
        damaged.append(folder)
    return None, damaged


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint back, tensors on the CPU. Raises RunError if it was written by a later version."""
    values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if values["schema_version"] > SCHEMA_VERSION:
        raise RunError(
            Problem(
                "run.newer_checkpoint",
                f"written by a later version (schema {values['schema_version']})",
                file=str(folder),
                remedy="update AI Toolkit, or move the checkpoint away to start anew",
            )
        )
    tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    return Checkpoint(step=values["step"], tensors=tensors, values=values)


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint so that it is neither resumed from nor counted; returns its new place."""
    target = folder.with_name(f"damaged_{folder.name}")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"damaged_{folder.name}_{number}")
    atomic.replace(folder, target)
    return target


def prune_checkpoints(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what interrupted writes left behind."""
    for _, folder in list_checkpoints(root)[: -keep or None]:
        atomic.remove(folder)
    for leftover in root.glob(f".{PREFIX}*.part"):
        atomic.remove(leftover)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Any]:
    """The optimizer's state as named tensors and JSON."""
    tensors: dict[str, Tensor] = {}
    return tensors, pack(optimizer.state_dict(), tensors, "optimizer")
