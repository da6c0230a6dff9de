"""Batches: what is in them, and that an item's draws depend on nothing but its key."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from toolkit.data.batches import BatchMaker
from toolkit.data.caption_draws import possible_captions
from toolkit.data.items import Batch, Bucket, CaptionRules, MediaItem
from toolkit.data.latent_cache import LatentCache
from toolkit.data.order import EpochOrder
from toolkit.data.prefetch import prefetch
from toolkit.data.prompt_cache import PromptCache
from toolkit.data.scan import scan_dataset
from toolkit.data.transforms import load_pixels
from toolkit.prompt_utils import Conditioning
from toolkit.seeding import keyed_generator


def latent_shape(bucket: Bucket) -> tuple[int, int, int]:
    return 4, bucket.height // 8, bucket.width // 8


def uniform_t(generator: torch.Generator, item: MediaItem) -> Tensor:
    return torch.rand((), generator=generator)


def encode(pixels: Tensor) -> Tensor:
    """pixels (B, 3, H, W) -> (B, 4, H/8, W/8): means of 8 x 8 squares and their brightness."""
    means = torch.nn.functional.avg_pool2d(pixels, 8)
    return torch.cat([means, means.mean(1, keepdim=True)], dim=1)


def encode_prompts(captions: list[str]) -> Conditioning:
    embeds = torch.stack([torch.full((5, 3), float(len(caption))) for caption in captions])
    return Conditioning(embeds, pooled=embeds[:, 0])


@pytest.fixture
def items(tmp_path: Path) -> list[MediaItem]:
    """Seven pictures in two buckets, at two resolutions, mirrored, twice: 56 items."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(7):
        size = (64, 64) if number < 4 else (128, 64)
        Image.new("RGB", size, (30 * number, 0, 90)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {'x' * number}")
    return scan_dataset(
        folder,
        resolutions=[32, 64],
        size_multiple=8,
        flip_x=True,
        num_repeats=2,
        caption_rules=CaptionRules(dropout_rate=0.5),
        loss_multiplier=0.5,
        memo=tmp_path / "memo",
    ).items


Make = Callable[..., BatchMaker]


@pytest.fixture
def make(items: list[MediaItem]) -> Make:
    def maker(**options: object) -> BatchMaker:
        defaults: dict[str, object] = {"seed": 3, "latent_shape": latent_shape, "sample_t": uniform_t}
        return BatchMaker(items, **defaults | options)  # type: ignore[arg-type]

    return maker


def assert_equal(first: Batch, second: Batch) -> None:
    for field in fields(Batch):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, Tensor):
            assert torch.equal(a, b), field.name
        elif isinstance(a, Conditioning):
            assert torch.equal(a.embeds, b.embeds)
        else:
            assert a == b, field.name


def first_batch(items: list[MediaItem], size: int = 4) -> tuple[int, ...]:
    return next(batch for batch in EpochOrder(items, size, 0).batches(0) if len(batch) == size)


def test_shapes_types_and_values(items: list[MediaItem], make: Make) -> None:
    indices = first_batch(items)
    batch = make().make(indices, 0)
    bucket = items[indices[0]].bucket
    assert len(batch) == 4
    assert batch.items == tuple(items[index] for index in indices)
    assert batch.pixels is not None
    assert batch.noise is not None
    assert batch.t is not None
    assert batch.pixels.shape == (4, 3, bucket.height, bucket.width)
    assert batch.noise.shape == (4, *latent_shape(bucket))
    assert batch.t.shape == (4,)
    assert batch.weights.tolist() == [0.5] * 4
    assert {x.dtype for x in (batch.pixels, batch.noise, batch.t, batch.weights)} == {torch.float32}
    assert batch.latents is None
    assert batch.conditioning is None
    item = batch.items[2]
    wanted = load_pixels(item.path, item.bucket, item.placement, item.alpha_color)
    assert torch.equal(batch.pixels[2], wanted)


def test_draws_are_keyed_as_documented(items: list[MediaItem], make: Make) -> None:
    indices = first_batch(items)
    batch = make().make(indices, 5)
    item = batch.items[1]
    shape = latent_shape(item.bucket)
    noise = torch.randn(shape, generator=keyed_generator("noise", 3, 5, item.id))
    t = torch.rand((), generator=keyed_generator("t", 3, 5, item.id))
    assert torch.equal(batch.noise[1], noise)  # type: ignore[index]
    assert torch.equal(batch.t[1], t)  # type: ignore[index]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("world_size", [1, 3])
def test_an_item_gets_the_same_in_any_batch(
    items: list[MediaItem], make: Make, batch_size: int, world_size: int
) -> None:
    maker = make()
    seen: dict[str, tuple[float, float, str]] = {}
    for rank in range(world_size):
        for indices in EpochOrder(items, batch_size, 9, world_size, rank).batches(2):
            if not indices:
                continue
            batch = maker.make(indices, 2)
            assert batch.noise is not None
            assert batch.t is not None
            for row, item in enumerate(batch.items):
                seen[item.id] = (batch.noise[row].sum().item(), batch.t[row].item(), batch.captions[row])
    assert len(seen) == len(items)
    for index, item in enumerate(items):
        alone = maker.make([index], 2)
        assert alone.noise is not None
        assert alone.t is not None
        assert seen[item.id] == (alone.noise[0].sum().item(), alone.t.item(), alone.captions[0])


def test_draws_do_not_depend_on_the_global_generators(items: list[MediaItem], make: Make) -> None:
    indices = first_batch(items)
    torch.manual_seed(0)
    first = make().make(indices, 0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert_equal(first, make().make(indices, 0))
    assert torch.equal(torch.get_rng_state(), state)  # nor change them


def test_draws_differ_between_items_epochs_and_seeds(items: list[MediaItem], make: Make) -> None:
    indices = first_batch(items)
    base = make().make(indices, 0)
    assert base.noise is not None
    assert len({row.sum().item() for row in base.noise}) == 4
    for other in (make().make(indices, 1), make(seed=4).make(indices, 0)):
        assert other.noise is not None
        assert not torch.equal(base.noise, other.noise)
        assert not torch.equal(base.t, other.t)  # type: ignore[arg-type]


def test_noise_is_standard_normal(make: Make) -> None:
    batches = [make().make([index], epoch) for index in range(14) for epoch in range(30)]
    noise = torch.cat([batch.noise.flatten() for batch in batches])  # type: ignore[union-attr]
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_captions_drop_out_at_their_rate_anew_each_epoch(items: list[MediaItem], make: Make) -> None:
    maker = make()
    dropped = [maker.caption(item, epoch) == "" for item in items for epoch in range(40)]
    assert sum(dropped) / len(dropped) == pytest.approx(0.5, abs=0.05)
    assert len({maker.caption(items[0], epoch) for epoch in range(20)}) == 2


def test_vae_training_needs_neither_noise_nor_t(items: list[MediaItem]) -> None:
    batch = BatchMaker(items, seed=0).make(first_batch(items), 0)
    assert batch.noise is None
    assert batch.t is None
    assert batch.pixels is not None


def test_latents_come_from_the_cache(items: list[MediaItem], make: Make, tmp_path: Path) -> None:
    indices = first_batch(items)
    for folder in (None, tmp_path / "cache"):
        cache = LatentCache(folder, "vae")
        cache.fill(items, encode)
        batch = make(latent_cache=cache).make(indices, 0)
        assert batch.pixels is None
        pixels = make().make(indices, 0).pixels
        assert pixels is not None
        torch.testing.assert_close(batch.latents, encode(pixels))


def test_a_batch_with_an_item_that_is_not_cached_has_pixels(
    items: list[MediaItem], make: Make, tmp_path: Path
) -> None:
    indices = first_batch(items)
    for folder in (None, tmp_path / "cache"):
        cache = LatentCache(folder, "vae")
        cache.fill([item for item in items if item.sha256 != items[indices[1]].sha256], encode)
        batch = make(latent_cache=cache).make(indices, 0)
        assert batch.latents is None
        assert batch.pixels is not None


def test_latents_of_another_shape_are_refused(items: list[MediaItem], make: Make) -> None:
    cache = LatentCache(None, "vae")
    cache.fill(items, lambda pixels: encode(pixels)[:, :2])
    with pytest.raises(ValueError, match="expected"):
        make(latent_cache=cache).make(first_batch(items), 0)


def test_conditioning_is_that_of_the_final_captions(items: list[MediaItem], make: Make) -> None:
    cache = PromptCache(None, "encoder")
    cache.fill(possible_captions(items, 3), encode_prompts)
    maker = make(prompt_cache=cache)
    for epoch in range(4):
        batch = maker.make(first_batch(items), epoch)
        assert batch.conditioning is not None
        assert batch.conditioning.embeds.shape == (4, 5, 3)
        assert batch.conditioning.embeds[:, 0, 0].tolist() == [len(text) for text in batch.captions]


def test_batches_come_without_the_folders_of_the_caches(
    items: list[MediaItem], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cleared by another program amid a run: what is gone is made again, the same to the bit."""
    for module in ("latent_cache", "prompt_cache"):
        monkeypatch.setattr(f"toolkit.data.{module}.KEEP_BYTES", 0)
    told: list[str] = []
    prompts = PromptCache(tmp_path / "prompts", "encoder", tell=told.append)
    latents = LatentCache(tmp_path / "latents", "vae", tell=told.append)
    prompts.fill(possible_captions(items, 3), encode_prompts)
    latents.fill(items, encode)
    maker = make(prompt_cache=prompts, latent_cache=latents)
    before = maker.make(first_batch(items), 0)
    for folder in ("prompts", "latents"):
        shutil.rmtree(tmp_path / folder)
    after = maker.make(first_batch(items), 0)
    assert before.conditioning is not None and after.conditioning is not None
    assert torch.equal(after.conditioning.embeds, before.conditioning.embeds)
    assert before.latents is not None and after.latents is not None
    assert torch.equal(after.latents, before.latents)
    assert len(told) == 2 and all("gone from the cache" in line for line in told)  # once for each cache


def test_a_prompt_cache_without_the_caption_is_a_bug(items: list[MediaItem], make: Make) -> None:
    with pytest.raises(ValueError, match="not in the prompt cache"):
        make(prompt_cache=PromptCache(None, "encoder")).make([0], 0)


def test_mixed_and_empty_batches_are_refused(items: list[MediaItem], make: Make) -> None:
    other = next(i for i, item in enumerate(items) if item.bucket != items[0].bucket)
    for indices in ([0, other], []):
        with pytest.raises(ValueError, match="one bucket"):
            make().make(indices, 0)


@pytest.mark.parametrize("start", [0, 1, 13, 14, 15, 31])
def test_a_stream_goes_on_where_it_is_told(items: list[MediaItem], make: Make, start: int) -> None:
    order = EpochOrder(items, 5, 3)
    assert order.num_batches == 14
    straight = list(islice(make().stream(order), 36))
    assert [position for position, _ in straight] == list(range(36))
    resumed = list(islice(make().stream(order, start), 36 - start))
    assert [position for position, _ in resumed] == list(range(start, 36))
    for (_, first), (_, second) in zip(straight[start:], resumed, strict=True):
        assert_equal(first, second)
    for epoch in range(2):
        of_epoch = straight[14 * epoch : 14 * epoch + 14]
        assert sorted(i.id for _, b in of_epoch for i in b.items) == sorted(i.id for i in items)


def test_a_prefetched_stream_is_the_same(items: list[MediaItem], make: Make) -> None:
    order = EpochOrder(items, 5, 3)
    ahead = prefetch(make().stream(order), 3)
    for (a, first), (b, second) in zip(islice(make().stream(order), 20), ahead, strict=False):
        assert a == b
        assert_equal(first, second)
    ahead.close()  # type: ignore[attr-defined]
