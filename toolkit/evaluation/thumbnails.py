"""Small pictures inside a page. Torch-free."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image


def data_url(picture: Image.Image, longer_side: int) -> str:
    """A small JPEG of an RGB picture as a data URL. Smaller pictures are enlarged in blocks."""
    factor = longer_side / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    resample = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    data = BytesIO()
    picture.resize(size, resample).save(data, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
