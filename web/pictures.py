"""Small pictures of large ones, made once. What is inside a file decides what it is, never its name."""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from pathlib import Path

from toolkit.runs import atomic
from web.problems import ApiError

MOST_PIXELS = 50_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")
_at_once = threading.Semaphore(2)  # each holds a whole picture in memory


def thumbnail(path: Path, size: int, cache: Path) -> Path:
    """A WebP of at most size x size pixels, without what the picture's metadata says; kept below `cache`.

    Raises 415 for what is no picture, 413 for one of more than 50 million pixels.
    """
    info = path.stat()
    key = hashlib.sha256(f"{path}\0{info.st_mtime_ns}\0{info.st_size}\0{size}".encode()).hexdigest()
    target = cache / key[:2] / f"{key}.webp"
    if not target.exists():
        with _at_once:
            data = _shrunk(path, size)
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(target, data, durable=False)
    return target


def _shrunk(path: Path, size: int) -> bytes:
    from PIL import Image, ImageOps

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=_FORMATS) as image:
                check_pixels(image.width, image.height)
                image.draft("RGB", (2 * size, 2 * size))
                image.seek(0)
                small = ImageOps.exif_transpose(image)
                small.thumbnail((size, size))
                mode = "RGBA" if small.has_transparency_data else "RGB"
                small.convert(mode).save(buffer, "WEBP", quality=80)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise _too_large() from None
        except (OSError, ValueError, SyntaxError, EOFError):  # Pillow's words for damaged files
            raise ApiError(415, "web.no_picture", "this file is no picture that can be read") from None
    return buffer.getvalue()


def check_pixels(width: int, height: int) -> None:
    """Raise 413 for a picture that would take too much memory; its header is enough to know."""
    if width * height > MOST_PIXELS:
        raise _too_large()


def _too_large() -> ApiError:
    return ApiError(
        413, "web.too_large", f"the picture has more than {MOST_PIXELS // 1_000_000} million pixels"
    )
