"""A check as one page to look at: no other file, no network, readable on a phone. Torch-free."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageChops

from toolkit.data.dataset_list import is_list
from toolkit.data.image_files import open_mask, open_rgb
from toolkit.dataset_check.report import FINDINGS, BucketRow, CheckReport, DatasetCheck, Mask, Picture
from toolkit.errors import DatasetError
from toolkit.evaluation.thumbnails import data_url

TEMPLATES = Path(__file__).parent / "templates"
IN_A_BUCKET = 12  # thumbnails of each bucket
MAX_SHOWN = 1000  # pictures with findings on the page
THUMBNAIL = 112
LEFT_OUT = (200, 30, 30)  # the colour over what a mask leaves out


def write_html(report: CheckReport, path: Path) -> None:
    """Write the page. Raises RunError if it cannot be written."""
    from toolkit.runs import atomic

    atomic.write_text(path, render(report))


def render(report: CheckReport) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("check.html").render(
        datasets=[
            {
                "check": check,
                "odd": [(p, as_seen(check, p)) for p in check.pictures if p.findings][:MAX_SHOWN],
                "num_odd": sum(bool(picture.findings) for picture in check.pictures),
                "buckets": [(row, _of_bucket(check, row)) for row in check.buckets],
                "masked": any(picture.mask for picture in check.pictures),
                "fullest": max([1, *(row.pictures for row in check.buckets)]),
            }
            for check in report.datasets
        ],
        meanings=FINDINGS,
    )


def _of_bucket(check: DatasetCheck, row: BucketRow) -> list[tuple[Picture, str | None]]:
    inside = [picture for picture in check.pictures if picture.bucket == (row.width, row.height)]
    return [(picture, as_seen(check, picture)) for picture in inside[:IN_A_BUCKET]]


def as_seen(check: DatasetCheck, picture: Picture) -> str | None:
    """What the model sees of a picture, small, as a data URL; None if it is gone."""
    place, crop = Path(check.path), picture.crop
    folder = place.parent if is_list(place) else place
    try:
        image = open_rgb(folder / picture.path)
        if picture.mask is not None:
            image = _tinted(image, folder, picture, picture.mask)
    except DatasetError:
        return None
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    return data_url(image.crop(box), THUMBNAIL)


def _tinted(image: Image.Image, folder: Path, picture: Picture, mask: Mask) -> Image.Image:
    """The picture, red where its mask leaves it out. Raises DatasetError."""
    grey = open_mask(folder / mask.path, from_alpha=mask.path == picture.path).resize(image.size)
    out = Image.blend(image, Image.new("RGB", image.size, LEFT_OUT), 0.6)
    return Image.composite(image, out, ImageChops.invert(grey) if mask.inverted else grey)
