"""Captions: reading, trigger words, dropout."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from toolkit.data.captions import insert_trigger, read_caption
from toolkit.data.items import Bucket, MediaItem, Placement
from toolkit.errors import DatasetError


def item(caption: str, rate: float = 0.0) -> MediaItem:
    return MediaItem("1", Path("a.png"), "0", caption, "d", Bucket(8, 8), Placement(8, 8, 0, 0), rate)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a red square", "a red square"),
        (b"\xef\xbb\xbfa cat\r\n", "a cat"),
        ("ein Bär, 猫".encode(), "ein Bär, 猫"),
        (b"  one,\n\n two\t three  ", "one, two three"),
        (b"", ""),
        (b" \n ", ""),
    ],
)
def test_text_files(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert read_caption(path) == expected


def test_no_file_is_not_an_empty_caption(tmp_path: Path) -> None:
    assert read_caption(tmp_path / "a.txt") is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("ein Bär".encode("latin-1"), r"not UTF-8 \(byte 6\)"),
        ("a cat".encode("utf-16"), "UTF-16"),
        ("a cat".encode("utf-16-le"), "NUL"),
    ],
)
def test_other_encodings_are_named(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=reason) as caught:
        read_caption(path)
    assert str(path) in str(caught.value)
    assert "UTF-8" in str(caught.value)


def test_a_folder_in_place_of_the_caption(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(DatasetError, match="cannot be read"):
        read_caption(tmp_path / "a.txt")


def test_json_captions(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"caption": "a cat", "caption_short": "cat"}')
    assert read_caption(path) == "a cat"
    path.write_text('"a dog"')
    assert read_caption(path) == "a dog"
    for wrong in ("{", '{"caption": 3}', "[1]"):
        path.write_text(wrong)
        with pytest.raises(DatasetError, match=r"a\.json"):
            read_caption(path)


@pytest.mark.parametrize(
    ("caption", "trigger", "prepend", "expected"),
    [
        ("a photo of [trigger]", "sks", True, "a photo of sks"),
        ("[name] and [trigger]", "sks", True, "sks and sks"),
        ("a cat", "sks", True, "sks a cat"),
        ("", "sks", True, "sks"),
        ("a sks cat", "sks", True, "a sks cat"),
        ("she asks", "sks", True, "sks she asks"),  # the letters alone are not the word
        ("SKS cat", "sks", True, "sks SKS cat"),
        ("一只猫猫坐着", "猫猫", True, "一只猫猫坐着"),
        ("a c++ mug", "c++", True, "a c++ mug"),
        ("a cat", "sks", False, "a cat"),
        ("a [trigger] cat", "sks", False, "a sks cat"),
        ("", "sks", False, ""),
        ("a cat", None, True, "a cat"),
        ("a photo of [trigger], old", None, True, "a photo of , old"),
        ("[name] cat", "", True, "cat"),
    ],
)
def test_trigger_words(caption: str, trigger: str | None, prepend: bool, expected: str) -> None:
    assert insert_trigger(caption, trigger, prepend=prepend) == expected


def test_dropout_removes_the_whole_caption_at_its_rate() -> None:
    texts = [final_caption(item("sks cat", 0.3), Random(seed)) for seed in range(4000)]
    assert set(texts) == {"", "sks cat"}
    assert texts.count("") / len(texts) == pytest.approx(0.3, abs=0.03)


def test_dropout_never_and_always() -> None:
    assert {final_caption(item("x", 0.0), Random(seed)) for seed in range(200)} == {"x"}
    assert {final_caption(item("x", 1.0), Random(seed)) for seed in range(200)} == {""}


def test_possible_captions_are_what_can_be_drawn() -> None:
    assert possible_captions([item("a"), item("b"), item("a")]) == ["a", "b"]
    assert possible_captions([item("a", 0.5), item("b", 1.0)]) == ["a", ""]
