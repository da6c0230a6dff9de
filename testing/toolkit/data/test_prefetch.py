"""Prefetching changes nothing but the time."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator

import pytest

from toolkit.data.prefetch import prefetch


def num_threads() -> int:
    return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [1, 2, 5, 100])
def test_same_values_same_order(depth: int) -> None:
    assert list(prefetch(iter(range(20)), depth)) == list(range(20))
    assert list(prefetch(iter([]), depth)) == []
    assert num_threads() == 0


def test_none_is_a_value() -> None:
    assert list(prefetch(iter([None, 0, None]))) == [None, 0, None]


def failing() -> Iterator[int]:
    yield 1
    yield 2
    raise LookupError("no third value")


def test_an_exception_comes_in_its_place_with_its_traceback() -> None:
    values = prefetch(failing(), 5)
    assert [next(values), next(values)] == [1, 2]
    with pytest.raises(LookupError, match="no third value") as caught:
        next(values)
    assert "failing" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert num_threads() == 0


class Counting:
    """Endless numbers; counts how many were made and whether it was closed."""

    def __init__(self) -> None:
        self.num_made = 0
        self.closed = False

    def numbers(self) -> Iterator[int]:
        try:
            while True:
                self.num_made += 1
                yield self.num_made
        finally:
            self.closed = True


@pytest.mark.parametrize("depth", [1, 3])
def test_at_most_depth_values_are_made_ahead(depth: int) -> None:
    source = Counting()
    values = prefetch(source.numbers(), depth)
    assert source.num_made == 0  # nothing before the first is asked for
    for wanted in (1, 2, 3):
        assert next(values) == wanted
        time.sleep(0.05)
        assert source.num_made <= wanted + depth
    values.close()


def test_closing_ends_the_thread_and_the_source() -> None:
    source = Counting()
    values = prefetch(source.numbers(), 4)
    next(values)
    assert num_threads() == 1
    values.close()
    assert num_threads() == 0
    assert source.closed


def test_an_abandoned_generator_ends_the_thread() -> None:
    source = Counting()
    for _ in prefetch(source.numbers()):
        break
    assert num_threads() == 0
    assert source.closed


def test_values_are_made_while_the_consumer_works() -> None:
    source = Counting()
    values = prefetch(source.numbers(), 2)
    next(values)
    deadline = time.monotonic() + 5
    while source.num_made < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert source.num_made == 3
    values.close()


def test_depth_must_be_positive() -> None:
    with pytest.raises(ValueError, match="depth"):
        prefetch(iter([]), 0)
