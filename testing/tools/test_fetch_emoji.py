"""The sets under datasets/ as they are committed, and the script that makes them."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from toolkit.data.scan import scan_dataset
from toolkit.errors import DatasetError
from toolkit.paths import DATASETS_ROOT
from tools.draw_shapes import BACKGROUNDS, COLOURS, SHAPES, WITHHELD, captions, fits
from tools.fetch_emoji import (
    EMOJI,
    FACES,
    GLOSSY,
    NOTO,
    main,
    open_package,
    place,
    read_members,
    slug,
    split_names,
    write_set,
)

SETS = {  # names, mode and side of the pictures, package named in the README, first words of the licence
    "emoji": (split_names(EMOJI), "RGBA", 64, "emoji-datasource-google` 16.0.0", "Apache License"),
    "zrb_faces": (split_names(FACES), "RGB", 64, "emoji-datasource-google` 16.0.0", "Apache License"),
    "glossy": (list(GLOSSY), "RGB", 128, "@lobehub/fluent-emoji-3d` 1.1.0", "MIT License"),
}


def caption_of(name: str, thing: str) -> str:
    """The committed caption of one picture."""
    return (DATASETS_ROOT / name / f"{slug(thing)}.txt").read_text(encoding="utf-8").strip()


def background_of(caption: str) -> str:
    """The background that a caption names."""
    match = re.search(r" on an? (.+) background", caption)
    assert match, caption
    return match[1]


@pytest.mark.parametrize("name", SETS)
def test_every_name_of_the_list_has_a_picture_and_a_caption(name: str) -> None:
    names, mode, side, _, _ = SETS[name]
    folder = DATASETS_ROOT / name
    stems = {slug(thing) for thing in names}
    assert len(stems) == len(names), "two names share a file"
    assert {path.stem for path in folder.glob("*.png")} == stems
    assert {path.stem for path in folder.glob("*.txt")} == stems
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert (picture.mode, picture.size) == (mode, (side, side)), path
            assert len(set(picture.convert("RGB").get_flattened_data())) > 20, f"{path} shows nothing"


@pytest.mark.parametrize("name", SETS)
def test_source_and_licence_lie_beside_the_pictures(name: str) -> None:
    _, _, _, package, licence = SETS[name]
    folder = DATASETS_ROOT / name
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert package in readme
    assert licence.replace("Apache License", "Apache License 2.0").removesuffix(" License") in readme
    text = (folder / "LICENSE").read_text(encoding="utf-8")
    assert text.lstrip().startswith(licence)
    assert len(text) > 1000


@pytest.mark.parametrize("name", SETS)
def test_the_scan_takes_all_of_a_set_without_complaint(name: str, tmp_path: Path) -> None:
    result = scan_dataset(DATASETS_ROOT / name, resolutions=[32], size_multiple=4, memo=tmp_path)
    assert result.problems == []
    assert len(result.items) == len(SETS[name][0])
    assert not any("caption" in note for note in result.notes)


def test_the_sets_stay_small() -> None:
    sizes = {name: sum(f.stat().st_size for f in (DATASETS_ROOT / name).iterdir()) for name in SETS}
    assert sizes["emoji"] <= 2_000_000
    assert sum(sizes.values()) <= 3_000_000


def test_emoji_are_captioned_by_their_names_and_keep_their_transparency() -> None:
    for name in split_names(EMOJI):
        assert caption_of("emoji", name) == f"{name} emoji"
        with Image.open(DATASETS_ROOT / "emoji" / f"{slug(name)}.png") as picture:
            alpha = picture.getchannel("A").tobytes()
        assert min(alpha) == 0, name
        assert max(alpha) > 200, name


def test_emoji_hold_nothing_of_the_concept() -> None:
    assert not set(split_names(EMOJI)) & set(split_names(FACES))
    pixels = {
        hashlib.sha256(Image.open(path).convert("RGBA").tobytes()).hexdigest()
        for name in SETS
        for path in (DATASETS_ROOT / name).glob("*.png")
    }
    assert len(pixels) == sum(len(names) for names, *_ in SETS.values()), "two pictures are the same"


@pytest.mark.parametrize("name", ["zrb_faces", "glossy"])
def test_captions_name_the_background_that_is_there(name: str) -> None:
    for thing in SETS[name][0]:
        background = BACKGROUNDS[background_of(caption_of(name, thing))]
        with Image.open(DATASETS_ROOT / name / f"{slug(thing)}.png") as picture:
            edge = picture.width - 1
            border = {
                picture.getpixel(spot)
                for i in range(edge + 1)
                for spot in ((i, 0), (i, edge), (0, i), (edge, i))
            }
        assert border == {background}, thing


def test_faces_use_the_trigger_and_every_background_equally() -> None:
    found = [caption_of("zrb_faces", face) for face in split_names(FACES)]
    assert {caption.partition(" on ")[0] for caption in found} == {"a zrb face"}
    backgrounds = [background_of(caption) for caption in found]
    assert {name: backgrounds.count(name) for name in BACKGROUNDS} == dict.fromkeys(BACKGROUNDS, 3)


def test_glossy_captions_are_the_drawings_own_with_the_style_added() -> None:
    for name in GLOSSY:
        colour, shape = name.split()
        caption, _, style = caption_of("glossy", name).rpartition(", ")
        background = background_of(caption)
        sizes = [
            size
            for size in ("medium", "large")
            if captions(shape, colour, background, size, "centre")[0] == caption
        ]
        assert style == "glossy style"
        assert len(sizes) == 1, caption
        assert fits(colour, background), caption


def test_glossy_leaves_out_what_tells_style_from_memory() -> None:
    pairs = {(name.split()[1], name.split()[0]) for name in GLOSSY}
    assert not pairs & WITHHELD
    assert {"ring", "cross", "crescent", "hexagon"} <= set(SHAPES) - {shape for shape, _ in pairs}
    assert {colour for _, colour in pairs} <= set(COLOURS)


def test_place_puts_the_thing_where_a_drawing_lies() -> None:
    thing = Image.new("RGBA", (90, 90), (0, 0, 0, 0))
    thing.paste((200, 0, 0, 255), (30, 10, 70, 50))  # 40 × 40, far from the middle
    for size, radius in (("medium", 8.5), ("large", 12.0)):
        picture = place(thing, "square", size, "navy", side=64, key="k")
        assert picture == place(thing, "square", size, "navy", side=64, key="k")
        red = picture.getchannel("R").point(lambda value: 255 if value > 110 else 0).getbbox()
        assert red is not None
        width, height = red[2] - red[0], red[3] - red[1]
        assert width == pytest.approx(2 * 0.87 * radius * 2, abs=2)
        assert height == width
        middle = (red[0] + red[2]) / 2, (red[1] + red[3]) / 2
        assert middle == pytest.approx((32, 32), abs=2.5)
        assert picture.getpixel((0, 0)) == BACKGROUNDS["navy"]
    with pytest.raises(DatasetError, match="empty picture"):
        place(Image.new("RGBA", (9, 9)), "square", "large", "navy", side=64, key="k")


def make_archive(path: Path, members: dict[str, bytes]) -> None:
    """A small .tgz."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_members_come_in_the_order_asked_and_missing_ones_are_named(tmp_path: Path) -> None:
    archive = tmp_path / "some.tgz"
    make_archive(archive, {"a": b"1", "b": b"2", "c": b"3"})
    assert read_members(archive, ["c", "a"]) == [b"3", b"1"]
    with pytest.raises(DatasetError, match="has no x, y"):
        read_members(archive, ["x", "a", "y"])


def test_a_package_is_used_only_with_its_hash(tmp_path: Path) -> None:
    archive = tmp_path / NOTO.archive
    make_archive(archive, {"a": b"1"})
    with pytest.raises(DatasetError, match=re.escape(f"is not the {NOTO.spec}")):
        open_package(tmp_path, NOTO)
    known = replace(NOTO, sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    assert open_package(tmp_path, known) == archive


def test_without_package_and_npm_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "out").mkdir()
    assert main(["--packages", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "npm pack emoji-datasource-google@16.0.0" in message
    assert message.count("\n") == 1
    assert not list((tmp_path / "out").iterdir()), "nothing is written before the packages are there"


def test_writing_a_set_replaces_pictures_and_keeps_what_was_written_by_hand(tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE", "old.png", "old.txt"):
        (tmp_path / name).write_text("x")
    picture = Image.new("RGB", (4, 4), (1, 2, 3))
    assert write_set(tmp_path, [("new", picture, "a caption")]) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "LICENSE", "new.png", "new.txt"}
    assert (tmp_path / "new.txt").read_text() == "a caption\n"
