"""Make the next batches while the device works. Torch-free."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Value = TypeVar("Value")

_END: Any = object()


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
