"""log.txt beside the terminal."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tqdm import tqdm

from toolkit.errors import ConfigError, RunError
from toolkit.runs.logfile import LogFile


def test_both_streams_go_to_both_places_and_come_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "log.txt"
    before = (sys.stdout, sys.stderr)
    with LogFile(path):
        print("out")  # noqa: T201
        sys.stderr.write("half a line, ")
        print("кот ✓")  # noqa: T201
        sys.stderr.write("the other half\nno newline at the end")
    assert (sys.stdout, sys.stderr) == before
    expected = "out\nкот ✓\nhalf a line, the other half\nno newline at the end\n"
    assert path.read_text(encoding="utf-8") == expected
    terminal = capsys.readouterr()
    assert terminal.out == "out\nкот ✓\n"
    assert terminal.err == "half a line, the other half\nno newline at the end"
    with LogFile(path):
        print("second attempt")  # noqa: T201
    assert path.read_text(encoding="utf-8") == expected + "second attempt\n"


def test_a_progress_bar_leaves_its_last_state(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    with LogFile(path):
        for _ in tqdm(range(500), desc="steps", mininterval=0, file=sys.stderr, ascii=True):
            pass
        sys.stdout.write("windows line\r\nplain\n\n\x1b[32mgreen\x1b[0m\n")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5, lines
    assert lines[0].startswith("steps: 100%|") and "500/500" in lines[0]
    assert lines[1:] == ["windows line", "plain", "", "green"]


def test_a_long_bar_is_logged_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.txt"
    now = 0.0
    monkeypatch.setattr("toolkit.runs.logfile.time.monotonic", lambda: now)
    with LogFile(path):
        for second in range(1, 36):
            now = float(second)
            sys.stderr.write(f"\rstep {second}")
        sys.stderr.write("\n")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "step 35"
    assert 4 <= len(lines) <= 5, lines


def test_a_line_written_above_a_bar_is_kept_clean(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    with LogFile(path):
        bar = tqdm(total=10, file=sys.stderr, mininterval=0, ascii=True)
        bar.update(5)
        tqdm.write("saved", file=sys.stderr)
        bar.update(5)
        bar.close()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert "saved" in lines
    assert "10/10" in lines[-1]
    assert len(lines) <= 3, lines


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [(ZeroDivisionError("oops"), True), (ConfigError("x.yml:3: lr: too high"), False)],
)
def test_what_ends_the_run_is_recorded(tmp_path: Path, error: Exception, has_traceback: bool) -> None:
    path = tmp_path / "log.txt"
    with pytest.raises(type(error)), LogFile(path):
        raise error
    text = path.read_text(encoding="utf-8")
    assert f"{type(error).__name__}: {error}" in text
    assert ("Traceback" in text) is has_traceback


def test_threads_keep_their_lines_and_their_errors_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"

    def work(letter: str) -> None:
        for _ in range(200):
            sys.stdout.write(letter * 50 + "\n")

    with LogFile(path):
        threads = [threading.Thread(target=work, args=(letter,)) for letter in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sorted(lines) == sorted(letter * 50 for letter in "abc" for _ in range(200))


class Gone(io.StringIO):
    """A terminal whose window was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_the_run_goes_on_without_its_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    monkeypatch.setattr(sys, "stderr", Gone())
    with LogFile(tmp_path / "log.txt"):
        sys.stdout.write("кот\n")
        sys.stderr.write("gone\n")
        sys.stderr.flush()
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "кот\ngone\n"
    narrow.seek(0)
    assert narrow.read() == "???\n"


def test_a_killed_process_has_its_lines_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    code = f"""
import os
from pathlib import Path
from toolkit.runs.logfile import LogFile
with LogFile(Path({str(path)!r})):
    print("last words")
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3], check=False)
    assert path.read_text() == "last words\n"


def test_a_log_that_cannot_be_opened_is_told_and_leaves_the_streams_alone(tmp_path: Path) -> None:
    (tmp_path / "log.txt").mkdir()
    before = (sys.stdout, sys.stderr)
    with pytest.raises(RunError, match=r"log\.txt: cannot be written: Is a directory") as caught:
        LogFile(tmp_path / "log.txt").__enter__()
    assert caught.value.problems[0].remedy
    assert (sys.stdout, sys.stderr) == before
