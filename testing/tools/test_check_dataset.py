"""tools/check_dataset.py finds what is planted in a folder, and nothing in a good one."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageFilter

from toolkit.data.image_files import open_rgb
from toolkit.dataset_check.report import CheckReport
from toolkit.dataset_check.sharpness import SOFT_RATIO, octave_ratio
from toolkit.paths import ROOT
from tools import check_dataset

SIDE = 128
GLOSSY = sorted((ROOT / "datasets" / "glossy").rglob("*.png"))


def textured(seed: int, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """A picture with detail at every scale, the finest somewhat fainter, as in photographs."""
    random, octaves = numpy.random.default_rng(seed), []
    for octave in range(6):
        size = (max(1, width >> octave), max(1, height >> octave))
        noise = random.normal(0, 22 if octave else 10, (size[1], size[0], 3)).clip(-127, 127) + 128
        octaves.append(
            numpy.asarray(Image.fromarray(noise.astype(numpy.uint8)).resize((width, height), 3)).astype(float)
        )
    return Image.fromarray((sum(octaves) - 128 * 5).clip(0, 255).astype(numpy.uint8))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Six sharp pictures with captions of their own."""
    folder = tmp_path_factory.mktemp("good")
    for index in range(6):
        textured(index).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"pattern, number {index}, {'red' if index else 'blue'}")
    return folder


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Path:
    """A folder with one of everything."""
    folder = tmp_path_factory.mktemp("bad")
    sharp = textured(0)
    photographs = [open_rgb(path) for path in (GLOSSY[0], GLOSSY[4])]
    pictures = {
        "good": sharp, "copy": textured(1), "near": textured(1),
        "enlarged": photographs[0].resize((64, 64), 1).resize((SIDE, SIDE), 3),
        "blurred": photographs[1].filter(ImageFilter.GaussianBlur(1)), "tiny": textured(4, 24, 24),
        "long": textured(5, 640, 40), "silent": textured(6), "blank": textured(7), "twice": textured(8),
        "again": textured(9),
    }  # fmt: skip
    for name, image in pictures.items():
        image.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a pattern called {name}")
    (folder / "copy2.png").write_bytes((folder / "copy.png").read_bytes())
    (folder / "copy2.txt").write_text("the second of them")
    textured(1).save(folder / "near.jpg", quality=90)
    (folder / "near.png").unlink()
    (folder / "silent.txt").unlink()
    (folder / "blank.txt").write_text(" \n")
    (folder / "again.txt").write_text("a pattern called twice")
    (folder / "broken.png").write_bytes((folder / "good.png").read_bytes()[:500])
    (folder / "broken.txt").write_text("broken")
    (folder / "orphan.txt").write_text("whose?")
    (folder / "film.mp4").write_bytes(b"film")
    return folder


def run(*arguments: object) -> int:
    return check_dataset.main([str(each) for each in arguments])


def test_everything_planted_is_found(bad, tmp_path, capsys):
    before = sorted(path.name for path in bad.iterdir())
    report_file, page = tmp_path / "report.json", tmp_path / "page.html"
    assert run(bad, "--resolution", SIDE, "--json", report_file, "--html", page) == 1
    said = capsys.readouterr().out
    (check,) = CheckReport.model_validate_json(report_file.read_text(encoding="utf-8")).datasets
    codes = {
        picture.path: sorted(f.code.split(".")[1] for f in picture.findings) for picture in check.pictures
    }
    assert codes == {
        "again.png": ["duplicate_caption"],
        "blank.png": ["empty_caption"],
        "blurred.png": ["soft"],
        "copy.png": ["duplicate", "near_duplicate"],
        "copy2.png": ["near_duplicate"],
        "enlarged.png": ["soft"],
        "good.png": [],
        "long.png": ["aspect", "enlarged"],
        "near.jpg": ["near_duplicate"],
        "silent.png": ["no_caption"],
        "tiny.png": ["tiny"],
        "twice.png": ["duplicate_caption"],
    }
    assert {name: f.code for name, f in check.other_files.items()} == {
        "film.mp4": "data.unread_file",
        "orphan.txt": "data.orphan_caption",
    }
    (problem,) = check.problems
    assert "broken.png" in problem
    assert "error: " in said
    assert "broken.png" in said
    assert "2 captions that several pictures have" in said
    assert sorted(path.name for path in bad.iterdir()) == before
    text = page.read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert text.count("<article>") == sum(bool(some) for some in codes.values())
    assert text.count("data:image/jpeg;base64,") >= len(codes)


def test_a_good_folder_has_nothing_to_tell(good, capsys):
    assert run(good, "--resolution", SIDE, "--strict") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [
        f"  buckets {SIDE}x{SIDE}: 6",
        "  tags pattern 6, red 5, blue 1, " + ", ".join(f"number {index} 1" for index in range(6)),
    ]


def test_of_many_that_look_the_same_three_are_named(tmp_path, capsys):
    for quality in (80, 84, 88, 92, 96):
        textured(1).save(tmp_path / f"{quality}.jpg", quality=quality)
        (tmp_path / f"{quality}.txt").write_text(f"a pattern of quality {quality}")
    run(tmp_path, "--resolution", SIDE)
    assert "96.jpg: looks like 80.jpg, 84.jpg, 88.jpg and 1 more\n" in capsys.readouterr().out


def test_strict_lets_oddities_count(good, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    textured(0).save(folder / "a.png")
    assert run(folder, "--resolution", SIDE) == 0
    assert run(folder, "--resolution", SIDE, "--strict") == 1
    assert run(folder, "--resolution", SIDE, "--strict", "--default-caption", "a pattern") == 0


def test_what_the_model_will_see(good, tmp_path, capsys):
    folder = tmp_path / "wide"
    folder.mkdir()
    textured(0, 200, 100).save(folder / "a.png")
    (folder / "a.txt").write_text("a [trigger] on a wall")
    textured(1, 200, 100).save(folder / "b.png")
    (folder / "b.txt").write_text("a dog")
    assert run(folder, "--resolution", 64, "--trigger-word", "zrb", "--json", "-") == 0
    (check,) = json.loads(capsys.readouterr().out)["datasets"]
    first, second = check["pictures"]
    assert (first["caption"], second["caption"]) == ("a zrb on a wall", "zrb a dog")
    assert [f["code"] for f in first["findings"]] == []
    assert [f["code"] for f in second["findings"]] == ["check.trigger_missing"]
    width, height = first["bucket"]
    crop = first["crop"]
    assert crop["width"] / crop["height"] == pytest.approx(width / height, rel=0.03)
    assert crop["share"] == pytest.approx(crop["width"] * crop["height"] / (200 * 100), rel=0.03)
    assert crop["left"] == pytest.approx((200 - crop["width"]) / 2, abs=1)


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["/no/such/folder"], 1, "no such folder"),
        (["FILE"], 1, "not a folder of pictures"),
        (["EMPTY"], 1, "no images found"),
        (["LOOP"], 1, "no such folder"),
        (["x" * 300], 1, "no such folder"),
    ],
)
def test_what_is_no_data_set_is_told(tmp_path, capsys, arguments, code, named):
    (tmp_path / "file.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    places = {"FILE": tmp_path / "file.txt", "EMPTY": tmp_path / "empty", "LOOP": tmp_path / "loop"}
    assert run(*(places.get(each, each) for each in arguments)) == code
    assert named in capsys.readouterr().out


def test_wrong_arguments_end_with_two(good, capsys):
    wrong = (
        ["--resolution", "0"],
        ["--size-multiple", "100000"],
        ["--caption-ext", ""],
        ["--trigger-word", "\udcff"],
    )
    for arguments in ([], *([str(good), *each] for each in wrong)):
        with pytest.raises(SystemExit) as ended:
            check_dataset.main(arguments)
        assert ended.value.code == 2
    assert run(good, "--json", "/proc/none/report.json") != 0
    assert "cannot be written" in capsys.readouterr().err


def test_sharp_and_enlarged_pictures_are_told_apart():
    """Real pictures as they are, twice enlarged, and blurred."""
    sharp = [open_rgb(path) for path in GLOSSY]
    assert len(sharp) > 20

    def share_soft(images: list[Image.Image]) -> float:
        ratios = [octave_ratio(image) for image in images]
        known = [ratio for ratio in ratios if ratio is not None]
        return sum(ratio < SOFT_RATIO for ratio in known) / len(known)

    assert share_soft(sharp) == 0
    for method in (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC):
        enlarged = [image.resize((2 * image.width, 2 * image.height), method) for image in sharp]
        assert share_soft(enlarged) > 0.85
    assert share_soft([image.filter(ImageFilter.GaussianBlur(1)) for image in sharp]) > 0.85
    assert octave_ratio(Image.new("RGB", (64, 64), "red")) is None
    assert octave_ratio(Image.new("RGB", (8, 64))) is None


def test_nothing_heavy_is_imported(good):
    program = (
        "import sys; from tools.check_dataset import main; main(sys.argv[1:]); "
        "print([name for name in ('torch', 'diffusers', 'transformers', 'scipy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(good)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def shown(page: Path) -> list[Image.Image]:
    """The thumbnails of a page."""
    found = re.findall(r'src="data:image/[a-z]+;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    return [Image.open(BytesIO(base64.b64decode(data))).convert("RGB") for data in found]


@pytest.mark.parametrize(
    ("options", "left", "counted"), [([], "right", 0.25), (["--invert-mask"], "left", 0.75)]
)
def test_a_mask_is_shown_and_told(tmp_path, monkeypatch, options, left, counted):
    monkeypatch.chdir(tmp_path)
    folder, masks = tmp_path / "photos", tmp_path / "masks"
    folder.mkdir()
    masks.mkdir()
    Image.new("RGB", (64, 64), (0, 200, 0)).save(folder / "a.png")
    mask = Image.new("L", (32, 32), 0)  # half as large: it is scaled with its picture
    mask.paste(255, (0, 0, 8, 32))
    mask.save(masks / "a.png")
    report, page = tmp_path / "report.json", tmp_path / "page.html"
    command = [str(folder), "--resolution", "64", "--mask-path", "masks", *options]
    assert check_dataset.main([*command, "--json", str(report), "--html", str(page)]) == 0
    (picture,) = CheckReport.model_validate_json(report.read_text()).datasets[0].pictures
    assert picture.mask is not None
    assert (picture.mask.path, picture.mask.share) == (
        str(masks / "a.png"),
        pytest.approx(counted, abs=0.001),
    )
    thumbnail = shown(page)[0]
    width, height = thumbnail.size
    green = thumbnail.getpixel((width // 10 if left == "right" else width * 9 // 10, height // 2))
    red = thumbnail.getpixel((width * 9 // 10 if left == "right" else width // 10, height // 2))
    assert green[1] > 150 > green[0] and red[0] > 90 > 60 and red[1] < 130
    assert "Red is what a mask leaves out" in page.read_text()
    assert f"{round(100 * counted)} % of it counts" in page.read_text()


def test_transparency_can_be_the_mask(tmp_path):
    image = Image.new("RGBA", (64, 64), (0, 200, 0, 255))
    image.paste((0, 200, 0, 0), (0, 0, 64, 16))
    image.save(tmp_path / "a.png")
    report = tmp_path / "report.json"
    assert (
        check_dataset.main([str(tmp_path), "--resolution", "64", "--alpha-mask", "--json", str(report)]) == 0
    )
    (picture,) = CheckReport.model_validate_json(report.read_text()).datasets[0].pictures
    assert picture.mask is not None
    assert (picture.mask.path, picture.mask.share) == ("a.png", pytest.approx(0.75, abs=0.001))
