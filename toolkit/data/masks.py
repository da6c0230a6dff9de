"""Masks of items, decoded once and kept while there is room.

Legend: B batch, h w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.data.items import MediaItem
from toolkit.data.transforms import load_mask

KEPT_BYTES = 256 * 2**20


class MaskReader:
    """Masks at the size of the latents. What fits into kept_bytes stays in memory, the rest is read again.

    The first ones stay rather than the last: epochs come round, so the last would always be dropped before
    they are needed. Cuts that never come again are not kept.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept: dict[tuple, Tensor] = {}
        self._room = kept_bytes

    def read(self, items: Sequence[MediaItem], size: tuple[int, int]) -> Tensor | None:
        """(B, 1, h, w) float32 in [0, 1] for items of one bucket, or None if none of them has a mask.

        An item without one counts everywhere. Raises DatasetError.
        """
        if all(item.mask is None for item in items):
            return None
        return torch.stack([self._one(item, size) for item in items])

    def _one(self, item: MediaItem, size: tuple[int, int]) -> Tensor:
        if item.mask is None:
            return torch.ones(1, *size)
        key = (item.mask, item.bucket, item.placement, size)
        mask = self._kept.get(key)
        if mask is None:
            mask = load_mask(item.mask, item.bucket, item.placement, size)
            comes_again = item.crops is None or item.crops.num_draws is not None
            if comes_again and mask.nbytes <= self._room:
                self._kept[key] = mask
                self._room -= mask.nbytes
        return mask
