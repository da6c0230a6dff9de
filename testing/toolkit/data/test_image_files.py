"""Pictures come out upright, 8-bit RGB, or as an error that names the file."""

from __future__ import annotations

import random
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageCms

from toolkit.data.image_files import inspect_header, inspect_image, inspect_mask, open_mask, open_rgb
from toolkit.errors import DatasetError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def two_colors(width: int = 8, height: int = 4) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(
    path: Path, size: tuple[int, int], depth: int, color_type: int, rows: bytes, trns: bytes = b""
) -> None:
    """A PNG of any depth, written by hand: Pillow cannot write all of them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, color_type, 0, 0, 0))
    extra = chunk(b"tRNS", trns) if trns else b""
    body = chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + extra + body + chunk(b"IEND", b""))


def close_to(pixel: object, color: tuple[int, int, int], tolerance: int = 3) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, color, strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    # How a camera stores an upright picture so that this orientation restores it.
    store = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    upright = two_colors()
    upright.paste((0, 255, 0), (0, 0, 2, 2))
    stored = upright
    for method in store.get(orientation, []):
        stored = stored.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert numpy.array_equal(numpy.asarray(open_rgb(tmp_path / "a.png")), numpy.asarray(upright))
    facts = inspect_image(tmp_path / "a.png")
    assert (facts.width, facts.height) == (8, 4)
    mask = open_mask(tmp_path / "a.png")
    assert numpy.array_equal(numpy.asarray(mask), numpy.asarray(upright.convert("L")))


def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    # A text where Pillow expects a number: it raises while it copies the data.
    entries = b"\x01\x1c\x00\x02\x00\x00\x00\x04abc\x00" + b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x02" + entries + bytes(4)
    two_colors().save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert open_rgb(tmp_path / "a.jpg").size == (8, 4)
    assert "EXIF" in inspect_image(tmp_path / "a.jpg").remarks[0]


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 128, 255)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_transparent_parts_take_the_alpha_color(
    tmp_path: Path, mode: str, suffix: str, color: tuple[int, int, int]
) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 255))
    image.paste((200, 200, 200, 0), (0, 0, 2, 4))
    path = tmp_path / f"a{suffix}"
    if mode == "P":
        image = image.quantize(4)
    elif mode == "LA":
        image = image.convert("LA")
    image.save(path, lossless=True)
    flat = open_rgb(path, color)
    assert flat.mode == "RGB"
    assert flat.getpixel((0, 0)) == color
    assert flat.getpixel((3, 3)) == (0, 0, 0)


def test_half_transparent_is_mixed_and_white_is_the_default(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert close_to(open_rgb(tmp_path / "a.png").getpixel((0, 0)), (127, 127, 127), 1)


def test_one_transparent_color_of_an_rgb_picture(tmp_path: Path) -> None:
    two_colors().save(tmp_path / "a.png", transparency=RED)
    assert open_rgb(tmp_path / "a.png", (1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = numpy.array([[0, 257, 32768, 65535]], dtype=numpy.uint16)
    write_png(tmp_path / "a.png", (4, 1), 16, 0, b"\0" + values.astype(">u2").tobytes())
    pixels = numpy.asarray(open_rgb(tmp_path / "a.png"))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (pixels == pixels[..., :1]).all()


def test_16_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">HH", 65535, 32768)
    write_png(tmp_path / "a.png", (2, 1), 16, 0, rows, struct.pack(">H", 32768))
    assert open_rgb(tmp_path / "a.png", RED).getpixel((1, 0)) == RED
    assert open_rgb(tmp_path / "a.png", RED).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "shown"),
    [
        (1, [0b10000000], 1, [RED, (0, 0, 0)]),
        (2, [0b10110000], 2, [RED, (255, 255, 255)]),
        (4, [0xF3], 3, [(255, 255, 255), RED]),
        (8, [200, 3], 200, [RED, (3, 3, 3)]),
    ],
)
def test_grey_of_any_depth_with_a_transparent_value(
    tmp_path: Path, depth: int, row: list[int], transparent: int, shown: list[tuple[int, int, int]]
) -> None:
    """The value is told in the file's depth, Pillow's pixels have 8 bits."""
    path = tmp_path / "a.png"
    write_png(path, (2, 1), depth, 0, b"\0" + bytes(row), struct.pack(">H", transparent))
    assert [open_rgb(path, RED).getpixel((x, 0)) for x in range(2)] == shown
    assert inspect_image(path).mask_range == (0, 255)


def test_16_bit_color_with_a_transparent_one(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">6H", 65535, 0, 0, 30000, 40000, 50000)
    write_png(tmp_path / "a.png", (2, 1), 16, 2, row, struct.pack(">3H", 30000, 40000, 50000))
    flat = open_rgb(tmp_path / "a.png", (1, 2, 3))
    assert [flat.getpixel((x, 0)) for x in range(2)] == [RED, (1, 2, 3)]


@pytest.mark.parametrize(("transparency", "shown"), [(1, (0, 255, 0)), (b"\xff\x80", (0, 127, 128))])
def test_palettes_with_transparent_and_half_transparent_colors(
    tmp_path: Path, transparency: int | bytes, shown: tuple[int, int, int]
) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=transparency)
    flat = open_rgb(tmp_path / "a.png", (0, 255, 0))
    assert flat.getpixel((0, 0)) == RED
    assert close_to(flat.getpixel((1, 0)), shown, 1)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_every_kind(tmp_path: Path, mode: str, progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    two_colors(32, 16).convert(mode).save(path, quality=95, progressive=progressive)
    with Image.open(path) as stored:
        assert (stored.mode, bool(stored.info.get("progressive"))) == (mode, progressive)
    left, right = (open_rgb(path).getpixel((x, 8)) for x in (2, 30))
    assert close_to(left, (76, 76, 76) if mode == "L" else RED, 6)
    assert close_to(right, (29, 29, 29) if mode == "L" else BLUE, 6)


def test_a_camera_picture_with_a_second_view_is_not_animated(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    second = Image.new("RGB", (32, 16), (0, 255, 0))
    two_colors(32, 16).save(path, "MPO", save_all=True, append_images=[second], quality=95)
    with Image.open(path) as stored:
        assert (stored.format, stored.n_frames) == ("MPO", 2)  # type: ignore[attr-defined]
    assert close_to(open_rgb(path).getpixel((2, 8)), RED, 6)
    assert inspect_image(path).remarks == ()


@pytest.mark.parametrize(
    ("mode", "expected"), [("RGB", None), ("RGBA", (0, 255)), ("LA", (0, 255)), ("P", (0, 255))]
)
def test_what_a_picture_carries_as_mask_is_known(
    tmp_path: Path, mode: str, expected: tuple[int, int] | None
) -> None:
    image = Image.new("RGBA", (4, 4), (9, 9, 9, 255))
    image.paste((200, 200, 200, 0), (0, 0, 2, 4))
    (image.quantize(4) if mode == "P" else image.convert(mode)).save(tmp_path / "a.png")
    assert inspect_image(tmp_path / "a.png").mask_range == expected
    alpha = open_mask(tmp_path / "a.png", from_alpha=True)
    assert (alpha.mode, alpha.getpixel((0, 0)), alpha.getpixel((3, 3))) == ("L", 0 if expected else 255, 255)
    assert inspect_mask(tmp_path / "a.png").mask_range == ((9, 200) if mode == "RGB" else (0, 9))


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_color_is_scaled(tmp_path: Path, color_type: int, channels: int) -> None:
    pixel = [65535, 32768, 0][: 1 if channels == 2 else 3] + ([65535] if channels in (2, 4) else [])
    write_png(tmp_path / "a.png", (1, 1), 16, color_type, b"\0" + struct.pack(f">{channels}H", *pixel))
    expected = (255, 255, 255) if channels == 2 else (255, 128, 0)
    assert close_to(open_rgb(tmp_path / "a.png").getpixel((0, 0)), expected, 1)


def test_32_bit_values_are_refused(tmp_path: Path) -> None:
    Image.fromarray(numpy.full((2, 2), 70000, dtype=numpy.int32)).save(tmp_path / "a.png", format="TIFF")
    for read in (open_rgb, inspect_image):
        with pytest.raises(DatasetError, match="exceed 16 bits"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_pictures(tmp_path: Path, mode: str) -> None:
    Image.new("L", (2, 2), 255).convert(mode).save(tmp_path / "a.png")
    assert open_rgb(tmp_path / "a.png").getpixel((1, 1)) == (255, 255, 255)


def test_cmyk_pictures_keep_their_colors(tmp_path: Path) -> None:
    two_colors(32, 16).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
    image = open_rgb(tmp_path / "a.jpg")
    assert close_to(image.getpixel((2, 8)), RED, 6)
    assert close_to(image.getpixel((30, 8)), BLUE, 6)


def test_an_unusable_profile_of_a_cmyk_picture_is_passed_over(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # not a CMYK profile
    for profile in (srgb, b"no profile at all"):
        two_colors(32, 16).convert("CMYK").save(tmp_path / "a.jpg", quality=95, icc_profile=profile)
        assert close_to(open_rgb(tmp_path / "a.jpg").getpixel((2, 8)), RED, 6)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_animated_pictures_give_the_first_frame_and_a_remark(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    frames = [Image.new("RGB", (8, 8), BLUE), Image.new("RGB", (8, 8), (0, 255, 0))]
    Image.new("RGB", (8, 8), RED).save(path, save_all=True, append_images=frames, lossless=True)
    assert open_rgb(path).getpixel((4, 4)) == RED
    assert inspect_image(path).remarks == ("animated (3 frames); the first one is used",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"these are not the bytes of a picture", "not a PNG, JPEG or WebP"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "HTML"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a PNG"),
    ],
)
def test_what_is_no_picture_is_named_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (open_rgb, inspect_image):
        with pytest.raises(DatasetError, match=reason) as caught:
            read(path)
        assert caught.value.problems[0].file == str(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.png.*No such file"):
        open_rgb(tmp_path / "gone.png")


def noisy_picture(seed: int = 0) -> Image.Image:
    noise = numpy.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=numpy.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_truncated_pictures_are_refused(tmp_path: Path, kind: str) -> None:
    buffer = BytesIO()
    noisy_picture().save(buffer, kind)
    data = buffer.getvalue()
    path = tmp_path / "a.png"
    for length in (10, 40, len(data) // 2, len(data) * 9 // 10):
        path.write_bytes(data[:length])
        for read in (open_rgb, inspect_image):
            with pytest.raises(DatasetError, match=r"a\.png"):
                read(path)


@pytest.mark.filterwarnings("ignore")  # Pillow's own, about the damage
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "gif", "bmp"])
def test_any_damage_gives_a_picture_or_a_dataset_error(tmp_path: Path, kind: str) -> None:
    buffer = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    noisy_picture().save(buffer, kind, **({"exif": exif} if kind in ("png", "jpeg", "webp") else {}))
    whole, path = buffer.getvalue(), tmp_path / "a.png"
    num_refused = 0
    for seed in range(150):
        rng = random.Random(seed)
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            # Mostly in the headers, where the parsers are.
            data[rng.randrange(len(data) if rng.random() < 0.3 else 150)] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(1, len(data))] if rng.random() < 0.2 else data)
        try:
            inspect_image(path)
            open_rgb(path)
        except DatasetError:
            num_refused += 1
    assert num_refused > 0


def test_a_decompression_bomb_is_a_named_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_colors(40, 40).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DatasetError, match="too large") as caught:
        inspect_image(tmp_path / "a.png")
    assert caught.value.problems[0].code == "data.huge_image"


def test_facts_are_of_the_bytes(tmp_path: Path) -> None:
    import hashlib

    two_colors().save(tmp_path / "a.png")
    facts = inspect_image(tmp_path / "a.png")
    assert facts.sha256 == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert (facts.width, facts.height, facts.remarks) == (8, 4, ())


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file cut, or with some bytes changed, lost or doubled."""
    at, count = rng.randrange(2, len(data)), rng.choice([1, 2, 16, 512])
    how = rng.choice(["cut", "change", "lose", "double"])
    if how == "cut":
        return data[:at]
    if how == "change":
        return data[:at] + bytes(byte ^ 0x55 for byte in data[at : at + count]) + data[at + count :]
    return data[:at] + (data[at : at + count] * 2 if how == "double" else b"") + data[at + count :]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30, "subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_verifying_finds_the_damage_that_decoding_finds(tmp_path: Path, mode: str, options: dict) -> None:
    # Verifying reads a JPEG at an eighth of its size.
    rng = random.Random(f"{mode}{options}")
    noise = Image.effect_noise((200, 136), 60).convert("RGB").convert(mode)
    buffer = BytesIO()
    noise.save(buffer, "JPEG", **options)
    path = tmp_path / "a.jpg"
    seen = set()
    for _ in range(40):
        path.write_bytes(damaged(buffer.getvalue(), rng))
        outcomes = []
        for read in (inspect_image, open_rgb):
            try:
                read(path)
                outcomes.append(None)
            except DatasetError as error:
                outcomes.append(error.problems[0].message)
        assert outcomes[0] == outcomes[1]
        seen.add(outcomes[0] is None)
    assert seen == {True, False}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_tells_the_upright_size(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (40, 24)).save(path, exif=exif)
    header, facts = inspect_header(path), inspect_image(path)
    assert (header.width, header.height) == (facts.width, facts.height) == open_rgb(path).size
    assert (header.sha256, header.remarks) == ("", ())
    assert facts.width == (24 if orientation >= 5 else 40)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, b"<html>", b"version https://git-lfs.github.com/spec/v1"]
)
def test_the_header_of_what_is_no_picture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    messages = []
    for read in (inspect_header, inspect_image):
        with pytest.raises(DatasetError) as caught:
            read(path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    path.unlink()
    with pytest.raises(DatasetError, match="cannot be read"):
        inspect_header(path)
