"""The table of buckets counts as the order of a run does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from testing.job_helpers import make_dataset
from toolkit.data.items import Bucket
from toolkit.data.order import EpochOrder
from toolkit.data.scan import scan_dataset
from toolkit.preflight.buckets import bucket_rows, bucket_table, epochs_line


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = make_dataset(tmp_path_factory.mktemp("buckets") / "data")
    return scan_dataset(folder, resolutions=[32], size_multiple=8, num_repeats=2, flip_x=True).items


@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_batches_are_those_of_an_epoch(items, batch_size):
    rows = bucket_rows(items, batch_size)
    order = EpochOrder(items, batch_size, seed=0)
    batches = [[items[index].bucket for index in chunk] for chunk in order.batches(0)]
    assert sum(row.batches for row in rows) == order.num_batches
    for row in rows:
        sizes = [len(batch) for batch in batches if batch[0] == Bucket(row.width, row.height)]
        assert (len(sizes), sum(sizes)) == (row.batches, row.items)
        assert min(sizes) == (row.last or batch_size)
    assert [row.items for row in rows] == sorted((row.items for row in rows), reverse=True)
    assert sum(row.pictures for row in rows) == 6


def test_items_of_different_strength_share_no_batch(items):
    mixed = [replace(item, network_weight=index % 2) for index, item in enumerate(items)]
    rows = bucket_rows(mixed, 100)
    assert sum(row.batches for row in rows) == EpochOrder(mixed, 100, seed=0).num_batches == 2 * len(rows)


def test_the_table_is_aligned(items):
    assert bucket_table(bucket_rows(items, 8)) == [
        "bucket   pictures  items  batches",
        "32 x 32         3     12        2  the last of 4",
        "40 x 24         2      8        1",
        "24 x 40         1      4        1  the last of 4",
    ]


def test_many_buckets_are_summed_up(items):
    rows = [replace(bucket_rows(items, 8)[0], width=8 * n) for n in range(1, 20)]
    table = bucket_table(rows)
    assert len(table) == 14
    assert table[-1].split() == ["7", "more", "buckets", "21", "84", "14"]


def test_epochs(items):
    rows = bucket_rows(items, 8)
    assert epochs_line(rows, 6, 1) == "an epoch is 4 batches; 6 steps are 1.50 epochs"
    assert epochs_line(rows, 100, 2) == "an epoch is 4 micro-batches; 100 steps are 50 epochs"


def test_paths_may_be_shared_by_datasets(items):
    twice = [*items, *(replace(item, id=item.id + "x", dataset="b", path=Path(item.path)) for item in items)]
    assert sum(row.pictures for row in bucket_rows(twice, 1)) == 6
