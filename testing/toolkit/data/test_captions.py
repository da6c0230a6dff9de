"""Captions: reading and trigger words."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.data.captions import Caption, insert_trigger, read_caption
from toolkit.errors import DatasetError


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
    assert read_caption(path) == Caption(expected)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"caption": "a  cat", "caption_short": " cat"}', Caption("a cat", "cat")),
        ('{"caption": "a cat", "other": 3}', Caption("a cat")),
        ('{"caption_short": "cat"}', Caption("", "cat")),
        ('{"caption": null, "caption_short": null}', Caption("")),
        ('"a dog"', Caption("a dog")),
        (" \n", Caption("")),
    ],
)
def test_json_captions(tmp_path: Path, text: str, expected: Caption) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert read_caption(path) == expected


@pytest.mark.parametrize("text", ["{", '{"caption": 3}', '{"caption_short": ["a"]}', "[1]", "7", "null"])
def test_json_of_another_form_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
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
