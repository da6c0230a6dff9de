"""How often each picture was shown, counted from the position and compared with what the batches held."""

from __future__ import annotations

from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from toolkit.data.coverage import count_showings
from toolkit.data.items import Bucket, MediaItem, Placement
from toolkit.data.order import EpochOrder


def make_items(num_pictures: int, repeats: int = 2) -> list[MediaItem]:
    return [
        MediaItem(f"{n}-{repeat}", Path(f"{n}.png"), "0", "", "d", bucket, Placement(8, 8, 0, 0))
        for n in range(num_pictures)
        for repeat in range(repeats)
        for bucket in [Bucket(8 * (1 + n % 2), 8)]
    ]


def watched(items: list[MediaItem], order: EpochOrder, position: int) -> Counter[str]:
    """The pictures of the first batches, one batch after the other."""
    seen: Counter[str] = Counter()
    left = position
    for epoch in count():
        for batch in order.batches(epoch):
            if left == 0:
                return seen
            seen.update(str(items[index].path) for index in batch)
            left -= 1
    raise AssertionError


@pytest.mark.parametrize("position", [0, 1, 5, 7, 8, 9, 40])
def test_counts_are_what_the_batches_showed(position):
    items = make_items(7)
    order = EpochOrder(items, 2, seed=5)
    coverage = count_showings(items, order, position)
    seen = watched(items, order, position)
    assert {path: times for (_, path), times in coverage.times.items() if times} == seen
    assert len(coverage.times) == 7
    assert coverage.num_showings == sum(seen.values())
    told = coverage.as_json()
    assert (told["min"], told["max"]) == (min(coverage.times.values()), max(coverage.times.values()))
    assert told["never"] == [f"{n}.png" for n in range(7) if f"{n}.png" not in seen]
    assert [entry["times"] for entry in told["times"]] == sorted(coverage.times.values())


def test_batches_that_were_passed_over_are_not_counted():
    items = make_items(7)
    order = EpochOrder(items, 2, seed=5)
    seen = watched(items, order, 12)
    for left_out in (3, 11):
        seen.subtract(watched(items, order, left_out + 1))
        seen.update(watched(items, order, left_out))
    coverage = count_showings(items, order, 12, left_out={3, 11, 12, 99})
    assert {path: times for (_, path), times in coverage.times.items() if times} == +seen


def test_all_ranks_count_together():
    items = make_items(9)
    alone = count_showings(items, EpochOrder(items, 4, seed=1), 3)
    second = EpochOrder(items, 2, seed=1, world_size=2, rank=1)
    assert count_showings(items, second, 3) == alone


def test_the_line_names_what_was_shown_least():
    items = make_items(3, repeats=1)
    order = EpochOrder(items, 1, seed=0)
    assert count_showings(items, order, 6).summary == "3 pictures were shown 2 times each"
    none = count_showings(items, order, 0).summary
    assert none == "3 pictures were shown 0 times each"
    line = count_showings(items, order, 1).summary
    assert "0 to 1 times (median 0); never: " in line
    later = count_showings(items, order, 5).summary
    assert "1 to 2 times (median 2); only once: " in later
