"""Files replaced in one piece."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from toolkit.errors import RunError
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
        with pytest.raises(RunError, match="used by another process"):
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


WRITES: dict[str, Callable[[Path], None]] = {
    "file": lambda path: atomic.write_bytes(path / "a.bin", b"x"),
    "json": lambda path: atomic.write_json(path / "a.json", {}),
    "folder": lambda path: atomic.writing_folder(path / "a").__enter__(),
    "removal": lambda path: atomic.remove(path / "a.bin"),
}


@pytest.mark.parametrize("kind", WRITES)
def test_what_cannot_be_written_is_said_in_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be (written|removed): Not a directory") as caught:
        WRITES[kind](tmp_path / "file")
    (problem,) = caught.value.problems
    assert (problem.code, Path(str(problem.file)).parent) == ("run.cannot_write", tmp_path / "file")
    assert problem.remedy and "training_folder" in problem.remedy
    assert isinstance(caught.value.__cause__, OSError)


def test_an_error_that_is_not_the_disks_passes_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic.writing(tmp_path / "a"):
        raise ZeroDivisionError
    with pytest.raises(RunError, match="Not a directory: /dev/null/x"), atomic.writing(tmp_path / "a"):
        Path("/dev/null/x").read_bytes()  # another file than the one written is named


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy, safetensors.numpy
from PIL import Image
from toolkit.errors import RunError
from toolkit.runs import atomic, images, metrics
from toolkit.runs.layout import RunFolder

run = RunFolder(Path(sys.argv[1]), "foo")
run.create()
writer = metrics.MetricsWriter(run.metrics_path)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
weights = {"w": numpy.zeros(100_000, numpy.uint8)}

def save_file():
    with atomic.writing(run.path / "a.safetensors", size=100_000) as part:
        safetensors.numpy.save_file(weights, part)

def save_folder():
    with atomic.writing_folder(run.path / "b") as part:
        (part / "unet").mkdir()
        safetensors.numpy.save_file(weights, part / "unet" / "w.safetensors")

def log_much():
    for step in range(1000):
        writer.write(step, text="x" * 100)

noise = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (128, 128, 3), numpy.uint8))
attempts = {
    "a.safetensors": save_file,
    "b": save_folder,
    "c.png": lambda: images.save_image(noise, run.path / "c.png"),
    "config.yaml": lambda: run.write_config({"text": "x" * 50_000}),
    "metrics.jsonl": log_much,
}
for name, attempt in attempts.items():
    try:
        attempt()
    except RunError as error:
        print(error)
    else:
        sys.exit(f"{name} was written")
try:
    writer.close()
except RunError:
    pass
"""


@pytest.mark.skipif(os.name == "nt", reason="limits of file sizes are POSIX")
def test_a_full_disk_is_told_with_path_reason_and_space(tmp_path: Path) -> None:
    """A real limit: the system answers EFBIG, through safetensors' own error too."""
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    names = ["a.safetensors", "b", "c.png", "config.yaml", "metrics.jsonl"]
    assert len(lines) == len(names), done.stdout
    for name, line in zip(names, lines, strict=True):
        assert line.startswith(f"{tmp_path / 'foo' / name}: cannot be written: File too large; "), line
        assert "MB free on its disk" in line
        assert line.endswith("(free some space, or write to another disk (of runs: training_folder))")
    assert "0.1 MB needed" in lines[0]
    left = {path.name for path in (tmp_path / "foo").iterdir()}
    assert left == {"metrics.jsonl", "samples", "checkpoints", "commands"}


def test_a_file_is_written_over_within_the_room_it_has(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text(json.dumps({"step": 1, "info": 50 * "x"}))
    size = path.stat().st_size
    atomic.overwrite(path, '{"step": 2}\n')
    assert json.loads(path.read_text()) == {"step": 2} and path.stat().st_size == size
    with pytest.raises(RunError, match="No space left on device") as refusal:
        atomic.overwrite(path, "x" * 1_000_000)
    assert atomic.is_full(refusal.value) and not atomic.is_full(RunError("x"))
    assert json.loads(path.read_text()) == {"step": 2}
    with pytest.raises(RunError) as refusal:
        atomic.overwrite(tmp_path / "none.json", "{}")
    assert not atomic.is_full(refusal.value) and list(tmp_path.iterdir()) == [path]
