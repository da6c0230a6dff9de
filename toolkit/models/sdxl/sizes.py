"""What Stable Diffusion XL is told of a picture's size and crop (arXiv:2307.01952, section 2.2).

Six whole numbers of pixels an item: height and width of the original picture, top and left of the crop in the
scaled one, height and width of what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.data.items import MediaItem

# Their name in a Conditioning; whole numbers, so that no cast to half precision rounds them.
SIZE_IDS = "size_ids"


def size_ids(items: Sequence[MediaItem]) -> Tensor:
    """B items -> (B, 6) int64. An item without a picture counts as one of its bucket's size, not cropped."""
    return torch.tensor([_of_item(item) for item in items])


def sizes_of_whole(height: int, width: int, count: int) -> Tensor:
    """(count, 6) int64 for pictures that were neither scaled nor cropped, which pipelines take for granted."""
    return torch.tensor([[height, width, 0, 0, height, width]]).expand(count, -1)


def _of_item(item: MediaItem) -> list[int]:
    bucket, placement = item.bucket, item.placement
    width, height = item.source_size or (bucket.width, bucket.height)
    top, left = placement.top, placement.left
    # The crop as the flipped picture shows it: pictures are flipped after they are cut.
    if placement.flip_y:
        top = placement.scaled_height - bucket.height - top
    if placement.flip_x:
        left = placement.scaled_width - bucket.width - left
    return [height, width, top, left, bucket.height, bucket.width]
