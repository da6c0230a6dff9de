"""The order of items: a pure function of (seed, epoch), the same for any number of ranks. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import count

from toolkit.data.items import Bucket, MediaItem
from toolkit.seeding import keyed_random


def _shares(num_items: int, world_size: int) -> list[int]:
    """How many of a chunk's items each rank takes: as equal as can be."""
    each, extra = divmod(num_items, world_size)
    return [each + (rank < extra) for rank in range(world_size)]


class EpochOrder:
    """Batches of item indices. Every item comes exactly once per epoch, over all ranks together.

    Per bucket and network_weight the items are shuffled and cut into chunks of batch_size * world_size; the
    chunks are shuffled and dealt to the ranks, so that all ranks always work on one size. The last chunk of
    a bucket may be smaller, and then leave a rank with an empty batch. Within a bucket items are counted by
    id, so renaming files changes nothing. num_batches, num_short: batches of an epoch, and how many of
    them are smaller than the others.
    """

    def __init__(
        self,
        items: Sequence[MediaItem],
        batch_size: int,
        seed: int,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        """Raises ValueError for no items, two of one id, or numbers out of range."""
        if not items:
            raise ValueError("there are no items to order")
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world_size}")
        if len({item.id for item in items}) < len(items):
            raise ValueError("two items have the same id; give datasets of one folder different names")
        self.seed = seed
        self.num_items = len(items)
        self._chunk_size = batch_size * world_size
        self._world_size = world_size
        self._rank = rank
        by_id = sorted(range(len(items)), key=lambda index: items[index].id)
        groups = sorted({(item.bucket, item.network_weight) for item in items})
        self._groups: dict[tuple[Bucket, float], list[int]] = {group: [] for group in groups}
        digest = hashlib.sha256()
        for index in by_id:
            bucket, weight = items[index].bucket, items[index].network_weight
            self._groups[bucket, weight].append(index)
            digest.update(f"{items[index].id} {bucket.width} {bucket.height} {bucket.frames}\n".encode())
        self.fingerprint: str = digest.hexdigest()
        self.num_short: int = sum(len(group) % self._chunk_size > 0 for group in self._groups.values())
        self.num_batches: int = sum(-(-len(group) // self._chunk_size) for group in self._groups.values())

    def chunks(self, epoch: int) -> list[tuple[int, ...]]:
        """The batches of all ranks together, in order."""
        chunks: list[tuple[int, ...]] = []
        for (bucket, weight), group in self._groups.items():
            size = (bucket.width, bucket.height, bucket.frames)
            key: tuple[float, ...] = (self.seed, epoch, *size, *([weight] if weight != 1 else []))
            shuffled = list(group)
            keyed_random("order", *key).shuffle(shuffled)
            chunks += [
                tuple(shuffled[i : i + self._chunk_size]) for i in range(0, len(shuffled), self._chunk_size)
            ]
        keyed_random("chunks", self.seed, epoch).shuffle(chunks)
        return chunks

    def batches(self, epoch: int) -> list[tuple[int, ...]]:
        """This rank's batches of an epoch, num_batches of them; indices into the items."""
        mine = []
        for chunk in self.chunks(epoch):
            shares = _shares(len(chunk), self._world_size)
            start = sum(shares[: self._rank])
            mine.append(chunk[start : start + shares[self._rank]])
        return mine

    def batches_from(self, position: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """(epoch, indices) of every batch of this rank for ever, from micro-batch number `position` on."""
        first, offset = divmod(position, self.num_batches)
        for epoch in count(first):
            yield from ((epoch, indices) for indices in self.batches(epoch)[offset:])
            offset = 0
