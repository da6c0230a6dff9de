"""Masks and boxes of subjects on a plain background."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageDraw

from toolkit.data.companions import CompanionSettings
from toolkit.data.scan import scan_dataset
from toolkit.paths import DATASETS_ROOT
from tools import find_subjects
from tools.find_subjects import subject


def disk(background: tuple[int, int, int], hole: bool = False) -> Image.Image:
    image = Image.new("RGB", (40, 30), background)
    pen = ImageDraw.Draw(image)
    pen.ellipse((10, 5, 29, 24), fill=(200, 30, 30))
    if hole:
        pen.ellipse((16, 11, 23, 18), fill=background)
    return image


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (255, 0, 255), (20, 30, 90)])
@pytest.mark.parametrize("hole", [False, True])
def test_the_subject_is_all_that_the_background_does_not_reach(background, hole) -> None:
    mask = subject(disk(background, hole))
    wanted = Image.new("L", (40, 30))
    ImageDraw.Draw(wanted).ellipse((10, 5, 29, 24), fill=255)
    assert numpy.array_equal(numpy.asarray(mask), numpy.asarray(wanted))


def test_an_uneven_background_is_one_within_the_tolerance() -> None:
    image = disk((100, 100, 100))
    image.putpixel((0, 15), (104, 97, 103))
    assert subject(image).getpixel((0, 15)) == 0
    assert subject(image, tolerance=5).getpixel((0, 15)) == 255


def test_masks_and_boxes_are_what_a_dataset_takes(tmp_path: Path) -> None:
    data, masks = tmp_path / "data", tmp_path / "data" / "masks"
    (data / "sub").mkdir(parents=True)
    disk((9, 9, 90)).save(data / "a.png")
    disk((250, 250, 250)).save(data / "sub" / "b.webp", lossless=True)
    (data / "a.json").write_text('{"caption": "kept", "poi": {"other": {"x": 1, "y": 2}}}')
    assert find_subjects.main([str(data), "--masks", str(masks), "--poi", "disk"]) == 0
    assert json.loads((data / "a.json").read_text()) == {
        "caption": "kept",
        "poi": {"other": {"x": 1, "y": 2}, "disk": {"x": 10, "y": 5, "width": 20, "height": 20}},
    }
    wanted = CompanionSettings(mask_folder=masks, poi="disk")
    result = scan_dataset(
        data, resolutions=[32], size_multiple=8, memo=tmp_path / "memo", companions=wanted
    ).require_valid()
    assert [item.path.name for item in result.items] == ["a.png", "b.webp"]
    assert all(item.mask and item.crops and item.crops.poi == (10, 5, 30, 25) for item in result.items)


def test_what_has_no_plain_background_or_no_subject_is_listed_and_nothing_written(tmp_path, capsys) -> None:
    image = disk((255, 255, 255))
    image.save(tmp_path / "good.png")
    image.putpixel((0, 0), (0, 0, 0))
    image.save(tmp_path / "busy.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "empty.png")
    assert find_subjects.main([str(tmp_path), "--poi", "disk"]) == 2
    told = capsys.readouterr().err
    assert "busy.png: its corners have different colours" in told
    assert "empty.png: shows nothing but background" in told
    assert not list(tmp_path.glob("*.json"))
    (tmp_path / "none").mkdir()
    assert find_subjects.main([str(tmp_path / "none"), "--poi", "disk"]) == 2


@pytest.mark.parametrize(
    ("content", "reason"), [('"a caption"', "holds something else already"), ("{", "not valid JSON")]
)
def test_a_json_file_that_says_something_else_is_kept(tmp_path, capsys, content, reason) -> None:
    disk((0, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(content)
    assert find_subjects.main([str(tmp_path), "--poi", "disk"]) == 2
    assert reason in capsys.readouterr().err
    assert (tmp_path / "a.json").read_text() == content


def test_the_embedded_masks_and_boxes_are_the_tools_own() -> None:
    for path in sorted((DATASETS_ROOT / "zrb_faces").glob("*.png")):
        with Image.open(path) as picture, Image.open(DATASETS_ROOT / "zrb_masks" / path.name) as mask:
            assert numpy.array_equal(numpy.asarray(subject(picture.convert("RGB"))) > 0, numpy.asarray(mask))
    for path in sorted((DATASETS_ROOT / "glossy").glob("*.png")):
        poi = json.loads(path.with_suffix(".json").read_text())["poi"]["shape"]
        with Image.open(path) as picture:
            left, top, right, bottom = subject(picture.convert("RGB")).getbbox() or (0, 0, 0, 0)
        assert poi == {"x": left, "y": top, "width": right - left, "height": bottom - top}
