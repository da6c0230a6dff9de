"""Pixels of a bucket: range, layout, scaling, cut and flips."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from toolkit.data.buckets import place
from toolkit.data.items import Bucket, Placement
from toolkit.data.transforms import image_to_tensor, load_pixels


def numbered(width: int, height: int) -> Image.Image:
    """Every pixel different: red counts columns, green counts rows."""
    columns, rows = numpy.meshgrid(numpy.arange(width), numpy.arange(height))
    return Image.fromarray(numpy.stack([columns, rows, columns * 0], axis=-1).astype(numpy.uint8))


def test_pixels_are_float32_channels_first_from_minus_one_to_one() -> None:
    image = Image.new("RGB", (3, 2))
    image.putpixel((2, 0), (255, 0, 51))
    pixels = image_to_tensor(image)
    assert pixels.shape == (3, 2, 3)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    assert pixels[:, 0, 2].tolist() == pytest.approx([1.0, -1.0, -0.6])
    assert pixels[:, 1, 0].tolist() == [-1.0, -1.0, -1.0]


@pytest.mark.parametrize(("flip_x", "flip_y"), [(False, False), (True, False), (False, True), (True, True)])
def test_cut_and_flips_without_scaling(tmp_path: Path, flip_x: bool, flip_y: bool) -> None:
    numbered(12, 8).save(tmp_path / "a.png")
    placement = Placement(12, 8, left=2, top=0, flip_x=flip_x, flip_y=flip_y)
    pixels = load_pixels(tmp_path / "a.png", Bucket(8, 8), placement)
    values = ((pixels + 1) * 127.5).round().int()
    columns, rows = list(range(2, 10)), list(range(8))
    assert values[0, 0].tolist() == (columns[::-1] if flip_x else columns)
    assert values[1, :, 0].tolist() == (rows[::-1] if flip_y else rows)


def test_reducing_averages_instead_of_picking(tmp_path: Path) -> None:
    checkers = (numpy.indices((64, 64)).sum(axis=0) % 2 * 255).astype(numpy.uint8)
    Image.fromarray(checkers).save(tmp_path / "a.png")
    bucket = Bucket(16, 16)
    pixels = load_pixels(tmp_path / "a.png", bucket, place(64, 64, bucket))
    assert pixels[:, 2:-2, 2:-2].abs().max() < 0.05


@pytest.mark.parametrize("size", [(100, 40), (40, 100), (33, 33), (5, 7)])
def test_any_picture_fills_its_bucket(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (255, 255, 255)).save(tmp_path / "a.png")
    bucket = Bucket(24, 32)
    pixels = load_pixels(tmp_path / "a.png", bucket, place(*size, bucket))
    assert pixels.shape == (3, 32, 24)
    assert bool((pixels == 1).all())  # a black border would show a cut outside of the picture


def test_alpha_color_is_behind_the_picture(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "a.png")
    bucket = Bucket(8, 8)
    pixels = load_pixels(tmp_path / "a.png", bucket, place(8, 8, bucket), (255, 0, 0))
    assert pixels[:, 4, 4].tolist() == [1.0, -1.0, -1.0]
