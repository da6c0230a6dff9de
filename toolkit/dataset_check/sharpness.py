"""Is a picture as sharp as its size says, or was it enlarged or blurred? Torch-free.

A picture has detail at every scale. What halving it loses (its finest octave) is, for photographs and
drawings alike, of the order of what halving it again loses; an enlarged or blurred picture has almost nothing
in its finest octave.
"""

from __future__ import annotations

import numpy
from numpy.typing import NDArray
from PIL import Image

SOFT_RATIO = 0.28  # of two octaves: sharp pictures have 0.35 to 1, twice enlarged ones 0.1 to 0.3
LEAST_DETAIL = 1.0  # of 255: below this a picture is flat, and nothing can be said
LONGEST = 768  # pixels of the middle that are looked at

Values = NDArray[numpy.float32]


def _grey(image: Image.Image) -> Values:
    """The middle of a picture in grey (h, w), sides multiples of 4, float32 in [0, 255]."""
    width, height = (min(side, LONGEST) // 4 * 4 for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    middle = image.crop((left, top, left + width, top + height)).convert("L")
    return numpy.asarray(middle, dtype=numpy.float32)


def _scaled(values: Values, width: int, height: int) -> Values:
    """A picture (h, w) at another size, by Lanczos' filter: it splits octaves more cleanly than means do."""
    scaled = Image.fromarray(values).resize((width, height), Image.Resampling.LANCZOS)
    return numpy.asarray(scaled, dtype=numpy.float32)


def _halved(values: Values) -> tuple[Values, float]:
    """A picture at half its size, and the root mean square of the detail that this loses."""
    height, width = values.shape
    halved = _scaled(values, width // 2, height // 2)
    lost = values - _scaled(halved, width, height)
    inner = lost[4:-4, 4:-4]  # filters see no farther than the border
    return halved, float(numpy.sqrt((inner**2).mean()))


def octave_ratio(image: Image.Image) -> float | None:
    """Detail in the finest octave as a share of that in the next; None for pictures too small or too flat."""
    if min(image.size) < 32:
        return None
    middle, finest_detail = _halved(_grey(image))
    _, detail = _halved(middle)
    return finest_detail / detail if detail >= LEAST_DETAIL else None
