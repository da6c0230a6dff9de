"""Models to disk: diffusers' folder layout, or one file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from toolkit.models.shared.components import cast_copy, quiet_loading
from toolkit.runs import atomic

if TYPE_CHECKING:
    from toolkit.models.base import Architecture

_READABLE = 0o644  # the libraries write weights for the owner's eyes only


def save_folder(model: Architecture, folder: Path, *, dtype: torch.dtype) -> None:
    """Write a diffusers folder with weights cast to dtype, in place of an old one; the model stays as is.

    Raises RunError if the disk refuses.
    """
    with atomic.reporting(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    pipeline = model.pipeline()
    for name, module in model.modules.items():
        setattr(pipeline, name, cast_copy(module, dtype))
    with atomic.writing_folder(folder) as part, quiet_loading():
        pipeline.save_pretrained(part, safe_serialization=True)
        for file in part.rglob("*"):
            if file.is_file():
                file.chmod(_READABLE)


def save_weights(
    weights: Mapping[str, Tensor], path: Path, *, dtype: torch.dtype, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors cast to dtype as one .safetensors file, all or nothing. Raises RunError."""
    with atomic.reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # A copy for each: the format refuses tensors that share memory, as tied embeddings do.
    cast = {name: _cast(value, dtype) for name, value in weights.items()}
    size = sum(value.nbytes for value in cast.values())
    with atomic.writing(path, size=size) as part:
        save_file(cast, part, metadata={"format": "pt", **(metadata or {})})


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    wanted = dtype if value.is_floating_point() else value.dtype
    return value.detach().to("cpu", wanted, copy=True).contiguous()
