"""Write a safetensors file and its sha256 in the time that writing alone takes.

safetensors' own writer copies first, and hashing its file afterwards reads all of it again. Here the bytes go
from the tensors' memory to the file while a second thread hashes them; hashlib and write() release the GIL,
so that a loop on a third one goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

# Names of https://huggingface.co/docs/safetensors (format).
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
}  # fmt: skip
_PIECE = 2**24  # bytes handed to the system, and to the hash, at a time


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors to `path`, flushed to the disk; the sha256 of the file's bytes, hex.

    The tensors must not change meanwhile. Raises OSError, and TypeError for a dtype that the format lacks.
    """
    pieces = list(_pieces(tensors))
    with ThreadPoolExecutor(1, thread_name_prefix="sha256") as hasher:
        digest = hasher.submit(_sha256, pieces)
        with path.open("wb", buffering=0) as file:
            for piece in pieces:
                _write_all(file.fileno(), piece)
            os.fsync(file.fileno())
        return digest.result()


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The file's bytes in order: length of the header, header, data. Nothing of the data is copied."""
    # The widest first, so that each tensor's data are aligned to its elements.
    ordered = sorted(tensors.items(), key=lambda pair: (-pair[1].element_size(), pair[0]))
    header: dict[str, object] = {}
    end = 0
    for name, tensor in ordered:
        if tensor.dtype not in NAMES:
            raise TypeError(f"cannot write {tensor.dtype} of {name!r} to a safetensors file")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        if tensor.numel():
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            yield from (data[start : start + _PIECE] for start in range(0, len(data), _PIECE))


def _write_all(handle: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(handle, piece) :]


def _sha256(pieces: list[memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
