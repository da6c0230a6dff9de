"""Masks, control pictures and points of interest find their pictures; what does not fit is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from testing.toolkit.data.test_scan import count_opens
from toolkit.data.companions import CompanionSettings, match_stems, read_pois
from toolkit.data.crops import CropSettings
from toolkit.data.items import MaskSource
from toolkit.data.scan import ScanResult, scan_dataset
from toolkit.errors import DatasetError

Scan = Callable[..., ScanResult]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of 40 x 20 pixels, one in a folder below."""
    for number, name in enumerate(("a", "b", "sub/c")):
        draw(tmp_path / "data" / f"{name}.png", (40, 20), number)
    return tmp_path / "data"


@pytest.fixture
def scan(folder: Path, tmp_path: Path) -> Scan:
    return partial(scan_dataset, folder, resolutions=[32], size_multiple=8, memo=tmp_path / "memo")


def draw(path: Path, size: tuple[int, int] = (40, 20), color: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size)
    image.paste(color, (0, 0, size[0] // 2, size[1]))
    image.save(path)
    return path


def masked(masks: Path, **more: object) -> CompanionSettings:
    return CompanionSettings(mask_folder=masks, **more)  # type: ignore[arg-type]


def masks_of(result: ScanResult) -> dict[str, MaskSource | None]:
    return {item.path.stem: item.mask for item in result.items}


# -- which file belongs to which picture -------------------------------------------------------------------


def test_stems_match_by_path_and_else_by_name_alone_if_that_is_clear():
    names = ["a.png", "x/b.jpg", "x/c.png", "y/c.png"]
    files = ["a.webp", "b.png", "c.png", "x/c.png", "z.png"]
    assert match_stems(names, files) == {
        "a.png": ["a.webp"], "x/b.jpg": ["b.png"], "x/c.png": ["x/c.png"], "y/c.png": [],
    }  # fmt: skip
    assert match_stems(["a.png"], ["a.png", "a.jpg"]) == {"a.png": ["a.png", "a.jpg"]}
    assert match_stems(["a.b.png"], ["a.b.jpg", "a.jpg"]) == {"a.b.png": ["a.b.jpg"]}


# -- masks -------------------------------------------------------------------------------------------------


def test_masks_of_a_folder_of_any_size_with_the_pictures_proportions(scan: Scan, tmp_path: Path) -> None:
    for name, size in (("a.png", (40, 20)), ("b.webp", (200, 100)), ("sub/c.png", (21, 10))):
        draw(tmp_path / "masks" / name, size)
    result = scan(
        companions=masked(tmp_path / "masks", invert_mask=True, mask_min_value=0.25)
    ).require_valid()
    assert masks_of(result) == {
        "a": MaskSource(tmp_path / "masks" / "a.png", False, True, 0.25),
        "b": MaskSource(tmp_path / "masks" / "b.webp", False, True, 0.25),
        "c": MaskSource(tmp_path / "masks" / "sub" / "c.png", False, True, 0.25),
    }
    assert result.notes == scan().notes  # nothing to tell


def test_masks_inside_the_dataset_are_no_pictures(scan: Scan, folder: Path) -> None:
    for name in ("a", "b", "c"):
        draw(folder / "masks" / f"{name}.png")
    assert len(scan().items) == 6
    result = scan(companions=masked(folder / "masks"))
    assert [item.path.stem for item in result.items] == ["a", "b", "c"]
    assert all(masks_of(result).values())


def test_pictures_without_a_mask_are_counted_and_listed(scan: Scan, tmp_path: Path) -> None:
    draw(tmp_path / "masks" / "b.png")
    draw(tmp_path / "masks" / "stranger.png")
    result = scan(companions=masked(tmp_path / "masks")).require_valid()
    assert {name: mask is not None for name, mask in masks_of(result).items()} == {
        "a": False, "b": True, "c": False,
    }  # fmt: skip
    told = "\n".join(result.notes)
    assert "2 of 3 pictures have no mask; all of them counts: a.png, sub/c.png" in told
    assert "1 files belong to no picture: stranger.png" in told


def test_a_mask_that_lets_nothing_count_is_told(scan: Scan, tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 255), ("sub/c", 128)):
        path = tmp_path / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 20), value).save(path)
    told = "\n".join(scan(companions=masked(tmp_path / "masks")).notes)
    assert "1 pictures teach nothing, because their masks leave all of them out: a.png" in told
    told = "\n".join(scan(companions=masked(tmp_path / "masks", invert_mask=True)).notes)
    assert "leave all of them out: b.png" in told
    assert "teach nothing" not in "\n".join(
        scan(companions=masked(tmp_path / "masks", mask_min_value=0.1)).notes
    )


def test_masks_that_do_not_fit_are_all_listed(scan: Scan, tmp_path: Path) -> None:
    draw(tmp_path / "masks" / "a.png", (20, 40))
    draw(tmp_path / "masks" / "b.png")
    draw(tmp_path / "masks" / "b.jpg")
    (tmp_path / "masks" / "sub").mkdir()
    (tmp_path / "masks" / "sub" / "c.png").write_text("no picture")
    problems = scan(companions=masked(tmp_path / "masks")).problems
    told = "\n".join(map(str, problems))
    assert "is 20 x 40, its picture a.png 40 x 20" in told
    assert "has several masks: b.jpg, b.png" in told
    assert "not a PNG" in told
    assert {problem.code for problem in problems} == {"data.mask", "data.unreadable_image"}


def test_a_folder_without_any_mask_is_a_mistake(scan: Scan, tmp_path: Path) -> None:
    draw(tmp_path / "masks" / "stranger.png")
    [problem] = scan(companions=masked(tmp_path / "masks")).problems
    assert "has no mask for any of the 3 pictures" in problem.message
    [problem] = scan(companions=masked(tmp_path / "gone")).problems
    assert problem.code == "data.no_folder"


def test_transparency_as_mask(scan: Scan, folder: Path) -> None:
    [problem] = scan(companions=CompanionSettings(alpha_mask=True)).problems
    assert "none of the 3 pictures has transparency" in problem.message
    Image.new("RGBA", (40, 20), (9, 9, 9, 0)).save(folder / "a.png")
    Image.new("RGBA", (40, 20), (9, 9, 9, 200)).save(folder / "b.png")
    result = scan(companions=CompanionSettings(alpha_mask=True)).require_valid()
    assert masks_of(result) == {
        "a": MaskSource(folder / "a.png", from_alpha=True),
        "b": MaskSource(folder / "b.png", from_alpha=True),
        "c": None,
    }
    told = "\n".join(result.notes)
    assert "1 of 3 pictures have no mask" in told
    assert "teach nothing, because their masks leave all of them out: a.png" in told


def test_a_second_scan_opens_no_mask(
    scan: Scan, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "sub/c"):
        draw(tmp_path / "masks" / f"{name}.png")
        draw(tmp_path / "controls" / f"{name}.png")
    for path in tmp_path.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    wanted = masked(tmp_path / "masks", control_folders=(tmp_path / "controls",))
    first = scan(companions=wanted)
    opened = count_opens(monkeypatch)
    assert scan(companions=wanted) == first
    assert opened == []
    # The very files as pictures of a dataset are looked at on their own terms.
    assert scan_dataset(tmp_path / "masks", resolutions=[32], size_multiple=8, memo=tmp_path / "memo").items
    assert len(opened) == 3


def test_strict_datasets_take_no_oddity(scan: Scan, folder: Path, tmp_path: Path) -> None:
    Image.new("L", (40, 20)).save(draw(tmp_path / "masks" / "b.png"))  # black everywhere
    draw(tmp_path / "masks" / "stranger.png")
    write_poi(folder / "a.json", {"face": {"x": 1, "y": 2}})
    for name in ("a", "b", "sub/c"):
        (folder / name).with_suffix(".txt").write_text("a caption")
    wanted = masked(tmp_path / "masks", poi="face")
    problems = scan(companions=wanted, strict=True).problems
    odd = [(problem.code, Path(problem.file or "").name) for problem in problems]
    assert sorted(odd) == [
        ("data.empty_mask", "b.png"), ("data.no_mask", "a.png"), ("data.no_mask", "c.png"),
        ("data.no_poi", "b.png"), ("data.no_poi", "c.png"), ("data.stray_file", "stranger.png"),
    ]  # fmt: skip
    assert scan(companions=wanted).problems == []


# -- control pictures --------------------------------------------------------------------------------------


def test_control_pictures_come_in_the_order_of_their_folders(scan: Scan, tmp_path: Path) -> None:
    for kind in ("edges", "depth"):
        for name in ("a", "b", "sub/c"):
            draw(tmp_path / kind / f"{name}.png")
    wanted = CompanionSettings(
        control_folders=(tmp_path / "edges", tmp_path / "depth"), control_color=(1, 2, 3)
    )
    item = scan(companions=wanted).require_valid().items[2]
    assert item.control_paths == (tmp_path / "edges" / "sub" / "c.png", tmp_path / "depth" / "sub" / "c.png")
    assert (item.control_color, item.full_size_controls) == ((1, 2, 3), True)


def test_a_missing_control_picture_is_a_mistake(scan: Scan, tmp_path: Path) -> None:
    draw(tmp_path / "edges" / "a.png")
    [problem] = scan(companions=CompanionSettings(control_folders=(tmp_path / "edges",))).problems
    assert problem.message == "has no usable control picture for 2 of 3 pictures: b.png, sub/c.png"


def test_only_control_pictures_that_are_cut_need_the_proportions(scan: Scan, tmp_path: Path) -> None:
    for name in ("a", "b", "sub/c"):
        draw(tmp_path / "edges" / f"{name}.png", (30, 30))
    wanted = CompanionSettings(control_folders=(tmp_path / "edges",))
    assert {problem.code for problem in scan(companions=wanted).problems} == {"data.control"}
    loose = CompanionSettings(control_folders=(tmp_path / "edges",), aligned_controls=False)
    assert not scan(companions=loose).require_valid().items[0].full_size_controls


# -- points of interest ------------------------------------------------------------------------------------


def write_poi(path: Path, poi: object, **more: object) -> None:
    path.write_text(json.dumps({"poi": poi, **more}))


def test_points_of_interest_need_no_json_captions(scan: Scan, folder: Path) -> None:
    """In ai-toolkit `poi` asks for caption_ext 'json' while '.json' is stored, so that it never works."""
    (folder / "a.txt").write_text("a caption")
    write_poi(
        folder / "a.json", {"face": {"x": 10, "y": 4, "width": 6, "height": 8}, "hand": {"x": 1, "y": 1}}
    )
    write_poi(folder / "b.json", {"face": {"x": 39, "y": 19}})
    result = scan(companions=CompanionSettings(poi="face")).require_valid()
    items = {item.path.stem: item for item in result.items}
    assert items["a"].caption == "a caption"
    assert items["a"].crops is not None and items["a"].crops.poi == (10, 4, 16, 12)
    assert items["b"].crops is not None and items["b"].crops.poi == (39, 19, 39, 19)
    assert items["c"].crops is None
    told = "1 of 3 pictures have no point of interest 'face': cut as without it: sub/c.png"
    assert told in "\n".join(result.notes)
    moving = scan(companions=CompanionSettings(poi="face"), crops=CropSettings(random_crop=True))
    assert all(item.crops is not None for item in moving.items)


def test_a_json_caption_file_may_hold_both(scan: Scan, folder: Path) -> None:
    write_poi(folder / "a.json", {"face": {"x": 1, "y": 2}}, caption="told here")
    item = scan(companions=CompanionSettings(poi="face"), caption_ext="json").items[0]
    assert item.caption == "told here"
    assert item.crops is not None and item.crops.poi == (1, 2, 1, 2)


def test_a_box_that_reaches_beyond_its_picture_is_cut_there(scan: Scan, folder: Path) -> None:
    write_poi(folder / "a.json", {"face": {"x": -5, "y": 10, "width": 100, "height": 30}})
    [item, *_] = scan(companions=CompanionSettings(poi="face")).require_valid().items
    assert item.crops is not None and item.crops.poi == (0, 10, 40, 20)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"poi": {"face": {"x": 1}}}', "needs x and y"),
        ('{"poi": {"face": {"x": "1", "y": 2}}}', "needs x and y"),
        ('{"poi": {"face": {"x": true, "y": 2}}}', "needs x and y"),
        ('{"poi": {"face": [1, 2]}}', "needs x and y"),
        ('{"poi": {"face": {"x": 1, "y": 2, "width": -3}}}', "numbers that are no box"),
        ('{"poi": {"face": {"x": NaN, "y": 2}}}', "numbers that are no box"),
        ('{"poi": {"face": {"x": 50, "y": 2}}}', "outside of its picture of 40 x 20"),
        ('{"poi": []}', "must be an object"),
        ('{"poi": ', "not valid JSON"),
    ],
)
def test_a_point_of_interest_that_cannot_be_read_is_told(
    scan: Scan, folder: Path, content: str, reason: str
) -> None:
    (folder / "a.json").write_text(content)
    write_poi(folder / "b.json", {"face": {"x": 1, "y": 2}})
    [problem] = scan(companions=CompanionSettings(poi="face")).problems
    assert reason in problem.message
    assert (problem.code, problem.file) == ("data.poi", str(folder / "a.json"))


def test_a_name_that_no_picture_has_is_a_mistake(scan: Scan, folder: Path) -> None:
    [problem] = scan(companions=CompanionSettings(poi="face")).problems
    assert "there is no `poi` in any of them" in str(problem)
    write_poi(folder / "a.json", {"face": {"x": 1, "y": 2}})
    [problem] = scan(companions=CompanionSettings(poi="fase")).problems
    assert "did you mean 'face'?" in str(problem)


def test_files_without_points_have_none(tmp_path: Path) -> None:
    assert read_pois(tmp_path / "gone.json") == {}
    (tmp_path / "a.json").write_text('["a", "list"]')
    assert read_pois(tmp_path / "a.json") == {}
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DatasetError, match="cannot be read"):
        read_pois(tmp_path / "folder.json")
