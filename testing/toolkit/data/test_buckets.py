"""Properties of buckets and placements over many sizes."""

from __future__ import annotations

from random import Random

import pytest

from toolkit.data.buckets import MAX_ASPECT, bucket_family, choose_bucket, enlargement, place
from toolkit.data.items import Bucket, Placement

SETTINGS = [(512, 64), (512, 8), (768, 64), (1024, 64), (1024, 16), (32, 8), (64, 8), (500, 64), (40, 8)]


def random_sizes(seed: int, count: int = 400) -> list[tuple[int, int]]:
    rng = Random(seed)
    return [(int(2 ** rng.uniform(0, 12)), int(2 ** rng.uniform(0, 12))) for _ in range(count)]


@pytest.mark.parametrize(("resolution", "multiple"), SETTINGS)
def test_bucket_properties(resolution: int, multiple: int) -> None:
    for width, height in random_sizes(resolution + multiple):
        bucket = choose_bucket(width, height, resolution, multiple)
        assert bucket.width % multiple == 0
        assert bucket.height % multiple == 0
        assert min(bucket.width, bucket.height) >= multiple
        assert bucket.width * bucket.height <= max(resolution**2, multiple**2)
        assert bucket.width * bucket.height <= max(width * height, multiple**2)
        assert 1 / MAX_ASPECT <= bucket.width / bucket.height <= MAX_ASPECT
        # Turning the picture turns the bucket.
        turned = choose_bucket(height, width, resolution, multiple)
        if width != height:
            assert (turned.height, turned.width) == (bucket.width, bucket.height)


@pytest.mark.parametrize(("resolution", "multiple"), SETTINGS)
def test_no_bucket_of_the_family_keeps_more_of_a_large_picture(resolution: int, multiple: int) -> None:
    def kept(width: int, height: int, bucket: Bucket) -> float:
        ratio = (width / height) / (bucket.width / bucket.height)
        return min(ratio, 1 / ratio)

    for width, height in random_sizes(1):
        width, height = width + 2 * resolution, height + 2 * resolution
        chosen = choose_bucket(width, height, resolution, multiple)
        best = max(kept(width, height, bucket) for bucket in bucket_family(resolution, multiple))
        assert kept(width, height, chosen) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1000, 1000), (512, 512)),
        ((4000, 3000), (576, 448)),
        ((3000, 2000), (640, 384)),
        ((1080, 1920), (384, 640)),
        ((8000, 1000), (1024, 256)),  # longer than MAX_ASPECT: cropped
        ((512, 512), (512, 512)),
    ],
)
def test_known_buckets_at_512(size: tuple[int, int], expected: tuple[int, int]) -> None:
    bucket = choose_bucket(*size, 512, 64)
    assert (bucket.width, bucket.height) == expected


@pytest.mark.parametrize(("resolution", "multiple"), SETTINGS)
def test_buckets_are_few_and_use_the_area(resolution: int, multiple: int) -> None:
    family = bucket_family(resolution, multiple)
    assert len(family) == len(set(family)) <= 40
    aspects = [bucket.width / bucket.height for bucket in family]
    assert len(aspects) == len(set(aspects))
    square = max(b.width for b in family if b.width == b.height)
    assert square == resolution // multiple * multiple


def test_small_pictures_of_like_size_share_a_bucket() -> None:
    rng = Random(5)
    buckets = {choose_bucket(rng.randint(300, 330), rng.randint(300, 330), 512, 64) for _ in range(100)}
    assert len(buckets) <= 4


def test_buckets_off_gives_one_square_for_all() -> None:
    sizes = random_sizes(3, 50)
    assert {choose_bucket(w, h, 520, 64, square=True) for w, h in sizes} == {Bucket(512, 512)}
    assert choose_bucket(10, 10, 4, 8, square=True) == Bucket(8, 8)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        choose_bucket(0, 10, 512, 64)


def test_placement_covers_the_bucket_and_keeps_the_aspect() -> None:
    for seed, (resolution, multiple) in enumerate(SETTINGS):
        for width, height in random_sizes(seed, 200):
            bucket = choose_bucket(width, height, resolution, multiple)
            placement = place(width, height, bucket)
            scaled = (placement.scaled_width, placement.scaled_height)
            assert scaled[0] == bucket.width or scaled[1] == bucket.height
            assert scaled[0] >= bucket.width
            assert scaled[1] >= bucket.height
            # Each side is off by less than a pixel from the exact scale.
            scale = enlargement(width, height, bucket)
            assert abs(scaled[0] - width * scale) <= 1
            assert abs(scaled[1] - height * scale) <= 1
            # The cut is centred, to half a pixel.
            assert 0 <= scaled[0] - bucket.width - 2 * placement.left <= 1
            assert 0 <= scaled[1] - bucket.height - 2 * placement.top <= 1


def test_placement_of_a_known_picture() -> None:
    assert place(4000, 3000, Bucket(512, 512)) == Placement(683, 512, 85, 0)
    assert place(100, 400, Bucket(64, 128), flip_x=True) == Placement(64, 256, 0, 64, flip_x=True)


def test_enlargement() -> None:
    assert enlargement(256, 512, Bucket(512, 512)) == 2.0
    assert enlargement(1024, 2048, Bucket(512, 512)) == 0.5
