"""Files replaced in one piece."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest

from toolkit.runs import atomic


def test_a_file_is_replaced_in_one_piece_while_others_read_it(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    values = [{"n": n, "text": "x" * 20_000} for n in range(2)]
    atomic.write_json(path, values[0])
    stop = threading.Event()
    broken: list[str] = []

    def read() -> None:
        while not stop.is_set():
            text = path.read_text(encoding="utf-8")
            if json.loads(text) not in values:
                broken.append(text)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(200):
        atomic.write_json(path, values[turn % 2], durable=False)
    stop.set()
    reader.join()
    assert not broken
    assert os.listdir(tmp_path) == ["status.json"]  # noqa: PTH208 - hidden files count too


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    atomic.write_bytes(path, b"old")
    with pytest.raises(RuntimeError, match="disk"), atomic.writing(path) as part:
        part.write_bytes(b"half")
        raise RuntimeError("disk")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_files_are_readable_by_others_even_if_a_library_made_them_private(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        path = tmp_path / "a"
        with atomic.writing(path) as part:
            part.write_bytes(b"x")
            part.chmod(0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        os.umask(0o077)
        atomic.write_bytes(path, b"private")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(umask)


@pytest.mark.parametrize("failures", [2, None])
def test_a_reader_that_holds_the_file_open_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int | None
) -> None:
    """As on Windows: replace fails while a reader has the target open; None: for ever."""
    path = tmp_path / "a"
    atomic.write_bytes(path, b"old")
    real, calls = os.replace, []

    def replace(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        calls.append(source)
        if failures is None or len(calls) <= failures:
            raise PermissionError(13, "used by another process")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(atomic, "RETRY_SECONDS", 0.3)
    if failures is None:
        with pytest.raises(PermissionError):
            atomic.write_bytes(path, b"new")
    else:
        atomic.write_bytes(path, b"new")
        assert len(calls) == failures + 1
    assert path.read_bytes() == (b"old" if failures is None else b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "run_000000250"
    for text in ("one", "two"):
        with atomic.writing_folder(path) as part:
            (part / "unet").mkdir()
            (part / "unet" / f"{text}.bin").write_text(text)
            if text == "two":
                assert (path / "unet" / "one.bin").exists()
    assert [file.name for file in (path / "unet").iterdir()] == ["two.bin"]
    with pytest.raises(KeyError), atomic.writing_folder(path) as part:
        (part / "half").touch()
        raise KeyError
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_json_is_strict_and_takes_numbers_of_numpy() -> None:
    value = {
        "nan": float("nan"),
        "list": [np.float32("inf"), np.int64(3), 1.5],
        "path": Path("a/b"),
        "ok": True,
    }
    assert json.loads(atomic.to_json(value)) == {
        "nan": None,
        "list": [None, 3, 1.5],
        "path": "a/b",
        "ok": True,
    }
    with pytest.raises(TypeError):
        atomic.to_json(object())
