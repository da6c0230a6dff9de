"""Find the subjects of pictures on a plain background: masks for `mask_path`, boxes for `poi`.

    python -m tools.find_subjects datasets/zrb_faces --masks datasets/zrb_masks
    python -m tools.find_subjects datasets/glossy --poi shape

What is of the corners' colour and connected to them is background; the rest is the subject, holes and all.
--masks writes a mask for each picture into a folder: white subject, black background. --poi writes the
subject's box under that name into the JSON file beside each picture, and leaves all else in it as it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

from toolkit.data.image_files import IMAGE_SUFFIXES, open_rgb
from toolkit.data.inspection import walk_files
from toolkit.errors import DatasetError, Problem, UserError

TOLERANCE = 24  # how far background may be from the corner's colour, summed over the channels


def subject(image: Image.Image, tolerance: int = TOLERANCE) -> Image.Image:
    """An RGB picture -> its mask, grey, 255 for the subject. Raises ValueError for a busy background."""
    width, height = image.size
    corners = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)]
    colors = [image.getpixel(corner) for corner in corners]
    if any(_distance(color, colors[0]) > tolerance for color in colors):
        raise ValueError("its corners have different colours, so that its background is not plain")
    marker = next(each for each in ((255, 0, 255), (0, 255, 1)) if _distance(each, colors[0]) > 255)
    filled = image.copy()
    for corner in corners:
        ImageDraw.floodfill(filled, corner, marker, thresh=tolerance)
    same = [
        channel.point(lambda value, wanted=wanted: 255 * (value == wanted))
        for channel, wanted in zip(filled.split(), marker, strict=True)
    ]
    background = ImageChops.darker(ImageChops.darker(same[0], same[1]), same[2])
    return ImageChops.invert(background)


def _distance(first: object, second: object) -> int:
    assert isinstance(first, tuple) and isinstance(second, tuple)
    return sum(abs(a - b) for a, b in zip(first, second, strict=True))


def add_poi(path: Path, name: str, box: tuple[int, int, int, int]) -> None:
    """Write a box (left, top, right, bottom) into a JSON file beside what it says already."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise DatasetError(Problem("data.poi", f"not valid JSON: {error}", file=str(path))) from error
    if not isinstance(content, dict) or not isinstance(content.setdefault("poi", {}), dict):
        raise DatasetError(Problem("data.poi", "holds something else already", file=str(path)))
    left, top, right, bottom = box
    content["poi"][name] = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def find_subjects(folder: Path, masks: Path | None, poi: str | None, tolerance: int) -> int:
    """How many pictures were done. Raises DatasetError with all that have no plain background or subject."""
    files = walk_files(folder, [masks] if masks else [])
    names = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    found: dict[str, Image.Image] = {}
    problems = []
    for name in names:
        try:
            found[name] = subject(open_rgb(folder / name), tolerance)
            if found[name].getbbox() is None:
                raise ValueError("shows nothing but background")
        except ValueError as error:
            problems.append(Problem("data.mask", str(error), file=str(folder / name)))
    if problems or not names:
        raise DatasetError(problems or f"no images found in {folder}")
    for name, mask in found.items():
        if masks is not None:
            path = (masks / name).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.convert("1").save(path, optimize=True)
        if poi is not None and (box := mask.getbbox()) is not None:
            add_poi((folder / name).with_suffix(".json"), poi, box)
    return len(found)


def main(argv: list[str] | None = None) -> int:
    """Write masks, boxes or both."""
    parser = argparse.ArgumentParser(prog="python -m tools.find_subjects", description=__doc__)
    parser.add_argument("folder", type=Path, help="pictures on a plain background")
    parser.add_argument("--masks", type=Path, help="folder for their masks")
    parser.add_argument("--poi", help="name under which boxes are written")
    parser.add_argument("--tolerance", type=int, default=TOLERANCE, help="how uneven the background may be")
    options = parser.parse_args(argv)
    if options.masks is None and options.poi is None:
        parser.error("nothing to write: give --masks, --poi or both")
    try:
        count = find_subjects(options.folder, options.masks, options.poi, options.tolerance)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{count} subjects in {options.folder}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
