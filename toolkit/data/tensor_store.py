"""Named sets of tensors kept in memory or, content-addressed, in a folder of safetensors files.

One file a key, in 256 folders by the key's first two digits. A file is written beside its place and
renamed, so that a kill leaves no half of one and any number of processes may fill a folder at once; it
carries a digest that is checked whenever it is read, so damaged files count as missing. What there is is
found out by listing folders, not by reading files: ten thousand entries take as long as ten. Their data are
raw and contiguous, as safetensors writes them: other programs can map them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from toolkit.errors import Problem, RunError
from toolkit.runs.atomic import replace

SCHEMA_VERSION = "1"
SUFFIX = ".safetensors"
# What a process that was killed left beside its place, and nobody writes any more.
ABANDONED_AFTER_S = 24 * 3600.0


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


def _num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


class TensorStore:
    """get and put by key, from any thread. A store without a folder keeps all in memory.

    keep_bytes: up to so much of what was last used of a folder stays in memory too. tell: gets a line for
    each damaged file that was found; `notes` has them all.
    """

    def __init__(
        self, folder: Path | None, *, keep_bytes: int = 0, tell: Callable[[str], None] | None = None
    ) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self._tell = tell
        self._keep_bytes = keep_bytes
        self._kept_bytes = 0
        self._memory: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        self._damaged: set[str] = set()

    def path(self, key: str) -> Path:
        """Where a key's file is. Raises ValueError for a store in memory."""
        if self.folder is None:
            raise ValueError("a store in memory has no files")
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def present(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that there is something under. Lists folders and reads nothing.

        A damaged file counts until `get` has found it out.
        """
        wanted = set(keys)
        if self.folder is None:
            return wanted & self._memory.keys()
        names: set[str] = set()
        for prefix in {key[:2] for key in wanted}:
            names.update(_list_folder(self.folder / prefix))
        return {key for key in wanted if f"{key}{SUFFIX}" in names} - self._damaged

    def has(self, key: str) -> bool:
        """Whether there is something under one key."""
        if self.folder is None:
            return key in self._memory
        return key not in self._damaged and self.path(key).is_file()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under a key (do not change them), or None if there are none or they are damaged."""
        kept = self._recall(key)
        if kept is not None or self.folder is None:
            return kept
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._drop(key, f"cannot be read ({error.strerror}); computed again")
            return None
        tensors = _unpack(data, key)
        if tensors is None:
            self._drop(key, "damaged or of another version; computed again")
        else:
            self._remember(key, tensors)
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep copies of some tensors on the CPU. Raises RunError if the file cannot be written."""
        kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        if self.folder is not None:
            self._write(self.path(key), key, kept)
            self._damaged.discard(key)
        self._remember(key, kept)

    def _write(self, path: Path, key: str, tensors: Mapping[str, Tensor]) -> None:
        beside = path.with_name(f".{key}.{secrets.token_hex(4)}.tmp")
        metadata = {"schema_version": SCHEMA_VERSION, "key": key, "digest": tensors_hash(tensors)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(save(dict(tensors), metadata))
            replace(beside, path)
        except OSError as error:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            reason = f"the cache cannot be written: {error.strerror or error}"
            remedy = "free some space, or cache in memory"
            raise RunError(Problem("data.cache_write", reason, file=str(path), remedy=remedy)) from error

    def _drop(self, key: str, reason: str) -> None:
        self._damaged.add(key)
        self.note(f"{self.path(key)}: {reason}")

    def note(self, line: str) -> None:
        """Tell something worth knowing, and keep it among the notes."""
        self.notes.append(line)
        if self._tell is not None:
            self._tell(line)

    def _recall(self, key: str) -> dict[str, Tensor] | None:
        with self._lock:
            kept = self._memory.get(key)
            if kept is not None:
                self._memory.move_to_end(key)
            return kept

    def _remember(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep in memory what was used last: everything without a folder, else `keep_bytes` of it."""
        size = _num_bytes(tensors)
        if self.folder is not None and size > self._keep_bytes:
            return
        with self._lock:
            self._kept_bytes += size - _num_bytes(self._memory.pop(key, {}))
            self._memory[key] = tensors
            while self.folder is not None and self._kept_bytes > self._keep_bytes:
                _, oldest = self._memory.popitem(last=False)
                self._kept_bytes -= _num_bytes(oldest)


def _list_folder(folder: Path) -> list[str]:
    """Names of the files of one folder; none if it is missing. Removes what killed processes left there."""
    names = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                names.append(entry.name)
            elif entry.name.endswith(".tmp"):
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > ABANDONED_AFTER_S:
                        Path(entry.path).unlink()
    return names


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
