"""Masks and control pictures lie on their pictures pixel by pixel, whatever is cut, scaled and mirrored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from testing.toolkit.data.test_batches import encode, latent_shape, uniform_t
from testing.toolkit.data.test_scan import count_opens
from toolkit.data.batches import BatchMaker
from toolkit.data.companions import CompanionSettings
from toolkit.data.crops import CropSettings, all_drawn, drawn
from toolkit.data.items import Bucket, MaskSource, MediaItem, Placement
from toolkit.data.latent_cache import LatentCache
from toolkit.data.masks import MaskReader
from toolkit.data.scan import scan_dataset
from toolkit.data.transforms import load_control, load_mask, load_pixels

AS_IT_IS = Placement(16, 16, 0, 0)
SQUARE = Bucket(16, 16)


def ramp(width: int, height: int) -> Image.Image:
    """Grey that rises from the left to the right and, twice as far, from the top to the bottom."""
    columns, rows = numpy.meshgrid(numpy.linspace(0, 80, width), numpy.linspace(0, 160, height))
    return Image.fromarray((columns + rows).round().astype(numpy.uint8))


def pooled(pixels: Tensor) -> Tensor:
    """pixels (..., 3, H, W) in [-1, 1] -> brightness in [0, 1] of 8 x 8 squares (..., 1, h, w)."""
    return torch.nn.functional.avg_pool2d((pixels.mean(-3, keepdim=True) + 1) / 2, 8)


# -- one mask ----------------------------------------------------------------------------------------------


def test_a_mask_is_the_mean_over_each_latents_area(tmp_path: Path) -> None:
    image = Image.new("L", (16, 16))
    image.paste(255, (0, 0, 8, 4))  # the upper half of the first latent
    image.paste(255, (8, 8, 16, 16))  # all of the last
    image.save(tmp_path / "m.png")
    mask = load_mask(MaskSource(tmp_path / "m.png"), SQUARE, AS_IT_IS, (2, 2))
    assert mask.dtype == torch.float32
    assert mask.tolist() == [[[0.5, 0.0], [0.0, 1.0]]]
    source = MaskSource(tmp_path / "m.png", inverted=True, minimum=0.2)
    inverted = load_mask(source, SQUARE, AS_IT_IS, (2, 2))
    torch.testing.assert_close(inverted, torch.tensor([[[0.6, 1.0], [1.0, 0.2]]]))


def test_a_mask_may_have_another_size_than_its_picture(tmp_path: Path) -> None:
    small = Image.new("L", (4, 4))
    small.paste(255, (0, 0, 2, 4))
    small.save(tmp_path / "m.png")
    mask = load_mask(MaskSource(tmp_path / "m.png"), SQUARE, AS_IT_IS, (2, 2))
    assert mask.tolist() == [[[1.0, 0.0], [1.0, 0.0]]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_masks_of_any_mode(tmp_path: Path, mode: str) -> None:
    image = Image.new("L", (16, 16))
    image.paste(255, (0, 0, 8, 16))
    if mode == "I;16":
        image = Image.fromarray(numpy.asarray(image).astype(numpy.uint16) * 257)
    elif mode == "RGBA":
        image = Image.new("RGBA", (16, 16), (255, 255, 255, 0))  # what is transparent is left out
        image.paste((255, 255, 255, 255), (0, 0, 8, 16))
    else:
        image = image.convert(mode)
    path = tmp_path / ("m.jpg" if mode == "CMYK" else "m.png")
    image.save(path, **({"quality": 100} if mode == "CMYK" else {}))
    mask = load_mask(MaskSource(path), SQUARE, AS_IT_IS, (2, 2))
    torch.testing.assert_close(mask, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), atol=0.01, rtol=0)


def test_transparency_is_a_mask(tmp_path: Path) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 4))
    image.save(tmp_path / "a.png")
    image.convert("P").save(tmp_path / "opaque.png", transparency=None)
    mask = load_mask(MaskSource(tmp_path / "a.png", from_alpha=True), SQUARE, AS_IT_IS, (2, 2))
    assert mask.tolist() == [[[0.5, 0.5], [0.0, 0.0]]]
    Image.new("RGB", (16, 16)).save(tmp_path / "b.png")
    mask = load_mask(MaskSource(tmp_path / "b.png", from_alpha=True), SQUARE, AS_IT_IS, (2, 2))
    assert mask.min() == 1


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(40, 200), st.integers(40, 200)),
    times=st.integers(1, 4),
    flips=st.tuples(st.booleans(), st.booleans()),
    epoch=st.integers(0, 5),
    own=st.booleans(),
)
def test_mask_and_control_lie_on_the_picture(tmp_path_factory, size, times, flips, epoch, own):
    """The same ramp as picture, mask (of another size) and control picture, cut by one draw."""
    folder = tmp_path_factory.mktemp("ramp", numbered=True)
    ramp(*size).save(folder / "a.png")
    ramp(size[0] * times, size[1] * times).save(folder / "m.png")
    bucket = Bucket(32, 24)
    choice = CropSettings(random_crop=True, random_scale=not own, own_size=own).choice(size, bucket)
    before = Placement(0, 0, 0, 0, *flips)
    item = MediaItem("x", folder / "a.png", "", "", "d", bucket, before, crops=choice)
    where = drawn(item, 1, epoch).placement
    pixels = load_pixels(folder / "a.png", bucket, where)
    assert pixels.shape == (3, bucket.height, bucket.width)
    mask = load_mask(MaskSource(folder / "m.png"), bucket, where, (3, 4))
    torch.testing.assert_close(mask, pooled(pixels), atol=0.02, rtol=0)
    control = load_control(folder / "m.png", bucket, where, (0, 0, 0))
    torch.testing.assert_close(control, pixels, atol=0.06, rtol=0)


@pytest.mark.parametrize(("flip_x", "flip_y"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_flip_mirrors_the_point_of_interest_with_its_picture(
    tmp_path: Path, flip_x: bool, flip_y: bool
) -> None:
    """A white dot at the point of interest is in every cut, at the mirrored place."""
    image = Image.new("RGB", (120, 90))
    image.paste((255, 255, 255), (100, 10, 104, 14))
    image.save(tmp_path / "a.png")
    bucket = Bucket(32, 32)
    choice = CropSettings().choice((120, 90), bucket, (100, 10, 104, 14))
    item = MediaItem("x", tmp_path / "a.png", "", "", "d", bucket, Placement(0, 0, 0, 0), crops=choice)
    plain = replace(item, placement=Placement(0, 0, 0, 0))
    flipped = replace(item, placement=Placement(0, 0, 0, 0, flip_x, flip_y))
    for epoch in range(8):
        where = drawn(plain, 1, epoch).placement
        pixels = load_pixels(item.path, bucket, where)
        assert pixels.max() > 0.5
        mirrored = load_pixels(item.path, bucket, drawn(flipped, 1, epoch).placement)
        axes = [axis for axis, wanted in ((1, flip_y), (2, flip_x)) if wanted]
        assert torch.equal(mirrored, pixels.flip(axes))


# -- batches -----------------------------------------------------------------------------------------------

Scan = Callable[..., list[MediaItem]]


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """Items of four ramps of 96 x 64 with masks, the last picture without one."""
    for number in range(4):
        for kind in ("data", "masks", "controls"):
            (tmp_path / kind).mkdir(exist_ok=True)
            if (kind, number) != ("masks", 3):
                image = ramp(96, 64).point(lambda value, shift=number: value + shift)
                image.save(tmp_path / kind / f"{number}.png")

    def items(**options: object) -> list[MediaItem]:
        made = {"resolutions": [32], "size_multiple": 8, "memo": tmp_path / "memo",
                "companions": CompanionSettings(mask_folder=tmp_path / "masks")} | options  # fmt: skip
        return scan_dataset(tmp_path / "data", **made).require_valid().items  # type: ignore[arg-type]

    return items


def maker(items: list[MediaItem], **options: object) -> BatchMaker:
    made: dict[str, object] = {"seed": 3, "latent_shape": latent_shape, "sample_t": uniform_t}
    return BatchMaker(items, **made | options)  # type: ignore[arg-type]


def test_a_batch_has_the_mask_of_each_item_and_all_ones_without(scan: Scan) -> None:
    items = scan(flip_x=True)
    batch = maker(items).make(range(8), 0)
    bucket = items[0].bucket
    assert batch.mask is not None and batch.pixels is not None
    assert batch.mask.shape == (8, 1, bucket.height // 8, bucket.width // 8)
    torch.testing.assert_close(batch.mask[:6], pooled(batch.pixels[:6]), atol=0.02, rtol=0)
    assert torch.equal(batch.mask[6:], torch.ones_like(batch.mask[6:]))
    assert not torch.allclose(batch.mask[0], batch.mask[1])  # the mirrored one


def test_batches_without_masks_or_without_latents_have_none(scan: Scan, tmp_path: Path) -> None:
    plain = scan(companions=CompanionSettings())
    assert maker(plain).make([0, 1], 0).mask is None
    assert maker(scan()).make([3], 0).mask is None
    assert maker(scan(), latent_shape=None).make([0, 1], 0).mask is None


def test_cached_latents_do_not_depend_on_masks(scan: Scan) -> None:
    cache = LatentCache(None, "vae")
    cache.fill(scan(companions=CompanionSettings()), encode)
    items = scan()
    assert cache.missing(items) == []
    batch = maker(items, latent_cache=cache).make(range(4), 0)
    assert batch.pixels is None and batch.latents is not None and batch.mask is not None


def test_every_epoch_cuts_anew_and_masks_follow(scan: Scan) -> None:
    items = scan(crops=CropSettings(random_crop=True, random_scale=True))
    made = maker(items)
    seen = []
    for epoch in range(3):
        batch = made.make(range(4), epoch)
        assert batch.pixels is not None and batch.mask is not None
        torch.testing.assert_close(batch.mask[:3], pooled(batch.pixels[:3]), atol=0.02, rtol=0)
        # What the model is told of sizes is what was cut.
        assert batch.items[0].placement == drawn(items[0], 3, epoch).placement
        seen.append(batch.pixels)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    again = maker(items).make([2, 0], 1)
    assert again.pixels is not None
    assert torch.equal(again.pixels, seen[1][[2, 0]])  # whatever the batch


def test_a_bounded_number_of_cuts_is_cached(scan: Scan) -> None:
    items = scan(crops=CropSettings(random_crop=True, random_scale=True, num_draws=2))
    cache = LatentCache(None, "vae")
    assert cache.fill(all_drawn(items, 3), encode) == 8
    made = maker(items, latent_cache=cache)
    batches = [made.make(range(4), epoch) for epoch in range(3)]
    assert all(batch.pixels is None for batch in batches)
    first, second, third = (batch.latents for batch in batches)
    assert first is not None and second is not None and third is not None
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    wanted = maker(items).make(range(4), 1).pixels
    assert wanted is not None
    torch.testing.assert_close(second, encode(wanted))


def test_masks_are_decoded_once_while_there_is_room(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    items = scan()
    opened = count_opens(monkeypatch)
    size = latent_shape(items[0].bucket)[1:]
    reader = MaskReader()
    first, second = reader.read(items, size), reader.read(items, size)
    assert len(opened) == 3
    assert torch.equal(first, second)  # type: ignore[arg-type]
    narrow = MaskReader(kept_bytes=size[0] * size[1] * 4)
    for _ in range(3):
        narrow.read(items, size)
    assert len(opened) == 3 + 3 + 2 + 2  # one stays, the others are read again
    endless = [drawn(item, 1, 0) for item in scan(crops=CropSettings(random_crop=True))]
    opened.clear()
    reader = MaskReader()
    for _ in range(2):
        reader.read(endless, size)
    assert len(opened) == 3 + 3


# -- control pictures --------------------------------------------------------------------------------------


def test_control_pictures_are_cut_as_their_pictures_are(scan: Scan, tmp_path: Path) -> None:
    folders = (tmp_path / "controls", tmp_path / "controls")
    how = CropSettings(random_crop=True, random_scale=True)
    items = scan(companions=CompanionSettings(control_folders=folders), crops=how, flip_x=True)
    batch = maker(items).make([1, 4, 7], 2)
    assert batch.pixels is not None
    assert [tuple(each.shape) for each in batch.controls] == [tuple(batch.pixels.shape)] * 2
    assert all(torch.equal(each, batch.pixels) for each in batch.controls)
    cache = LatentCache(None, "vae")
    cache.fill([drawn(item, 3, 2) for item in items], encode)
    cached = maker(items, latent_cache=cache).make([1, 4, 7], 2)
    assert cached.pixels is None
    assert torch.equal(cached.controls[0], batch.controls[0])


def test_control_pictures_may_be_squares_of_their_own(scan: Scan, tmp_path: Path) -> None:
    wanted = CompanionSettings(control_folders=(tmp_path / "controls",), aligned_controls=False)
    [straight, mirrored] = maker(scan(companions=wanted, flip_x=True)).make([0, 1], 0).controls[0]
    assert straight.shape == (3, 512, 512)
    assert torch.equal(mirrored, straight.flip(2))


def test_a_colour_lies_behind_transparent_control_pictures(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(tmp_path / "c.png")
    control = load_control(tmp_path / "c.png", SQUARE, AS_IT_IS, (255, 0, 0))
    assert control[:, 3, 3].tolist() == [1.0, -1.0, -1.0]


def test_batches_without_control_pictures_have_none_and_uneven_ones_are_refused(
    scan: Scan, tmp_path: Path
) -> None:
    plain = scan()
    assert maker(plain).make([0, 1], 0).controls == ()
    some = scan(companions=CompanionSettings(control_folders=(tmp_path / "controls",)))
    with pytest.raises(ValueError, match=r"items with \[0, 1\] control pictures"):
        maker([plain[0], some[1]]).make([0, 1], 0)
