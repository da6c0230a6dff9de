"""Measurements on disk: a cut line costs that line only, another design is never mixed in."""

from __future__ import annotations

import pytest

from toolkit.errors import RunError
from toolkit.evaluation.records import Record, RecordFile

RECORDS = [Record(f"key{i}", "main", 0, [[0.1 * i, 0.2], [0.3, 0.4]], [0.5, 0.9]) for i in range(3)]


def test_records_come_back(tmp_path):
    file = RecordFile(tmp_path / "made" / "a.jsonl", "design")
    assert file.load() == []
    file.append(RECORDS[:1])
    file.append(RECORDS[1:])
    assert RecordFile(file.path, "design").load() == RECORDS
    file.remove()
    file.remove()
    assert not file.path.exists()


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path, cut):
    file = RecordFile(tmp_path / "a.jsonl", "design")
    file.append(RECORDS)
    file.path.write_bytes(file.path.read_bytes()[:-cut])
    again = RecordFile(file.path, "design")
    kept = RECORDS if cut == 1 else RECORDS[:2]  # one byte is the end of the line
    assert again.load() == kept
    again.append(RECORDS[:1])
    assert RecordFile(file.path, "design").load() == [*kept, RECORDS[0]]


def test_bytes_that_are_no_text_cost_their_line(tmp_path):
    file = RecordFile(tmp_path / "a.jsonl", "design")
    file.append(RECORDS[:1])
    with file.path.open("ab") as stream:
        stream.write(b"\x00\xff\xfe{}\n" + b'{"key": "no losses"}\n')
    file.append(RECORDS[1:])
    assert file.load() == RECORDS
    assert file.notes == []


def test_another_design_is_set_aside(tmp_path):
    RecordFile(tmp_path / "a.jsonl", "old").append(RECORDS)
    file = RecordFile(tmp_path / "a.jsonl", "new")
    assert file.load() == []
    assert "a.jsonl.other" in file.notes[0]
    file.append(RECORDS[:1])
    assert file.load() == RECORDS[:1]
    assert RecordFile(tmp_path / "a.jsonl.other", "old").load() == RECORDS


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        RecordFile(tmp_path / "file" / "a.jsonl", "design").append(RECORDS)
