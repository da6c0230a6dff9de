"""Pictures in other colour spaces, against the formulas of those spaces."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from toolkit.data.image_files import inspect_image, open_mask, open_rgb

# Columns: what red, green and blue are in XYZ under D50 (the profiles' white).
ADOBE = numpy.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = numpy.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
GAMMA = 563 / 256  # of Adobe RGB (1998), as its profile holds it


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def rgb_profile(colours: NDArray[numpy.float64], gamma: float) -> bytes:
    """An ICC profile, version 2, of three primaries and one exponent (ICC.1:2001-04, sections 6 and 7)."""

    def text(name: str) -> bytes:
        return b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name.encode() + bytes(80)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"desc": text("test"), b"cprt": b"text" + bytes(4) + b"none\0\0\0\0"}
    tags[b"wtpt"] = b"XYZ " + bytes(4) + fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colours.T, strict=True):
        tags[name] = b"XYZ " + bytes(4) + b"".join(map(fixed, column))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data
    size = place + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += fixed(0.9642) + fixed(1.0) + fixed(0.8249) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + body


def to_srgb(values: NDArray[numpy.uint8]) -> NDArray[numpy.float64]:
    """Adobe RGB to sRGB by the formulas (IEC 61966-2-1 for the curve), 0 to 255."""
    xyz = (values / 255.0) ** GAMMA @ ADOBE.T
    linear = (xyz @ numpy.linalg.inv(SRGB).T).clip(0, 1)
    curved = numpy.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return curved * 255


@pytest.fixture(scope="module")
def colours() -> NDArray[numpy.uint8]:
    return numpy.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=numpy.uint8)


def saved(path: Path, image: Image.Image, profile: bytes) -> Path:
    image.save(path, icc_profile=profile)
    return path


def values(path: Path) -> NDArray[numpy.int64]:
    return numpy.asarray(open_rgb(path)).astype(numpy.int64)


def test_adobe_rgb_becomes_srgb(tmp_path, colours):
    path = saved(tmp_path / "a.png", Image.fromarray(colours), rgb_profile(ADOBE, GAMMA))
    seen, expected = values(path), to_srgb(colours)
    assert numpy.abs(seen - expected).max() <= 2
    assert numpy.abs(seen - colours.astype(numpy.int64)).max() > 20
    assert inspect_image(path).remarks == ()


def test_transparency_and_palettes_are_kept(tmp_path, colours):
    profile = rgb_profile(ADOBE, GAMMA)
    alpha = Image.fromarray(colours[..., 0])
    image = Image.fromarray(colours)
    plain = values(saved(tmp_path / "plain.png", image, profile))
    image.putalpha(alpha)
    seen = values(saved(tmp_path / "rgba.png", image, profile))
    share = colours[..., :1] / 255.0
    assert numpy.abs(seen - (plain * share + 255 * (1 - share))).max() <= 1.01
    palette = Image.fromarray(colours).quantize(8)
    expected = to_srgb(numpy.asarray(palette.convert("RGB")))
    assert numpy.abs(values(saved(tmp_path / "p.png", palette, profile)) - expected).max() <= 2


def test_srgb_itself_is_left_as_it_is(tmp_path, colours):
    for name, profile in (
        ("own", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()), ("none", b""),
    ):  # fmt: skip
        path = saved(tmp_path / f"{name}.png", Image.fromarray(colours), profile)
        assert (values(path) == colours).all()


def test_masks_are_numbers_and_no_colours(tmp_path, colours):
    grey = Image.fromarray(colours[..., 0]).convert("RGB")
    path = saved(tmp_path / "mask.png", grey, rgb_profile(ADOBE, 1.0))
    assert (numpy.asarray(open_mask(path)) == colours[..., 0]).all()


@pytest.mark.parametrize("profile", [b"no profile at all", rgb_profile(ADOBE, GAMMA)[:200]])
def test_an_unusable_profile_is_told_and_passed_over(tmp_path, colours, profile):
    path = saved(tmp_path / "a.png", Image.fromarray(colours), profile)
    assert (values(path) == colours).all()
    assert inspect_image(path).remarks == ("its colour profile cannot be used; taken for sRGB",)
