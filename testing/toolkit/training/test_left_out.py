"""The record of batches that a run passes over."""

import json

import pytest

from toolkit.errors import RunError
from toolkit.training.left_out import LeftOut, LeftOutRecord


def test_what_is_recorded_comes_back_for_the_same_data_only(tmp_path):
    record = LeftOutRecord(tmp_path, "data")
    record.add(LeftOut("out_of_memory", 3, 6, 9, ["a.png"]))
    record.add(LeftOut("non_finite", 7, 12, 14, ["b.png"], back_to=5))
    again = LeftOutRecord(tmp_path, "data")
    assert again.entries == record.entries
    assert again.positions == {6, 7, 8, 12, 13}
    assert again.times_back_to(5) == 1 and again.times_back_to(3) == 0
    assert LeftOutRecord(tmp_path, "other data").positions == set()


def test_what_is_dropped_is_gone(tmp_path):
    record = LeftOutRecord(tmp_path, "data")
    for step in (1, 2, 3):
        record.add(LeftOut("out_of_memory", step, step, step + 1, []))
    record.drop(2)
    assert LeftOutRecord(tmp_path, "data").positions == {1}
    record.drop(0)
    assert record.positions == {1}


def test_a_newer_record_is_refused(tmp_path):
    record = LeftOutRecord(tmp_path, "data")
    record.add(LeftOut("out_of_memory", 1, 1, 2, []))
    content = json.loads(record.path.read_text())
    record.path.write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(RunError, match="newer than this program reads"):
        LeftOutRecord(tmp_path, "data")


@pytest.mark.parametrize(
    "content", ["[]", '{"schema', '{"layout": "data"}', '{"layout": "data", "entries": [{}]}']
)
def test_a_damaged_record_is_known_as_such(tmp_path, content):
    record = LeftOutRecord(tmp_path, "data")
    assert not record.damaged
    record.path.write_text(content)
    again = LeftOutRecord(tmp_path, "data")
    assert (again.damaged, again.entries) == (True, [])
