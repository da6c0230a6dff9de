"""`num_workers`: the threads that make batches; what they make does not depend on them."""

import threading
from contextlib import closing
from itertools import islice

import pytest

from jobs.diffusion_data import streaming
from toolkit.config_modules.datasets import DatasetConfig


class Maker:
    """Makes (epoch, indices) as its batch, and notes on which thread."""

    def __init__(self, workers: int) -> None:
        self.threads: set[str] = set()
        self._all_busy = threading.Barrier(max(1, workers))

    def make(self, indices, epoch):
        name = threading.current_thread().name
        if name not in self.threads:
            self._all_busy.wait(10)  # the first batch of each thread waits for those of all
        self.threads.add(name)
        return epoch, indices


class Order:
    """Six batches an epoch."""

    def batches_from(self, position):
        for number in range(position, 10**6):
            yield number // 6, (number % 6,)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_so_many_threads_make_the_same_batches(workers):
    maker = Maker(workers)
    with closing(streaming(maker, Order(), workers)(4)) as stream:
        taken = list(islice(stream, 6))
    assert taken == [(0, (4,)), (0, (5,)), (1, (0,)), (1, (1,)), (1, (2,)), (1, (3,))]
    assert len(maker.threads) == max(1, workers)
    assert (threading.main_thread().name in maker.threads) == (workers == 0)


def test_the_default_is_two():
    assert DatasetConfig(folder_path="a").num_workers == 2
