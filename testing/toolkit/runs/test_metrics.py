"""metrics.jsonl over crashes and resumes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.errors import RunError
from toolkit.runs.metrics import MetricsWriter, live_rows, next_attempt, read_metrics


def losses(path: Path) -> dict[int, float]:
    return {row["step"]: row.get("loss") for row in read_metrics(path)}


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    with MetricsWriter(path) as metrics:
        metrics.write(1, epoch=0, loss=0.5, lr=1e-4, grad_norm=1.25, seconds=0.2)
        metrics.write(2, loss=0.25)
        metrics.write(2, validation_loss=0.75)
    assert json.loads(path.read_text().splitlines()[0]) == {"schema_version": 1}
    first, second = read_metrics(path)
    time = first.pop("time")
    assert time > 1e9
    assert first == {
        "attempt": 1, "step": 1, "epoch": 0, "loss": 0.5, "lr": 1e-4, "grad_norm": 1.25, "seconds": 0.2,
    }  # fmt: skip
    assert (second["loss"], second["validation_loss"]) == (0.25, 0.75)


def test_the_last_attempt_counts_and_what_it_left_behind_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for attempt, steps in ((1, (1, 2, 3, 4, 5)), (2, (3, 4)), (3, (4,))):
        assert next_attempt(path) == attempt
        with MetricsWriter(path) as metrics:
            assert metrics.attempt == attempt
            for step in steps:
                metrics.write(step, loss=attempt + step / 10)
    assert losses(path) == {1: 1.1, 2: 1.2, 3: 2.3, 4: 3.4}  # the first attempt's 5 is of no run any more
    assert live_rows(read_metrics(path)) == read_metrics(path)
    assert path.read_text().count("schema_version") == 1


def test_an_attempt_that_died_before_its_first_step_keeps_its_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsWriter(path).close()
    assert next_attempt(path) == 2
    assert read_metrics(path) == []


@pytest.mark.parametrize(
    ("tail", "steps"),
    [
        (b'{"attempt":1,"step":3,"lo', [1, 2, 4]),
        (b'{"attempt":1,"step":3,"loss":0.3}', [1, 2, 3, 4]),
        (b"\0\0\0\0\0", [1, 2, 4]),
        (b'{"attempt":1,"step":3,"name":"\xc3', [1, 2, 4]),
        (b"", [1, 2, 4]),
    ],
    ids=["half a row", "no newline", "zeros", "half a letter", "whole"],
)
def test_a_torn_last_line_is_repaired(tmp_path: Path, tail: bytes, steps: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as metrics:
        metrics.write(1, loss=0.5)
        metrics.write(2, loss=0.4)
    with path.open("ab") as file:
        file.write(tail)
    assert [row["step"] for row in read_metrics(path)] == [step for step in steps if step < 4]
    with MetricsWriter(path) as metrics:
        metrics.write(4, loss=0.1)
    assert [row["step"] for row in read_metrics(path)] == steps
    for line in path.read_bytes().splitlines():
        assert isinstance(json.loads(line), dict)


def test_a_killed_run_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = f"""
import itertools
from pathlib import Path
from toolkit.runs.metrics import MetricsWriter
metrics = MetricsWriter(Path({str(path)!r}))
for step in itertools.count(1):
    metrics.write(step, loss=1 / step)
    if step == 1000:
        print("go", flush=True)
"""
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    with MetricsWriter(path) as metrics:
        metrics.write(10**9, loss=0.0)
    steps = [row["step"] for row in read_metrics(path)]
    assert len(steps) > 900
    assert steps[:-1] == list(range(1, len(steps)))
    assert steps[-1] == 10**9


def test_rows_are_grouped_but_not_kept_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    now = 100.0
    monkeypatch.setattr("toolkit.runs.metrics.time.monotonic", lambda: now)
    metrics = MetricsWriter(path)
    metrics.write(1)
    assert losses(path) == {}
    now = 101.0
    metrics.write(2)
    assert list(losses(path)) == [1, 2]
    for step in range(3, 70):
        metrics.write(step)
    assert max(losses(path)) == 66
    metrics.flush()
    assert max(losses(path)) == 69
    metrics.close()
    metrics.close()


def test_what_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as metrics:
        metrics.write(1, loss=float("nan"), grad_norm=float("inf"), lr=1e-4)
    (row,) = read_metrics(path)
    assert (row["loss"], row["grad_norm"], row["lr"]) == (None, None, 1e-4)
    assert row["non_finite"] == ["loss", "grad_norm"]
    assert "NaN" not in path.read_text()


def test_metrics_of_version_1_are_read_and_of_tomorrow_refused(tmp_path: Path) -> None:
    fixture = Path(__file__).parent / "fixtures" / "metrics_v1.jsonl"
    assert losses(fixture) == {1: 0.5, 2: 0.4, 3: None}
    assert next_attempt(fixture) == 3
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"schema_version": 99}\n')
    with pytest.raises(RunError, match="newer"):
        read_metrics(path)


def test_metrics_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    for attempt in (None, 2):
        with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be written: Is a directory"):
            MetricsWriter(path, attempt)
