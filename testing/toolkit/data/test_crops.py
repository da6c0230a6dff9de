"""Cuts: inside the picture, of the bucket's size, around a point of interest, drawn by their key alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from toolkit.data.buckets import choose_bucket, enlargement, place
from toolkit.data.crops import (
    ROUNDING,
    Box,
    CropSettings,
    all_drawn,
    draw_placement,
    drawn,
)
from toolkit.data.items import Bucket, CropChoice, MediaItem, Placement
from toolkit.seeding import keyed_random

sides = st.integers(8, 3000)
unit = st.floats(0, 1, exclude_max=True)
draws = st.tuples(unit, unit, unit)
relative_boxes = st.tuples(unit, unit, unit, unit)
choices = st.builds(
    CropSettings,
    scale=st.floats(0.2, 2),
    random_crop=st.booleans(),
    random_scale=st.booleans(),
    own_size=st.booleans(),
)


def box_in(size: tuple[int, int], relative: tuple[float, float, float, float]) -> Box:
    """A box of a picture from four numbers in [0, 1]."""
    (left, right), (top, bottom) = sorted(relative[:2]), sorted(relative[2:])
    return left * size[0], top * size[1], right * size[0], bottom * size[1]


def cut(choice: CropChoice | None, bucket: Bucket, draws: tuple[float, float, float]) -> Placement:
    assert choice is not None
    return draw_placement(choice, bucket, place(*choice.size, bucket), draws)


def make_item(choice: CropChoice | None, bucket: Bucket, name: str = "a", **options: bool) -> MediaItem:
    size = choice.size if choice else (bucket.width, bucket.height)
    where = place(*size, bucket, **options)
    return MediaItem(name, Path(f"{name}.png"), name, "", "data", bucket, where, crops=choice)


@settings(deadline=None, max_examples=300)
@given(sides, sides, choices, st.none() | relative_boxes, st.sampled_from([(512, 64), (64, 8)]), draws)
def test_a_cut_lies_inside_the_picture_and_keeps_its_proportions(width, height, how, relative, grid, numbers):
    bucket = choose_bucket(*how.counted(width, height), *grid)
    poi = None if relative is None else box_in((width, height), relative)
    choice = how.choice((width, height), bucket, poi)
    assume(choice is not None)
    where = cut(choice, bucket, numbers)
    assert 0 <= where.left <= where.scaled_width - bucket.width
    assert 0 <= where.top <= where.scaled_height - bucket.height
    # Within rounding of the sides, one factor scales both.
    scale = max(where.scaled_width / width, where.scaled_height / height)
    assert abs(where.scaled_width - width * scale) <= 1 + width / height
    assert abs(where.scaled_height - height * scale) <= 1 + height / width
    # No closer than asked for: enlarged only where the bucket could not be filled otherwise.
    limit = max(how.scale, enlargement(width, height, bucket))
    assert where.scaled_width <= round(width * limit) + 1


@settings(deadline=None, max_examples=300)
@given(sides, sides, relative_boxes, st.sampled_from([(512, 64), (64, 8)]), draws)
@example(3000, 2000, (0.0, 0.0, 0.0, 0.0), (512, 64), (0.999, 0.5, 0.5))
@example(3000, 2000, (0.999, 0.999, 0.999, 0.999), (512, 64), (0.999, 0.999, 0.999))
def test_a_cut_shows_the_point_of_interest_where_it_fits(width, height, relative, grid, numbers):
    bucket = choose_bucket(width, height, *grid)
    poi = box_in((width, height), relative)
    choice = CropSettings().choice((width, height), bucket, poi)
    where = cut(choice, bucket, numbers)
    x, y = where.scaled_width / width, where.scaled_height / height
    whole = enlargement(width, height, bucket)
    for low, high, factor, start, side in (
        (poi[0] * x, poi[2] * x, x, where.left, bucket.width),
        (poi[1] * y, poi[3] * y, y, where.top, bucket.height),
    ):
        if (high - low) / factor * whole + ROUNDING <= side:
            assert start <= low + 1e-6
            assert high - 1e-6 <= start + side
        elif high - low > side:  # even the widest cut is too small: as much of it as there can be
            assert low - 1 <= start
            assert start + side <= high + 1


def test_a_random_cut_reaches_every_place_and_no_other_size():
    how = CropSettings(random_crop=True)
    bucket = Bucket(64, 64)
    choice = how.choice((192, 128), bucket)
    seen = [cut(choice, bucket, (0.3, k / 100, 0.9)) for k in range(100)]
    assert {(each.scaled_width, each.scaled_height) for each in seen} == {(96, 64)}
    assert sorted({each.left for each in seen}) == list(range(33))


def test_a_random_size_reaches_from_all_of_the_picture_to_its_own_pixels():
    choice = CropSettings(random_scale=True).choice((256, 256), Bucket(64, 64))
    widest, closest = (cut(choice, Bucket(64, 64), (size, 0, 0)) for size in (0.0, 0.9999))
    assert widest == Placement(64, 64, 0, 0)
    assert closest == Placement(256, 256, 96, 96)  # at the middle: only random_crop moves it
    half = CropSettings(random_scale=True, scale=0.5).choice((256, 256), Bucket(64, 64))
    assert cut(half, Bucket(64, 64), (0.9999, 0, 0)).scaled_width == 128


def test_without_buckets_a_random_cut_is_at_the_pictures_own_size():
    bucket = Bucket(64, 64)
    own = CropSettings(random_crop=True, own_size=True).choice((300, 200), bucket)
    assert cut(own, bucket, (0.5, 0.0, 0.9999)) == Placement(300, 200, 0, 136)
    halved = CropSettings(random_crop=True, own_size=True, scale=0.5).choice((300, 200), bucket)
    assert cut(halved, bucket, (0.5, 0.0, 0.0)) == Placement(150, 100, 0, 0)
    tiny = CropSettings(random_crop=True, own_size=True, scale=0.1).choice((300, 200), bucket)
    assert cut(tiny, bucket, (0.5, 0.0, 0.0)) == Placement(96, 64, 0, 0)  # the bucket must be filled


def test_nothing_random_is_nothing_drawn():
    assert CropSettings(scale=0.5).choice((300, 200), Bucket(64, 64)) is None
    item = make_item(None, Bucket(64, 64))
    assert drawn(item, 1, 5) is item
    assert all_drawn([item], 1) == [item]


def test_a_cut_is_drawn_by_seed_epoch_and_item_alone():
    bucket = Bucket(64, 64)
    choice = CropSettings(random_crop=True, random_scale=True).choice((500, 400), bucket)
    item = make_item(choice, bucket)
    first = drawn(item, 7, 3)
    assert drawn(item, 7, 3) == first
    assert drawn(first, 7, 3) == first  # a drawn item draws the same
    rng = keyed_random("crop", 7, 3, item.id)
    numbers = (rng.random(), rng.random(), rng.random())
    assert first.placement == draw_placement(choice, bucket, item.placement, numbers)
    others = [drawn(item, 8, 3), drawn(item, 7, 4), drawn(make_item(choice, bucket, "b"), 7, 3)]
    assert len({each.placement for each in [first, *others]}) == 4


def test_a_bounded_number_of_cuts_comes_round():
    choice = CropSettings(random_crop=True, random_scale=True, num_draws=3).choice((500, 400), Bucket(64, 64))
    item = make_item(choice, Bucket(64, 64))
    epochs = [drawn(item, 7, epoch) for epoch in range(7)]
    assert epochs[:3] == epochs[3:6]
    assert epochs[6] == epochs[0]
    assert len({each.placement for each in epochs}) == 3
    assert all_drawn([item], 7) == epochs[:3]


@pytest.mark.parametrize(("flip_x", "flip_y"), [(True, False), (False, True), (True, True)])
def test_a_mirrored_item_stays_mirrored(flip_x, flip_y):
    choice = CropSettings(random_crop=True).choice((500, 100), Bucket(64, 64))
    where = drawn(make_item(choice, Bucket(64, 64), flip_x=flip_x, flip_y=flip_y), 1, 0).placement
    assert (where.flip_x, where.flip_y) == (flip_x, flip_y)


@pytest.mark.parametrize(("scale", "size"), [(1.0, (64, 64)), (0.5, (48, 48)), (0.25, (24, 24))])
def test_a_smaller_scale_makes_smaller_buckets(scale, size):
    counted = CropSettings(scale=scale).counted(100, 100)
    bucket = choose_bucket(*counted, 64, 8)
    assert (bucket.width, bucket.height) == size
