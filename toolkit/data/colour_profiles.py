"""Colours of pictures that carry a profile, such as Adobe RGB or Display P3, brought to sRGB. Torch-free.

Models know sRGB. A photograph in a wider space looks pale or turned if its numbers are taken as they are.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageChops, ImageCms

# Levels of 255 that a profile must move some colour by; sRGB's own profiles differ in rounding.
_NOTICEABLE = 2


def in_srgb(image: Image.Image) -> Image.Image:
    """A decoded 8-bit picture in sRGB, its transparency kept; itself where its profile is sRGB or missing."""
    way = _way(image)
    if way is None or way.transform is None:
        return image
    plain = image.convert(_colour_mode(image))
    converted = ImageCms.applyTransform(plain, way.transform)
    assert converted is not None
    if "A" in image.getbands() or "transparency" in image.info:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted


def usable_profile(image: Image.Image) -> bool:
    """Whether a picture's profile says how its colours are meant; true without one, and for CMYK."""
    way = None if image.mode == "CMYK" else _way(image)
    return way is None or way.usable


class _Way:
    """How a profile's colours come to sRGB; transform: None where they are sRGB already, or nobody knows."""

    def __init__(self, transform: ImageCms.ImageCmsTransform | None, usable: bool) -> None:
        self.transform = transform
        self.usable = usable


def _way(image: Image.Image) -> _Way | None:
    """None for pictures without a profile, and for those whose modes are converted elsewhere."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile or image.mode.startswith(("I", "YCbCr")):
        return None
    return _way_of(profile, _colour_mode(image))


def _colour_mode(image: Image.Image) -> str:
    if image.mode == "CMYK":
        return "CMYK"
    return "L" if image.mode in ("1", "L", "LA", "La") else "RGB"


@lru_cache(maxsize=32)
def _way_of(profile: bytes, mode: str) -> _Way:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "CMYK":
            return _Way(transform, usable=True)  # inks are never sRGB already
        probe = _probe(mode)
        seen = ImageCms.applyTransform(probe, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return _Way(None, usable=False)
    import numpy  # here because few pictures carry a profile

    assert seen is not None
    moved = numpy.asarray(ImageChops.difference(seen, probe.convert("RGB"))).max()
    return _Way(transform if moved > _NOTICEABLE else None, usable=True)


def _probe(mode: str) -> Image.Image:
    """Colours from all over the cube, or all greys."""
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    steps = range(0, 256, 51)
    return Image.frombytes(
        "RGB", (36, 6), bytes(v for r in steps for g in steps for b in steps for v in (r, g, b))
    )
