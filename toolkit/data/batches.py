"""From items to a Batch, with every random draw keyed by what it is for.

Legend: B batch, C latent channels, H W image rows and columns (pixels), h w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from toolkit.data.captions import final_caption
from toolkit.data.items import Batch, Bucket, MediaItem
from toolkit.data.latent_cache import LatentCache, PixelLoader
from toolkit.data.order import EpochOrder
from toolkit.data.prompt_cache import PromptCache
from toolkit.data.transforms import load_pixels
from toolkit.prompt_utils import Conditioning, concat
from toolkit.seeding import keyed_generator, keyed_random

LatentShape = Callable[[Bucket], tuple[int, int, int]]
SampleT = Callable[[torch.Generator], Tensor]


class BatchMaker:
    """Makes the batch of some items in some epoch; what an item gets does not depend on its company.

    latent_shape: bucket -> (C, h, w), or None for batches without noise. sample_t: generator -> t () or None.
    Latents come from the cache if it has those of the whole batch, else the batch holds pixels.
    """

    def __init__(
        self,
        items: Sequence[MediaItem],
        *,
        seed: int,
        latent_shape: LatentShape | None = None,
        sample_t: SampleT | None = None,
        latent_cache: LatentCache | None = None,
        prompt_cache: PromptCache | None = None,
        load: PixelLoader = load_pixels,
    ) -> None:
        self.items = tuple(items)
        self.seed = seed
        self._latent_shape = latent_shape
        self._sample_t = sample_t
        self._latent_cache = latent_cache
        self._prompt_cache = prompt_cache
        self._load = load

    def make(self, indices: Sequence[int], epoch: int) -> Batch:
        """The batch of these items, on the CPU, float32. Raises ValueError unless they share one bucket."""
        items = tuple(self.items[index] for index in indices)
        if len({item.bucket for item in items}) != 1:
            raise ValueError(f"a batch needs items of exactly one bucket, got {[i.bucket for i in items]}")
        captions = tuple(self.caption(item, epoch) for item in items)
        latents = self._latents(items)
        noise = self._noise(items, epoch)
        if latents is not None and noise is not None and latents.shape != noise.shape:
            raise ValueError(f"latents {tuple(latents.shape)} where {tuple(noise.shape)} were expected")
        return Batch(
            items=items,
            captions=captions,
            weights=torch.tensor([item.loss_multiplier for item in items], dtype=torch.float32),
            noise=noise,
            t=self._t(items, epoch),
            latents=latents,
            pixels=self._pixels(items) if latents is None else None,
            conditioning=self._conditioning(captions),
        )

    def stream(self, order: EpochOrder, start: int = 0) -> Iterator[tuple[int, Batch]]:
        """(position, batch) forever; position counts micro-batches from the start of training."""
        first_epoch, offset = divmod(start, order.num_batches)
        for epoch in count(first_epoch):
            batches = order.batches(epoch)
            for number in range(offset, len(batches)):
                yield epoch * order.num_batches + number, self.make(batches[number], epoch)
            offset = 0

    def caption(self, item: MediaItem, epoch: int) -> str:
        """The final caption of an item in an epoch, after dropout."""
        return final_caption(item, keyed_random("caption", self.seed, epoch, item.id))

    def _noise(self, items: Sequence[MediaItem], epoch: int) -> Tensor | None:
        if self._latent_shape is None:
            return None
        shape = self._latent_shape(items[0].bucket)
        generators = (keyed_generator("noise", self.seed, epoch, item.id) for item in items)
        return torch.stack([torch.randn(shape, generator=g, dtype=torch.float32) for g in generators])

    def _t(self, items: Sequence[MediaItem], epoch: int) -> Tensor | None:
        if self._sample_t is None:
            return None
        generators = (keyed_generator("t", self.seed, epoch, item.id) for item in items)
        return torch.stack([self._sample_t(g).to(torch.float32).reshape(()) for g in generators])

    def _latents(self, items: Sequence[MediaItem]) -> Tensor | None:
        if self._latent_cache is None:
            return None
        found = [latents for item in items if (latents := self._latent_cache.get(item)) is not None]
        return torch.stack(found) if len(found) == len(items) else None

    def _pixels(self, items: Sequence[MediaItem]) -> Tensor:
        return torch.stack([self._load(i.path, i.bucket, i.placement, i.alpha_color) for i in items])

    def _conditioning(self, captions: Sequence[str]) -> Conditioning | None:
        """Raises ValueError if the cache was not filled with these captions."""
        if self._prompt_cache is None:
            return None
        parts = []
        for caption in captions:
            part = self._prompt_cache.get(caption)
            if part is None:
                raise ValueError(f"caption not in the prompt cache: {caption!r}")
            parts.append(part)
        return concat(parts)
