"""Make the next batches while the device works. Torch-free."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, TypeVar

Value = TypeVar("Value")
Made = TypeVar("Made")

_END: Any = object()
MOST_WORKERS = 8


def prefetch(iterator: Iterator[Value], depth: int = 2) -> Iterator[Value]:
    """The same values in the same order, up to `depth` of them made ahead on one thread.

    What the iterator raises comes out where its value would have come, traceback included. Closing this
    generator waits for the value being made, then closes the iterator. Raises ValueError if depth < 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return _prefetch(iterator, depth)


def _prefetch(iterator: Iterator[Value], depth: int) -> Iterator[Value]:
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    pending: deque[Future[Value]] = deque()
    try:
        pending.extend(pool.submit(next, iterator, _END) for _ in range(depth))
        while (value := pending.popleft().result()) is not _END:
            pending.append(pool.submit(next, iterator, _END))
            yield value
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def spare_workers() -> int:
    """How many threads may work beside the one that feeds the device."""
    return min(MOST_WORKERS, max(1, (os.cpu_count() or 1) - 1))


def map_ahead(
    function: Callable[[Value], Made], values: Iterable[Value], *, workers: int | None = None
) -> Generator[Made, None, None]:
    """function(value) for each, in order, a few of them made ahead on `workers` threads (default: the spare).

    What a call raises comes out where its result would have come; closing this generator waits for the
    calls that have begun and makes no others.
    """
    workers = workers or spare_workers()
    rest = iter(values)
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="ahead")
    try:
        pending = deque(pool.submit(function, value) for value in islice(rest, workers + 1))
        while pending:
            made = pending.popleft().result()
            pending.extend(pool.submit(function, value) for value in islice(rest, 1))
            yield made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def map_in_pieces(
    pool: ThreadPoolExecutor, function: Callable[[Value], Made], values: Sequence[Value]
) -> Iterator[Made]:
    """pool.map for many short calls: handing over each alone would cost more than a file's stat."""
    size = max(1, min(64, len(values) // (8 * (os.cpu_count() or 1))))
    cut = [values[start : start + size] for start in range(0, len(values), size)]
    return chain.from_iterable(pool.map(lambda piece: [function(value) for value in piece], cut))
