"""Pictures are held to what was scanned."""

import hashlib
import os

import pytest

from toolkit.data.items import Bucket, MediaItem, Placement
from toolkit.data.unchanged import MOST_NAMED, Unchanged
from toolkit.errors import DatasetError


def item(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return MediaItem(digest, path, digest, "", "set", Bucket(8, 8), Placement(8, 8, 0, 0))


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{index:02d}.png" for index in range(MOST_NAMED + 3)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def test_a_touched_file_passes_and_a_changed_one_is_named(pictures):
    load = Unchanged(map(item, pictures)).watching(lambda path: path.read_bytes())
    assert load(pictures[0]) == b"00.png"
    os.utime(pictures[0], (1, 1))
    assert load(pictures[0]) == b"00.png"
    pictures[0].write_bytes(b"11.png")
    with pytest.raises(DatasetError, match=r"00.png: the picture has changed since the run began"):
        load(pictures[0])
    assert load(pictures[1]) == b"01.png"


def test_an_unchanged_file_is_hashed_once(pictures, monkeypatch):
    load = Unchanged(map(item, pictures)).watching(lambda path: None)
    load(pictures[0])
    monkeypatch.setattr(hashlib, "sha256", None)
    load(pictures[0])


def test_a_change_between_the_scan_and_the_first_reading_is_seen(pictures):
    load = Unchanged([item(path) for path in pictures]).watching(lambda path: None)
    pictures[0].write_bytes(b"other")
    with pytest.raises(DatasetError, match="changed"):
        load(pictures[0])


def test_a_picture_that_vanishes_while_it_is_read_is_named(pictures):
    load = Unchanged([item(path) for path in pictures]).watching(lambda path: path.unlink())
    with pytest.raises(DatasetError, match="00.png: the picture has vanished since the run began"):
        load(pictures[0])


def test_all_that_vanished_is_told_at_once(pictures):
    load = Unchanged([item(path) for path in pictures]).watching(lambda path: path.read_bytes())
    for path in pictures[:2]:
        path.unlink()
    with pytest.raises(DatasetError) as caught:
        load(pictures[1])
    assert [problem.file for problem in caught.value.problems] == [str(path) for path in pictures[:2]]
    for path in pictures[2:]:
        path.unlink()
    with pytest.raises(DatasetError) as caught:
        load(pictures[1])
    assert len(caught.value.problems) == MOST_NAMED + 1
    assert str(caught.value).endswith("and 3 more of 23 pictures have vanished")
