"""Named sets of tensors kept in memory or, content-addressed, in a folder of safetensors files.

A file is written beside its place and renamed, and carries a digest: half-written and damaged files are
noticed and count as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from toolkit.errors import Problem, RunError

SCHEMA_VERSION = "1"


def make_key(*parts: object) -> str:
    """A hex key for values that have one JSON form each."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _feed(digest: hashlib._Hash, named: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    _feed(digest, sorted(tensors.items()))
    return digest.hexdigest()


def module_hash(module: nn.Module, *extra: object) -> str:
    """sha256 of a module's weights and of `extra` (scaling factor, dtype it runs in ...), for cache keys."""
    return make_key(tensors_hash(module.state_dict()), *map(str, extra))


class TensorStore:
    """get and put by key. `notes` tells of damaged files that were dropped.

    remember: what was read from the folder or put there stays in memory too, and outlives its file.
    """

    def __init__(self, folder: Path | None, *, remember: bool = False) -> None:
        self.folder = folder
        self._remember = remember or folder is None
        self.notes: list[str] = []
        self._memory: dict[str, dict[str, Tensor]] = {}

    def path(self, key: str) -> Path:
        """Where a key's file is. Raises ValueError for a store in memory."""
        if self.folder is None:
            raise ValueError("a store in memory has no files")
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under a key (do not change them), or None if there are none or they are damaged."""
        if key in self._memory or self.folder is None:
            return self._memory.get(key)
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.notes.append(f"{path}: cannot be read ({error.strerror}); computed again")
            return None
        tensors = _unpack(data, key)
        if tensors is None:
            self.notes.append(f"{path}: damaged or of another version; computed again")
        elif self._remember:
            self._memory[key] = tensors
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep copies of some tensors on the CPU. Raises RunError if the file cannot be written."""
        kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        if self._remember:
            self._memory[key] = kept
        if self.folder is None:
            return
        path = self.path(key)
        beside = path.with_name(f".{key}.{os.getpid()}.tmp")
        metadata = {"schema_version": SCHEMA_VERSION, "key": key, "digest": tensors_hash(kept)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(save(kept, metadata))
            beside.replace(path)
        except OSError as error:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            reason = f"the cache cannot be written: {error.strerror or error}"
            remedy = "free some space, or cache in memory"
            raise RunError(Problem("data.cache_write", reason, file=str(path), remedy=remedy)) from error


def _unpack(data: bytes, key: str) -> dict[str, Tensor] | None:
    """The tensors of a file's bytes, or None unless they are exactly what `put` wrote under this key."""
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        wanted = (metadata["schema_version"], metadata["key"], metadata["digest"])
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
    return tensors if wanted == (SCHEMA_VERSION, key, tensors_hash(tensors)) else None
