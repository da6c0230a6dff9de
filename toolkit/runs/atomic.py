"""Files that are either there in full or not there: written beside, flushed, renamed. Torch-free."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from toolkit.errors import Problem, RunError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors passes on what the system said
RETRY_SECONDS = 2.0  # how long a Windows reader may keep the old file open


@contextmanager
def reporting(path: Path, doing: str = "written", *, size: int | None = None) -> Iterator[None]:
    """Say in a RunError why `path` (of `size` bytes) cannot be written, instead of OSError's traceback.

    doing: what was tried with it: written, read, removed.
    """
    try:
        yield
    except _refusals() as error:
        number, reason = _reason(error)
        other = getattr(error, "filename", None)
        if other is not None and not Path(os.fsdecode(other)).is_relative_to(Path(path).parent):
            reason = f"{reason}: {os.fsdecode(other)}"
        able = "readable" if doing == "read" else "writable"
        remedy = f"make it {able}, or write to another place (of runs: training_folder)"
        if number in _FULL:
            reason += _space(Path(path), size)
            remedy = "free some space, or write to another disk (of runs: training_folder)"
        problem = Problem(
            "run.cannot_write", f"cannot be {doing}: {reason}", file=os.fspath(path), remedy=remedy
        )
        raise RunError(problem) from error


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace `path` by `data`. With `durable`, the bytes survive a power cut once this returns."""
    with writing(path, durable=durable, size=len(data)) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace `path` by `text` in UTF-8 with plain newlines."""
    write_bytes(path, text.encode("utf-8"), durable=durable)


def write_json(path: Path, value: Any, *, durable: bool = True, indent: int | None = 2) -> None:
    """Replace `path` by `value` as strict JSON (NaN and infinity become null)."""
    write_text(path, to_json(value, indent=indent) + "\n", durable=durable)


def overwrite(path: Path, text: str) -> None:
    """Write `text` over what a small file holds, within the blocks that it has; blanks fill up its length.

    For a full disk, where nothing can be written beside. It is one write, but a power cut may tear it. Raises
    RunError, and leaves the file as it was, if there is none or the text is too long for it.
    """
    data = text.encode("utf-8")
    with reporting(path, size=len(data)):
        handle = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
        try:
            there = os.fstat(handle)
            if len(data) > max(there.st_size, 512 * getattr(there, "st_blocks", 0)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.write(handle, data.ljust(there.st_size))
            os.fsync(handle)
        finally:
            os.close(handle)


def is_full(error: RunError) -> bool:
    """Whether something could not be written for lack of space."""
    cause = error.__cause__
    return cause is not None and _reason(cause)[0] in _FULL


@contextmanager
def writing(path: Path, *, durable: bool = True, size: int | None = None) -> Iterator[Path]:
    """Give a path beside `path` to write to; rename it into place, or remove it if the block raises.

    Raises RunError if the disk refuses; size: the bytes expected, for that message.
    """
    path = Path(path)
    with reporting(path, size=size), _writing(path, durable) as part:
        yield part


@contextmanager
def _writing(path: Path, durable: bool) -> Iterator[Path]:
    part = beside(path)
    # Created here so that its mode is 0644 less the umask, whatever a library would have chosen.
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    mode = part.stat().st_mode
    try:
        yield part
        if part.stat().st_mode != mode:
            part.chmod(mode)
        if durable:
            _flush_file(part)
        replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    if durable:
        flush_folder(path.parent)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Give a new folder beside `path` to fill; rename it into place, or remove it if the block raises.

    Raises RunError if the disk refuses.
    """
    path = Path(path)
    with reporting(path), _writing_folder(path) as part:
        yield part


@contextmanager
def _writing_folder(path: Path) -> Iterator[Path]:
    part = beside(path)
    part.mkdir()
    try:
        yield part
        for file in sorted(part.rglob("*")):
            if file.is_file():
                _flush_file(file)
            else:
                flush_folder(file)
        flush_folder(part)
        # A folder cannot replace a filled one, so the old one steps aside for the moment of the rename.
        old = beside(path) if path.exists() else None
        if old is not None:
            replace(path, old)
        replace(part, path)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    flush_folder(path.parent)


def remove(path: Path) -> None:
    """Delete a file, link or folder; a folder vanishes under its name at once, not file by file.

    Raises RunError if the system refuses.
    """
    path = Path(path)
    with reporting(path, "removed"):
        if path.is_dir() and not path.is_symlink():
            part = beside(path)
            replace(path, part)
            shutil.rmtree(part)
        else:
            path.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """A fresh hidden name in the folder of `path`; readers skip names that begin with a dot."""
    return path.with_name(f".{path.name[:80]}.{secrets.token_hex(6)}.part")


def replace(source: Path, target: Path) -> None:
    """Rename over `target`; waits up to two seconds while a reader holds it open (Windows)."""
    deadline = time.monotonic() + RETRY_SECONDS
    pause = 0.01
    while True:
        try:
            Path(source).replace(target)
            return
        except PermissionError:
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 0.25)


def read_bytes(path: Path) -> bytes:
    """The bytes of `path`; waits while a writer replaces it (Windows). Raises OSError like open()."""
    deadline = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            return Path(path).read_bytes()
        except PermissionError:
            if os.name != "nt" or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def flush_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, where the system can (not on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems answer EINVAL: they keep renames in order by themselves.
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _refusals() -> tuple[type[BaseException], ...]:
    """OSError, and safetensors' own error where a block has imported safetensors: this module must not."""
    library = sys.modules.get("safetensors")
    return (OSError,) if library is None else (OSError, library.SafetensorError)


def _reason(error: BaseException) -> tuple[int | None, str]:
    """(errno, the system's words) of an error of the system or of safetensors."""
    if isinstance(error, OSError):
        return error.errno, error.strerror or str(error)
    match = _OS_ERROR.search(str(error))
    return (int(match[1]), os.strerror(int(match[1]))) if match else (None, str(error))


def _space(path: Path, size: int | None) -> str:
    """How much is needed and how much there is, for the end of a line."""
    needed = f"{size / 1e6:.1f} MB needed, " if size is not None and size >= 1e5 else ""
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return ""
    return f"; {needed}{free / 1e6:.1f} MB free on its disk"


def _flush_file(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as strict JSON text; NaN and infinity become null, which every reader accepts."""
    separators = (",", ": ") if indent is not None else (",", ":")
    options: dict[str, Any] = {"ensure_ascii": False, "indent": indent, "separators": separators}
    try:
        return json.dumps(value, allow_nan=False, default=plain, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, default=plain, **options)


def plain(value: Any) -> Any:
    """What stands in JSON for a path or for a number of numpy or torch. Raises TypeError for the rest."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    if not isinstance(value, float):
        value = plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
