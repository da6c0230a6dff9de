"""Measurements on disk: a cut line costs that line only, another design is never mixed in."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from toolkit.errors import RunError
from toolkit.evaluation.records import Record, RecordFile

RECORDS = [Record(f"key{i}", "main", 0, [[0.1 * i, 0.2], [0.3, 0.4]], [0.5, 0.9]) for i in range(3)]


def opened(path: Path, design: str = "design", notes: list[str] | None = None) -> RecordFile:
    file = RecordFile(path, design, [].append if notes is None else notes.append)
    file.open()
    return file


def held(file: RecordFile, asked: list[Record] = RECORDS) -> list[Record]:
    """Those of some records that are found again."""
    found = (file.get(record.stage, record.key, record.first) for record in asked)
    return [record for record in found if record is not None]


def test_records_come_back(tmp_path):
    file = opened(tmp_path / "made" / "a.jsonl")
    assert held(file) == []
    file.append(RECORDS[:1])
    file.append(RECORDS[1:])
    assert held(file) == held(opened(file.path)) == RECORDS
    assert file.get("main", "key1", 4) is file.get("base", "key1", 0) is file.get("main", "key9", 0) is None
    file.remove()
    file.remove()
    assert not file.path.exists()
    assert held(file) == []


def test_the_last_record_counts(tmp_path):
    file = opened(tmp_path / "a.jsonl")
    later = Record("key1", "main", 0, [[7.0, 8.0]], [0.5, 0.9])
    file.append([*RECORDS, later])
    assert held(file) == held(opened(file.path)) == [RECORDS[0], later, RECORDS[2]]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path, cut):
    file = opened(tmp_path / "a.jsonl")
    file.append(RECORDS)
    file.path.write_bytes(file.path.read_bytes()[:-cut])
    again = opened(file.path)
    assert held(again) == (RECORDS if cut == 1 else RECORDS[:2])  # one byte is the end of the line
    again.append(RECORDS[2:])
    assert held(again) == held(opened(file.path)) == RECORDS


def test_bytes_that_are_no_text_cost_their_line(tmp_path):
    notes: list[str] = []
    file = opened(tmp_path / "a.jsonl")
    file.append(RECORDS[:1])
    with file.path.open("ab") as stream:
        stream.write(b"\x00\xff\xfe{}\n" + b'{"key": "no losses"}\n')
    file.append(RECORDS[1:])
    assert held(file) == held(opened(file.path, notes=notes)) == RECORDS
    assert notes == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b"0.2", b"0.3"),
        lambda line: line.replace(b"[0.5,0.9]", b"null"),
        lambda line: line.replace(b"0.4", b"NaN"),
        lambda line: line.replace(b"key1", b"key7"),
        lambda line: b"[" * 100_000,
        lambda line: b"{}",
    ],
)
def test_what_a_disk_damaged_is_not_taken_for_measured(tmp_path, damage):
    opened(tmp_path / "a.jsonl").append(RECORDS)
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines()
    assert damage(lines[2]) != lines[2]
    lines[2] = damage(lines[2])
    (tmp_path / "a.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    again = opened(tmp_path / "a.jsonl")
    assert held(again) == [RECORDS[0], RECORDS[2]] and len(again) == 2
    assert again.get("main", "key7", 0) is None


def test_a_place_where_another_record_lies_by_now_holds_nothing(tmp_path):
    file = opened(tmp_path / "a.jsonl")
    file.append(RECORDS)
    other = Record("key9", "main", 0, RECORDS[0].losses, RECORDS[0].t)
    file.path.unlink()
    opened(file.path).append([other, *RECORDS[1:]])
    assert held(file) == RECORDS[1:]


def test_an_empty_file_is_begun_and_one_without_a_first_line_set_aside(tmp_path):
    notes: list[str] = []
    (tmp_path / "a.jsonl").touch()
    file = opened(tmp_path / "a.jsonl", notes=notes)
    file.append(RECORDS)
    assert held(opened(file.path, notes=notes)) == RECORDS and notes == []
    file.path.write_bytes(file.path.read_bytes()[5:])
    again = opened(file.path, notes=notes)
    assert notes == ["a.jsonl cannot be read; moved to a.jsonl.other"]
    again.append(RECORDS[:1])
    assert held(opened(file.path)) == RECORDS[:1]


def test_another_design_is_set_aside_and_taken_up_again(tmp_path):
    notes: list[str] = []
    opened(tmp_path / "a.jsonl", "old").append(RECORDS)
    file = opened(tmp_path / "a.jsonl", "new", notes)
    assert held(file) == []
    file.append(RECORDS[:1])
    assert held(file) == RECORDS[:1]
    assert notes == ["a.jsonl has measurements of other settings; moved to a.jsonl.other"]
    notes.clear()
    assert held(opened(tmp_path / "a.jsonl", "old", notes)) == RECORDS
    assert [note.split(" ", 1)[0] for note in notes] == ["a.jsonl", "a.jsonl.other"]
    assert "going on from there" in notes[1]
    opened(tmp_path / "a.jsonl", "new").remove()
    assert held(opened(tmp_path / "a.jsonl", "old")) == RECORDS
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_nothing_that_was_set_aside_is_lost(tmp_path):
    for number, design in enumerate(("first", "second", "third")):
        opened(tmp_path / "a.jsonl", design).append(RECORDS[number:])
    for number, design in enumerate(("first", "second", "third")):
        assert held(opened(tmp_path / "a.jsonl", design)) == RECORDS[number:]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(RunError, match=r"a\.jsonl: cannot be read: .*directory"):
        opened(tmp_path / "a.jsonl")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        RecordFile(tmp_path / "file" / "a.jsonl", "design").append(RECORDS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"a\.jsonl: cannot be written: No space left.*free some space"):
        RecordFile(tmp_path / "a.jsonl", "design").append(RECORDS)


def test_a_file_that_cannot_be_removed_is_one_line(tmp_path, monkeypatch):
    def refuse(path: Path, **how: object) -> None:
        raise PermissionError(13, "Permission denied")

    file = opened(tmp_path / "a.jsonl")
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RunError, match=r"a\.jsonl: cannot be removed: Permission denied"):
        file.remove()


def test_memory_holds_where_records_lie_and_not_the_records(tmp_path):
    """Of three thousand records with 4 KB of losses each, read back: a few dozen bytes for each."""
    losses = [[0.1 + i] * 16 for i in range(9)]
    first, count = opened(tmp_path / "a.jsonl"), 3000
    first.append([Record(f"key{i}", "main", 0, losses, [0.5] * 16) for i in range(count)])
    tracemalloc.start()
    try:
        file = opened(first.path)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert file.get("main", "key2999", 0).losses == losses
    assert used / count < 200
