"""A dataset as a file that lists pictures: three forms, and everything that can be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from toolkit.data.captions import Caption
from toolkit.data.dataset_list import is_list, read_list
from toolkit.data.scan import scan_dataset
from toolkit.errors import DatasetError

EXPECTED = {"a.png": Caption("a cat", "cat"), "sub/b.png": Caption("a dog")}
FORMS = {
    "object.json": json.dumps(
        {"sub/b.png": {"caption": " a  dog "}, "./a.png": {"caption": "a cat", "caption_short": "cat"}}
    ),
    "plain.json": json.dumps({"a.png": {"caption": "a cat", "caption_short": "cat"}, "sub/b.png": "a dog"}),
    "list.json": json.dumps(
        [
            {"image_path": "sub/b.png", "text": "a dog"},
            {"path": "a.png", "caption": "a cat", "caption_short": "cat", "score": 3},
        ]
    ),
    "lines.jsonl": '{"file_name": "sub/b.png", "text": "a dog"}\n\n'
    '{"image": "a.png", "caption": "a cat", "caption_short": "cat"}\n',
}


def make_list(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (40, 40), (1, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (40, 40), (2, 0, 0)).save(tmp_path / "sub" / "b.png")
    return tmp_path


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_the_same(folder, name):
    path = make_list(folder, name, FORMS[name])
    assert is_list(path)
    assert list(read_list(path).items()) == list(EXPECTED.items())


@given(st.dictionaries(st.text("abc", min_size=1), st.text(st.characters(exclude_categories=["Cs"]))))
def test_what_is_written_is_what_is_read(tmp_path_factory, captions):
    if not captions:
        return
    folder = tmp_path_factory.mktemp("lists")
    listed = {f"{name}.png": {"caption": text} for name, text in captions.items()}
    found = read_list(make_list(folder, "x.json", json.dumps(listed)))
    assert found == {name: Caption(" ".join(entry["caption"].split())) for name, entry in listed.items()}


def test_pictures_elsewhere_are_found(folder, tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    (home / "near.png").touch()
    path = make_list(
        folder / "sub", "x.json", json.dumps({"b.png": "b", str(folder / "a.png"): "a", "near.png": "n"})
    )
    monkeypatch.chdir(home)
    assert list(read_list(path)) == sorted([str(folder / "a.png"), "b.png", str(home / "near.png")])


@pytest.mark.parametrize(
    ("name", "text", "reasons"),
    [
        ("x.json", "{", ["not valid JSON"]),
        ("x.json", "3", ["expected an object of pictures or a list"]),
        ("x.json", "{}", ["lists no pictures"]),
        ("x.jsonl", "", ["lists no pictures"]),
        ("x.json", '{"a.png": "one", "a.png": "two"}', ["'a.png' is there twice"]),
        ("x.json", '{"a.png": "one", "./a.png": "two"}', ["'./a.png' is listed twice"]),
        ("x.json", '{"a.png": 3, "b.png": {"caption": 4}, "c.png": "c"}', ["'a.png': exp", "'b.png': exp"]),
        ("x.json", '{"a.png": "a \\ud83d cat", "\\ud83d.png": "b"}',
            [r'half a character under "caption": "a \ud83d cat"', r"half a character in the name '\ud83d."]),
        ("x.json", '[{"caption": "a cat"}, "a.png"]', ["names no picture", "names no picture"]),
        ("x.jsonl", '{"path": "a.png", "text": "a"}\n{"path"', ["line 2"]),
        ("x.jsonl", '{"path": "a.png", "text": "a"}\n{"text": "b"}', [":2: an entry names no picture"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_once(folder, name, text, reasons):
    path = make_list(folder, name, text)
    with pytest.raises(DatasetError) as caught:
        read_list(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(str(path)) for line in lines)
    assert all(reason in line for reason, line in zip(reasons, lines, strict=True))


def test_a_missing_list_and_another_encoding(folder):
    with pytest.raises(DatasetError, match="no such file"):
        read_list(folder / "none.json")
    (folder / "x.json").write_bytes("{}".encode("utf-16"))
    with pytest.raises(DatasetError, match="UTF-16"):
        read_list(folder / "x.json")


def test_a_scan_of_a_list_takes_its_pictures_and_captions_alone(folder):
    (folder / "a.txt").write_text("not this")
    Image.new("RGB", (40, 40), (3, 0, 0)).save(folder / "unlisted.png")
    path = make_list(folder, "data.json", FORMS["object.json"])
    options = {"resolutions": [32], "size_multiple": 8, "memo": folder / "memo"}
    result = scan_dataset(path, trigger_word="sks", **options)
    assert result.problems == result.notes == []
    assert [(item.path, item.caption) for item in result.items] == [
        (folder / "a.png", "sks a cat"),
        (folder / "sub" / "b.png", "sks a dog"),
    ]
    short = scan_dataset(path, use_short_captions=True, default_caption="x", **options)
    assert [item.caption for item in short.items] == ["cat", "a dog"]


def test_a_scan_of_a_list_names_what_is_missing_or_not_read(folder):
    listed = {"a.png": "a", "gone.png": "b", "also_gone.jpg": "c", "clip.mp4": "d", "sub/b.png": {}}
    path = make_list(folder, "data.json", json.dumps(listed))
    result = scan_dataset(path, resolutions=[32], size_multiple=8, memo=folder / "memo")
    assert [Path(problem.file).name for problem in result.problems] == ["also_gone.jpg", "gone.png"]
    assert any("clip.mp4" in note and "not read" in note for note in result.notes)
    assert any(
        "1 of 2 pictures have an empty caption" in note and "sub/b.png" in note for note in result.notes
    )
    [problem] = scan_dataset(folder / "none.json", resolutions=[32], size_multiple=8).problems
    assert problem.code == "data.list"
