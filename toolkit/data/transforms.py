"""From a picture's file to the pixels of its bucket.

Legend: B batch, H W image rows and columns (pixels).
"""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from toolkit.data.image_files import WHITE, open_rgb
from toolkit.data.items import Bucket, Placement


def fit(image: Image.Image, bucket: Bucket, placement: Placement) -> Image.Image:
    """Scale, cut and flip a picture into its bucket."""
    size = (placement.scaled_width, placement.scaled_height)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)  # Pillow widens the filter when it reduces
    left, top = placement.left, placement.top
    image = image.crop((left, top, left + bucket.width, top + bucket.height))
    if placement.flip_x:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if placement.flip_y:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


def image_to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture -> pixels (3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(numpy.array(image, dtype=numpy.float32))
    return pixels.permute(2, 0, 1).contiguous().div_(127.5).sub_(1.0)


def load_pixels(
    path: Path, bucket: Bucket, placement: Placement, alpha_color: tuple[int, int, int] = WHITE
) -> Tensor:
    """A picture's file -> pixels (3, H, W) float32 in [-1, 1], H and W of the bucket. Raises DatasetError."""
    return image_to_tensor(fit(open_rgb(path, alpha_color), bucket, placement))
