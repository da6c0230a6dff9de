"""From a picture's file to the pixels of its bucket; its mask and control pictures the same way.

Legend: H W image rows and columns (pixels), h w latent rows and columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from toolkit.data.image_files import WHITE, open_mask, open_rgb
from toolkit.data.items import Bucket, MaskSource, Placement
from toolkit.data.placing import fit, flipped

SMALL_CONTROL = 512  # side of control pictures that do not follow their bucket


def image_to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture -> pixels (3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(numpy.array(image, dtype=numpy.float32))
    return pixels.permute(2, 0, 1).contiguous().div_(127.5).sub_(1.0)


def load_pixels(
    path: Path, bucket: Bucket, placement: Placement, alpha_color: tuple[int, int, int] = WHITE
) -> Tensor:
    """A picture's file -> pixels (3, H, W) float32 in [-1, 1], H and W of the bucket. Raises DatasetError."""
    return image_to_tensor(fit(open_rgb(path, alpha_color), bucket, placement))


def load_control(
    path: Path, bucket: Bucket, placement: Placement, color: tuple[int, int, int], *, full_size: bool = True
) -> Tensor:
    """A control picture -> (3, H, W) float32 in [-1, 1], cut as its picture is; `color` shows through it.

    Not full_size: all of it made (3, 512, 512), flipped as its picture is. Raises DatasetError.
    """
    image = open_rgb(path, color)
    if full_size:
        return image_to_tensor(fit(image, bucket, placement))
    square = image.resize((SMALL_CONTROL, SMALL_CONTROL), Image.Resampling.LANCZOS)
    return image_to_tensor(flipped(square, placement))


def load_mask(mask: MaskSource, bucket: Bucket, placement: Placement, size: tuple[int, int]) -> Tensor:
    """How much each latent counts: (1, h, w) float32 in [0, 1] for size (h, w), the mean over its area.

    Scaled, cut and flipped as the picture is. Raises DatasetError.
    """
    image = fit(open_mask(mask.path, from_alpha=mask.from_alpha), bucket, placement, Image.Resampling.BOX)
    values = torch.from_numpy(numpy.array(image, dtype=numpy.float32)).div_(255.0)
    values = torch.nn.functional.adaptive_avg_pool2d(values[None], size)
    if mask.inverted:
        values = 1 - values
    return mask.minimum + (1 - mask.minimum) * values
