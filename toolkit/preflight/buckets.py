"""What each bucket of a run holds, as data and as a table to read. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.data.items import Bucket, MediaItem
from toolkit.text import columns, count

_NUM_SHOWN = 12


@dataclass(frozen=True, slots=True)
class BucketRow:
    """One bucket: its pictures, their showings in an epoch, and the micro-batches these make.

    last: items of the last batch where it is not full, else 0.
    """

    width: int
    height: int
    pictures: int
    items: int
    batches: int
    last: int


def bucket_rows(items: Sequence[MediaItem], batch_size: int) -> list[BucketRow]:
    """The buckets of a run, fullest first; pictures of different network_weight never share a batch."""
    groups: dict[Bucket, list[MediaItem]] = {}
    for item in items:
        groups.setdefault(item.bucket, []).append(item)
    rows = []
    for bucket, members in groups.items():
        by_weight: dict[float, int] = {}
        for item in members:
            by_weight[item.network_weight] = by_weight.get(item.network_weight, 0) + 1
        rows.append(
            BucketRow(
                bucket.width,
                bucket.height,
                pictures=len({item.path for item in members}),
                items=len(members),
                batches=sum(-(-number // batch_size) for number in by_weight.values()),
                last=next((number % batch_size for number in by_weight.values() if number % batch_size), 0),
            )
        )
    return sorted(rows, key=lambda row: (-row.items, row.width, row.height))


def bucket_table(rows: Sequence[BucketRow]) -> list[str]:
    """The table, a line each; beyond a dozen buckets the smallest are summed up."""
    shown, rest = rows[:_NUM_SHOWN], rows[_NUM_SHOWN:]
    cells = [["bucket", "pictures", "items", "batches", ""]]
    cells += [
        [
            f"{row.width} x {row.height}",
            str(row.pictures),
            str(row.items),
            str(row.batches),
            f"the last of {row.last}" if row.last else "",
        ]
        for row in shown
    ]
    if rest:
        sums = [sum(values) for values in zip(*((r.pictures, r.items, r.batches) for r in rest), strict=True)]
        cells.append([count(len(rest), "more bucket"), *map(str, sums), ""])
    return columns(cells)


def epochs_line(rows: Sequence[BucketRow], steps: int, accumulation: int) -> str:
    """How often a run of so many steps sees every item."""
    batches = sum(row.batches for row in rows)
    epochs = steps * accumulation / batches
    shown = f"{epochs:.2f}" if epochs < 10 else f"{epochs:.0f}"
    many = "micro-batch" if accumulation > 1 else "batch"
    return f"an epoch is {count(batches, many, 'es')}; {count(steps, 'step')} are {shown} epochs"
