"""From items to a Batch, with every random draw keyed by what it is for.

Legend: B batch, C latent channels, H W image rows and columns (pixels), h w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from toolkit.data.caption_draws import final_caption
from toolkit.data.crops import drawn
from toolkit.data.items import Batch, Bucket, MediaItem
from toolkit.data.latent_cache import LatentCache, PixelLoader
from toolkit.data.masks import MaskReader
from toolkit.data.order import EpochOrder
from toolkit.data.prompt_cache import PromptCache
from toolkit.data.transforms import load_control, load_pixels
from toolkit.prompt_utils import Conditioning, concat
from toolkit.seeding import keyed_generator

LatentShape = Callable[[Bucket], tuple[int, int, int]]
SampleT = Callable[[torch.Generator, MediaItem], Tensor]
MakeNoise = Callable[[tuple[int, int, int], torch.Generator], tuple[Tensor, Tensor]]


def plain_noise(shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One standard normal (C, h, w), both as the noise of the target and as what is mixed in."""
    noise = torch.randn(shape, generator=generator, dtype=torch.float32)
    return noise, noise


class BatchMaker:
    """Makes the batch of some items in some epoch; what an item gets does not depend on its company.

    latent_shape: bucket -> (C, h, w), or None for batches without noise. sample_t: (generator, item) ->
    t () or None. make_noise: ((C, h, w), generator) -> noise of the target and what is mixed in; with
    consistent_noise an item has the same noise in every epoch. reg_weight: factor of the losses of
    regularisation items. noise_candidates: noises drawn for each item, of which the nearest to its latents is
    taken (arXiv:2406.12303, here for each item alone); where there are no latents it is the first.
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
        make_noise: MakeNoise = plain_noise,
        consistent_noise: bool = False,
        reg_weight: float = 1.0,
        noise_candidates: int = 1,
    ) -> None:
        self.items = tuple(items)
        self.seed = seed
        self._latent_shape = latent_shape
        self._sample_t = sample_t
        self._latent_cache = latent_cache
        self._prompt_cache = prompt_cache
        self._load = load
        self._make_noise = make_noise
        self._consistent_noise = consistent_noise
        self._reg_weight = reg_weight
        self._noise_candidates = noise_candidates
        self._masks = MaskReader()

    def make(self, indices: Sequence[int], epoch: int) -> Batch:
        """The batch of these items, on the CPU, float32. Raises ValueError unless they share one bucket."""
        items = tuple(drawn(self.items[index], self.seed, epoch) for index in indices)
        if len({item.bucket for item in items}) != 1:
            raise ValueError(f"a batch needs items of exactly one bucket, got {[i.bucket for i in items]}")
        captions = tuple(self.caption(item, epoch) for item in items)
        latents = self._latents(items)
        noise, mixed_noise = self._noise(items, epoch, latents)
        if latents is not None and noise is not None and latents.shape != noise.shape:
            raise ValueError(f"latents {tuple(latents.shape)} where {tuple(noise.shape)} were expected")
        return Batch(
            items=items,
            captions=captions,
            weights=torch.tensor([self._weight(item) for item in items], dtype=torch.float32),
            noise=noise,
            mixed_noise=mixed_noise,
            t=self._t(items, epoch),
            latents=latents,
            pixels=self._pixels(items) if latents is None else None,
            conditioning=self._conditioning(captions),
            mask=self._mask(items),
            controls=self._controls(items),
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
        """The final caption of an item in an epoch, after dropout and shuffling."""
        return final_caption(item, self.seed, epoch)

    def _weight(self, item: MediaItem) -> float:
        return item.loss_multiplier * (self._reg_weight if item.is_reg else 1.0)

    def _noise(
        self, items: Sequence[MediaItem], epoch: int, latents: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Noise of the targets and, unless it is the same, what is mixed in; each (B, C, h, w)."""
        if self._latent_shape is None:
            return None, None
        shape = self._latent_shape(items[0].bucket)
        epoch = 0 if self._consistent_noise else epoch
        generators = (keyed_generator("noise", self.seed, epoch, item.id) for item in items)
        pairs = [
            self._nearest(shape, generator, None if latents is None else latents[index])
            for index, generator in enumerate(generators)
        ]
        mixed = None if all(a is b for a, b in pairs) else torch.stack([mixed for _, mixed in pairs])
        return torch.stack([noise for noise, _ in pairs]), mixed

    def _nearest(
        self, shape: tuple[int, int, int], generator: torch.Generator, latents: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Of some draws the one whose mixed noise is nearest to latents (C, h, w)."""
        pairs = [
            self._make_noise(shape, generator)
            for _ in range(1 if latents is None else self._noise_candidates)
        ]
        if len(pairs) == 1 or latents is None:
            return pairs[0]
        distances = [float((mixed - latents).square().sum()) for _, mixed in pairs]
        return pairs[distances.index(min(distances))]

    def _t(self, items: Sequence[MediaItem], epoch: int) -> Tensor | None:
        if self._sample_t is None:
            return None
        keyed = ((keyed_generator("t", self.seed, epoch, item.id), item) for item in items)
        return torch.stack([self._sample_t(g, item).to(torch.float32).reshape(()) for g, item in keyed])

    def _latents(self, items: Sequence[MediaItem]) -> Tensor | None:
        if self._latent_cache is None:
            return None
        found = [latents for item in items if (latents := self._latent_cache.get(item)) is not None]
        return torch.stack(found) if len(found) == len(items) else None

    def _pixels(self, items: Sequence[MediaItem]) -> Tensor:
        return torch.stack([self._load(i.path, i.bucket, i.placement, i.alpha_color) for i in items])

    def _mask(self, items: Sequence[MediaItem]) -> Tensor | None:
        """(B, 1, h, w), or None if no item has one or there are no latents to weigh."""
        if self._latent_shape is None:
            return None
        _, rows, columns = self._latent_shape(items[0].bucket)
        return self._masks.read(items, (rows, columns))

    def _controls(self, items: Sequence[MediaItem]) -> tuple[Tensor, ...]:
        """The control pictures, each (B, 3, H, W). Raises ValueError unless all items have equally many."""
        if len({len(item.control_paths) for item in items}) > 1:
            raise ValueError(f"items with {[len(item.control_paths) for item in items]} control pictures")
        loaded = [
            [
                load_control(path, i.bucket, i.placement, i.control_color, full_size=i.full_size_controls)
                for path in i.control_paths
            ]
            for i in items
        ]
        return tuple(torch.stack(each) for each in zip(*loaded, strict=True))

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
