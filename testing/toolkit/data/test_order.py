"""The order of items: complete, keyed, the same for any number of ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from toolkit.data.items import Bucket, MediaItem, Placement
from toolkit.data.order import EpochOrder


def make_items(counts: list[int]) -> list[MediaItem]:
    """counts[i] items of the i-th bucket, mixed."""
    items = [
        MediaItem(f"{number}-{side}", Path("a"), "0", "", "d", Bucket(8 * side, 8), Placement(8, 8, 0, 0))
        for side, count in enumerate(counts, start=1)
        for number in range(count)
    ]
    Random(1).shuffle(items)
    return items


SIZES = [[1], [7], [3, 5, 1], [16, 16], [1, 1, 1, 1], [40, 3, 11, 2]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 5])
@pytest.mark.parametrize("counts", SIZES)
def test_each_item_once_per_epoch_over_all_ranks(counts: list[int], batch_size: int, world_size: int) -> None:
    items = make_items(counts)
    orders = [EpochOrder(items, batch_size, 3, world_size, rank) for rank in range(world_size)]
    for epoch in range(3):
        batches = [order.batches(epoch) for order in orders]
        assert {len(of_rank) for of_rank in batches} == {orders[0].num_batches}
        taken = [index for of_rank in batches for batch in of_rank for index in batch]
        assert sorted(taken) == list(range(len(items)))
        for together in zip(*batches, strict=True):
            indices = [index for batch in together for index in batch]
            assert len({items[index].bucket for index in indices}) == 1
            sizes = [len(batch) for batch in together]
            assert max(sizes) <= batch_size
            assert max(sizes) - min(sizes) <= 1


def test_many_ranks_see_what_one_sees_with_the_larger_batch() -> None:
    items = make_items([13, 8, 5])
    alone = EpochOrder(items, 4, 7).batches(2)
    ranks = [EpochOrder(items, 2, 7, 2, rank).batches(2) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == alone


def test_order_is_a_function_of_seed_and_epoch() -> None:
    items = make_items([20, 10])
    order = EpochOrder(items, 2, 5)
    later = order.batches(4)
    assert order.batches(0) == EpochOrder(items, 2, 5).batches(0)
    assert later == EpochOrder(items, 2, 5).batches(4)
    assert order.batches(0) != order.batches(1)
    assert order.batches(0) != EpochOrder(items, 2, 6).batches(0)


def test_epochs_are_shuffled_evenly() -> None:
    items = make_items([4])
    order = EpochOrder(items, 4, 0)
    firsts = Counter(order.batches(epoch)[0][0] for epoch in range(2000))
    assert min(firsts.values()) > 430


def test_buckets_are_mixed_over_the_epoch() -> None:
    items = make_items([40, 40])
    buckets = [items[batch[0]].bucket.width for batch in EpochOrder(items, 4, 0).batches(0)]
    changes = sum(a != b for a, b in zip(buckets, buckets[1:], strict=False))
    assert changes > 3


def test_order_goes_by_id_not_by_place() -> None:
    items = make_items([9, 4])
    turned = items[::-1]
    first, second = EpochOrder(items, 2, 1), EpochOrder(turned, 2, 1)
    assert first.fingerprint == second.fingerprint
    assert [[items[i].id for i in batch] for batch in first.batches(0)] == [
        [turned[i].id for i in batch] for batch in second.batches(0)
    ]


def test_fingerprint_tells_other_items_and_other_buckets() -> None:
    items = make_items([5])
    same = EpochOrder(items, 1, 1).fingerprint
    assert EpochOrder(items, 3, 9, 2, 1).fingerprint == same
    assert EpochOrder(items[:-1], 1, 1).fingerprint != same
    assert EpochOrder([replace(items[0], id="x"), *items[1:]], 1, 1).fingerprint != same
    assert EpochOrder([replace(items[0], bucket=Bucket(64, 64)), *items[1:]], 1, 1).fingerprint != same
    assert EpochOrder([replace(items[0], caption="x"), *items[1:]], 1, 1).fingerprint == same


def test_num_items_and_batches() -> None:
    order = EpochOrder(make_items([5, 3]), 2, 0)
    assert (order.num_items, order.num_batches) == (8, 5)


@pytest.mark.parametrize(
    ("counts", "batch_size", "world_size", "rank"),
    [([], 1, 1, 0), ([1], 0, 1, 0), ([1], 1, 2, 2), ([1], 1, 1, -1)],
)
def test_nonsense_is_refused(counts: list[int], batch_size: int, world_size: int, rank: int) -> None:
    with pytest.raises(ValueError, match=r"no items|batch_size"):
        EpochOrder(make_items(counts), batch_size, 0, world_size, rank)


def test_equal_ids_are_refused() -> None:
    items = make_items([2])
    with pytest.raises(ValueError, match="same id"):
        EpochOrder([items[0], items[0]], 1, 0)


@pytest.mark.parametrize("position", [0, 1, 5, 6, 7, 23])
def test_batches_come_from_any_position_on(position: int) -> None:
    order = EpochOrder(make_items([3, 5, 1]), 2, 3)
    straight = [(epoch, indices) for epoch in range(10) for indices in order.batches(epoch)]
    assert list(islice(order.batches_from(position), 20)) == straight[position : position + 20]
