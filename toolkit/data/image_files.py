"""Open a picture as every viewer shows it: fully decoded, upright, 8-bit sRGB. Torch-free.

Whatever is wrong with a file comes out as one DatasetError that names the file and the reason.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import cast

from PIL import Image, ImageOps, UnidentifiedImageError

from toolkit.data.colour_profiles import in_srgb, usable_profile
from toolkit.errors import DatasetError, Problem

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)

# What Pillow may find behind those suffixes. EPS and friends, which run other programs, stay out.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # JPEG includes MPO
READABLE_MODES = frozenset(
    ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I")
    + ("I;16", "I;16L", "I;16B", "I;16N")
)
# All that Pillow 10 to 13 raised on pictures with flipped, missing and repeated bytes.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AttributeError,
    struct.error,
    zlib.error,
)
_NOT_PICTURES = {
    b"version https://git-lfs": "a Git LFS pointer, not the picture itself; run: git lfs pull",
    b"<!doctype html": "an HTML page, not a picture; the download went wrong",
    b"<html": "an HTML page, not a picture; the download went wrong",
}


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a verified picture is: hash of the file's bytes, upright size in pixels, remarks for the user.

    The hash is empty where only the header was read.
    mask_range: lowest and highest value, 0 to 255, of the mask that the picture carries in its transparency,
    None without; of a mask its own.
    """

    sha256: str
    width: int
    height: int
    remarks: tuple[str, ...] = ()
    mask_range: tuple[int, int] | None = None


def unreadable(path: Path, reason: str, *, code: str = "data.unreadable_image") -> DatasetError:
    """The error for a picture that cannot be used."""
    remedy = "replace the picture or move it out of the dataset"
    return DatasetError(Problem(code, reason, file=str(path), remedy=remedy))


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, f"cannot be read: {error.strerror or error}") from error
    _refuse_other_files(path, data[:64])
    return data


def _refuse_other_files(path: Path, start: bytes) -> None:
    """Raise DatasetError for a file whose first 64 bytes tell that it is none of ours."""
    if not start:
        raise unreadable(path, "the file is empty (0 bytes)")
    for mark, reason in _NOT_PICTURES.items():
        if start.lstrip().lower().startswith(mark):
            raise unreadable(path, reason)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever Pillow raises inside into a DatasetError about `path`."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels"
        reason = f"too large to be decoded safely (more than {limit}); scale it down"
        raise unreadable(path, reason, code="data.huge_image") from error
    except UnidentifiedImageError as error:
        reason = "not a PNG, JPEG or WebP picture, or its first bytes are damaged"
        raise unreadable(path, reason) from error
    except _DECODING_ERRORS as error:
        text = str(error) or type(error).__name__
        raise unreadable(path, f"cannot be decoded: {text}") from error


def _decode(data: bytes) -> Image.Image:
    """The decoded picture as stored, first frame."""
    return _loaded(Image.open(BytesIO(data), formats=FORMATS), data)


def _loaded(image: Image.Image, data: bytes) -> Image.Image:
    """A picture opened from `data`, decoded."""
    image.load()
    if image.mode not in READABLE_MODES:
        raise ValueError(f"pictures of mode {image.mode} are not supported; save it as 8-bit RGB")
    if image.format == "PNG" and "transparency" in image.info:
        _match_transparency(image, depth=data[24])
    return image


def _match_transparency(image: Image.Image, depth: int) -> None:
    """Bring the one transparent colour of a PNG, told in its own bit depth, to the 8 bits of its pixels."""
    told = image.info["transparency"]
    if image.mode == "L" and depth < 8:
        image.info["transparency"] = told * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in told)


def _upright(image: Image.Image) -> tuple[Image.Image, str | None]:
    """The picture turned as its EXIF data says, and a remark if those cannot be read."""
    try:
        return ImageOps.exif_transpose(image), None
    except _DECODING_ERRORS:
        return image, "its EXIF data are damaged; shown as stored"


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey values 0 to 65535 scaled, not clipped, to 8 bits; mode L, or LA if one value is transparent."""
    import numpy  # here because only such pictures need it

    values = numpy.asarray(image).astype(numpy.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError("its values exceed 16 bits; save it as 8-bit RGB")
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(numpy.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    alpha = Image.fromarray(numpy.where(values == transparent, 0, 255).astype(numpy.uint8))
    return Image.merge("LA", (grey, alpha))


def _in_8_bits(image: Image.Image) -> Image.Image:
    return _from_16_bit(image) if image.mode == "I" or image.mode.startswith("I;16") else image


def _rgba(image: Image.Image) -> Image.Image | None:
    """An 8-bit picture with its transparency, None if it has none."""
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return None
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert("RGBA")


def to_rgb(image: Image.Image, alpha_color: tuple[int, int, int] = WHITE) -> Image.Image:
    """A decoded picture of any mode to 8-bit RGB; transparent parts take on `alpha_color`."""
    image = _in_8_bits(image)
    if image.mode == "CMYK":
        return in_srgb(image).convert("RGB")
    rgba = _rgba(image)
    if rgba is None:
        return image.convert("RGB")
    flat = Image.new("RGB", rgba.size, alpha_color)
    flat.paste(rgba, mask=rgba.getchannel("A"))
    return flat


def opacity(image: Image.Image) -> Image.Image | None:
    """The opacity of a decoded picture, 8-bit grey; None if it has no transparency."""
    rgba = _rgba(_in_8_bits(image))
    return None if rgba is None else rgba.getchannel("A")


def open_rgb(path: Path, alpha_color: tuple[int, int, int] = WHITE) -> Image.Image:
    """The picture of a file, upright, in 8-bit sRGB. Raises DatasetError with the file and the reason."""
    data = _read_bytes(path)
    with _naming(path):
        return to_rgb(in_srgb(_upright(_decode(data))[0]), alpha_color)


def open_mask(path: Path, *, from_alpha: bool = False) -> Image.Image:
    """The mask of a file, upright, 8-bit grey: its greys on black, or its opacity. Raises DatasetError."""
    data = _read_bytes(path)
    with _naming(path):
        image = _upright(_decode(data))[0]
        if not from_alpha:
            return to_rgb(image, BLACK).convert("L")
        return opacity(image) or Image.new("L", image.size, 255)


def _range(grey: Image.Image) -> tuple[int, int]:
    low, high = cast(tuple[int, int], grey.getextrema())
    return low, high


def inspect_image(path: Path) -> ImageFacts:
    """Verify a picture by decoding all of it. Raises DatasetError with the file and the reason."""
    data = _read_bytes(path)
    with _naming(path):
        image = Image.open(BytesIO(data), formats=FORMATS)
        width, height = image.size
        # A JPEG read at an eighth: all its bytes are decoded, so any damage shows, but few pixels computed.
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        _loaded(image, data)
        num_frames = getattr(image, "n_frames", 1)
        # Turning copies the picture, which costs a quarter of decoding it; most stand upright.
        upright, remark = (image, None) if _stands_upright(image) else _upright(image)
        if remark is None and _orientation(image) in _ON_THEIR_SIDE:
            width, height = height, width
        if upright.mode == "I":
            _from_16_bit(upright)
        alpha = opacity(upright)
        mask_range = None if alpha is None else _range(alpha)
    remarks = [remark] if remark else []
    if not usable_profile(image):
        remarks.append("its colour profile cannot be used; taken for sRGB")
    if num_frames > 1 and image.format != "MPO":  # MPO: a photo with a second view of the same scene
        remarks.append(f"animated ({num_frames} frames); the first one is used")
    return ImageFacts(hashlib.sha256(data).hexdigest(), width, height, tuple(remarks), mask_range)


def inspect_mask(path: Path) -> ImageFacts:
    """The same for a mask: its mask_range is that of its greys. Raises DatasetError."""
    facts = inspect_image(path)
    return replace(facts, mask_range=_range(open_mask(path)))


def inspect_header(path: Path) -> ImageFacts:
    """What the first bytes of a picture say, decoding nothing: damage further on is not seen.

    Raises DatasetError with the file and the reason.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
            _refuse_other_files(path, start)
            file.seek(0)
            with _naming(path):
                image = Image.open(file, formats=FORMATS)
                width, height = image.size
                # A PNG's tag can stand behind its pixels; Pillow would decode those to look there.
                known = image.format != "PNG" or "exif" in image.info
                turned = known and _orientation(image) in _ON_THEIR_SIDE
    except OSError as error:
        raise unreadable(path, f"cannot be read: {error.strerror or error}") from error
    return ImageFacts("", *((height, width) if turned else (width, height)))


# EXIF orientations that swap width and height.
_ON_THEIR_SIDE = (5, 6, 7, 8)
_ORIENTATION = 0x0112


def _stands_upright(image: Image.Image) -> bool:
    """Whether a picture's EXIF data can be read and leave it as it is."""
    try:
        return image.getexif().get(_ORIENTATION, 1) not in range(2, 9)
    except _DECODING_ERRORS:
        return False


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DECODING_ERRORS:
        return 1
