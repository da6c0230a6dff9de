"""Where captions come from, and what is told or, if strict, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from toolkit.data.scan import ScanResult, scan_dataset

Scan = Callable[..., ScanResult]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "cats"
    path.mkdir()
    return path


@pytest.fixture
def scan(folder: Path, tmp_path: Path) -> Scan:
    return partial(scan_dataset, folder, resolutions=[32], size_multiple=8, memo=tmp_path / "memo")


def draw(path: Path, color: int = 0, caption: str | None = None, size: tuple[int, int] = (40, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color, 0, 255 - color)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


def captions(result: ScanResult) -> list[str]:
    assert result.problems == []
    return [item.caption for item in result.items]


@pytest.mark.parametrize("extension", [".txt", ".caption", ".json"])
def test_the_default_file_of_a_folder_has_the_captions_extension(folder, scan, extension):
    draw(folder / "a.png", 1)
    draw(folder / "b.png", 2)
    draw(folder / "sub" / "c.png", 3)
    for name, text in (("b", "own"), ("default", "of the folder"), ("sub/default", "of the other")):
        content = json.dumps({"caption": text}) if extension == ".json" else text
        (folder / f"{name}{extension}").write_text(content)
    (folder / "default.txt").touch()  # what a program opens that forgets the extension
    result = scan(caption_ext=extension)
    assert captions(result) == ["of the folder", "own", "of the other"]
    assert any("2 of 3 pictures have no caption of their own" in note for note in result.notes)


def test_a_picture_called_default_keeps_its_caption_to_itself(folder, scan):
    draw(folder / "default.png", 1, "mine")
    draw(folder / "other.png", 2)
    assert captions(scan()) == ["mine", ""]


def test_short_captions_where_there_are_some(folder, scan):
    for number, name in enumerate("abc"):
        draw(folder / f"{name}.png", number)
    (folder / "a.json").write_text('{"caption": "a long one", "caption_short": "short"}')
    (folder / "b.json").write_text('{"caption": "only long"}')
    (folder / "c.json").write_text('{"caption_short": "only short"}')
    long = scan(caption_ext="json")
    assert captions(long) == ["a long one", "only long", ""]
    short = scan(caption_ext="json", use_short_captions=True)
    assert captions(short) == ["short", "only long", "only short"]
    assert any("1 of 3 pictures have no caption_short" in note and "b.png" in note for note in short.notes)


def test_replacements_come_in_order_before_the_trigger(folder, scan):
    draw(folder / "a.png", 1, "a photo of a dog, red")
    draw(folder / "b.png", 2, "a cat")
    pairs = [("a photo of ", ""), ("dog", "cat"), ("a cat", "[trigger]"), ("zebra", "horse")]
    result = scan(replacements=pairs, trigger_word="sks")
    assert captions(result) == ["sks, red", "sks"]
    assert [note for note in result.notes if "zebra" in note] == [
        f"replacements: 'zebra' (of 'zebra|horse') is in no caption of {folder}"
    ]
    strict = scan(replacements=pairs, strict=True)
    assert [problem.code for problem in strict.problems] == ["data.replacement"]


def test_captions_without_a_picture_are_told(folder, scan):
    draw(folder / "a.png", 1, "x")
    for name in ("gone.txt", "a.png.txt", "sub/lost.txt", "default.txt", "clip.txt", "notes.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text")
    (folder / "clip.mp4").write_bytes(b"video")
    orphans = [note for note in scan().notes if "no picture of their name" in note]
    told = f"{folder}: 3 caption files have no picture of their name"
    assert orphans == [f"{told}: a.png.txt, gone.txt, sub/lost.txt"]


def test_without_captions_none_is_read_or_missed(folder, scan):
    draw(folder / "a.png", 1)
    (folder / "gone.txt").write_bytes(b"\xff")
    result = scan(captioned=False, strict=True)
    assert captions(result) == [""]
    assert result.notes == []


def test_strict_turns_every_note_on_a_file_into_an_error_all_at_once(folder, scan):
    draw(folder / "missing.png", 1)
    draw(folder / "empty.png", 2, " ")
    draw(folder / "small.png", 3, "x", size=(200, 6))
    draw(folder / "copy1.png", 4, "x")
    draw(folder / "copy2.png", 4, "x")
    entries = b"\x01\x1c\x00\x02\x00\x00\x00\x04abc\x00" + b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x02" + entries + bytes(4)
    Image.new("RGB", (40, 40), (8, 8, 8)).save(folder / "exif.jpg", exif=exif)
    (folder / "exif.txt").write_text("x")
    frames = [Image.new("RGB", (40, 40), (1, 2, 3))]
    Image.new("RGB", (40, 40), (9, 9, 9)).save(folder / "moving.png", save_all=True, append_images=frames)
    (folder / "moving.txt").write_text("x")
    (folder / "old.gif").write_bytes(b"GIF89a")
    (folder / "gone.txt").write_text("x")
    lenient = scan()
    assert lenient.problems == []
    assert len(lenient.items) == 7
    strict = scan(strict=True)
    found = {(problem.code, Path(problem.file).name) for problem in strict.problems}
    expected = {
        ("data.no_caption", "missing.png"),
        ("data.empty_caption", "empty.png"),
        ("data.enlarged", "small.png"),
        ("data.duplicate", "copy1.png"),
        ("data.odd_picture", "exif.jpg"),
        ("data.odd_picture", "moving.png"),
        ("data.unread_file", "old.gif"),
        ("data.orphan_caption", "gone.txt"),
    }
    assert expected <= found
    assert {code for code, _ in found} == {code for code, _ in expected}
    assert strict.notes == []
    # Each of them is told where it is let pass.
    for _, name in expected:
        assert any(name in note for note in lenient.notes)
