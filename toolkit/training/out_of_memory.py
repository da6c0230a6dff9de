"""Running out of memory, told from other errors and said with names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from toolkit.data.items import Batch
from toolkit.errors import Problem, RunError

MAX_IN_A_ROW = 3  # batches without memory: the next ones will not fit either

# What a device's allocator, Python's and torch's own for the processor raise.
ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)
_SAID = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)

Value = TypeVar("Value")
Made = TypeVar("Made")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _SAID.search(str(error)) is not None


class OutOfMemoryError(RunError):
    """There is not enough memory for what was asked."""


class BatchOutOfMemory(OutOfMemoryError):  # noqa: N818 - the batch is meant
    """The micro-batches at positions first to stop - 1 do not fit; no weight has been touched."""

    def __init__(self, step: int, first: int, stop: int, files: list[str]) -> None:
        self.step, self.first, self.stop, self.files = step, first, stop, files
        super().__init__(
            Problem("run.out_of_memory", f"step {step}: no memory for a batch of {', '.join(files)}")
        )


@contextmanager
def naming_batches(step: int, first: int, stop: int, batches: Sequence[Batch]) -> Iterator[None]:
    """Turn a lack of memory inside into BatchOutOfMemory."""
    try:
        yield
    except ERRORS as error:
        if not is_out_of_memory(error):
            raise
        files = [str(item.path) for batch in batches for item in batch.items]
        raise BatchOutOfMemory(step, first, stop, files) from None


class UpdateOutOfMemory(OutOfMemoryError):  # noqa: N818
    """No memory amid an update: some weights may be of this step and others of the one before."""


@contextmanager
def naming_update(step: int) -> Iterator[None]:
    """Turn a lack of memory inside into UpdateOutOfMemory."""
    try:
        yield
    except ERRORS as error:
        if not is_out_of_memory(error):
            raise
        message = f"step {step}: not enough memory for the optimizer to update the weights"
        raise UpdateOutOfMemory(Problem("run.out_of_memory", message)) from None


@contextmanager
def telling(doing: str, remedies: Sequence[str]) -> Iterator[None]:
    """Turn a lack of memory inside into one line: while doing what, and what would help."""
    try:
        yield
    except ERRORS as error:
        if not is_out_of_memory(error):
            raise
        notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        raise no_memory(f"not enough memory while {doing}{notes}", remedies) from None


def no_memory(message: str, remedies: Sequence[str]) -> OutOfMemoryError:
    """The error with its remedies, the cheapest first."""
    remedy = "cheapest first: " + "; ".join(remedies) if len(remedies) > 1 else "".join(remedies)
    return OutOfMemoryError(Problem("run.out_of_memory", message, remedy=remedy or None))


def free_memory() -> None:
    """Hand back what the allocators hold but nothing uses."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def in_halves(encode: Callable[[Tensor], Tensor], tell: Callable[[int], None]) -> Callable[[Tensor], Tensor]:
    """`encode` (B, ...) -> (B, ...) that halves a batch that does not fit, and all after it to that size.

    tell(size) is called at each halving. A batch of one that does not fit raises what encode raised.
    """
    limit: list[int] = []

    def encode_in_parts(values: Tensor) -> Tensor:
        while True:
            size = min([len(values), *limit])
            parts: list[Tensor] = []
            try:
                parts.extend(encode(part) for part in values.split(size))
                return torch.cat(parts) if len(parts) > 1 else parts[0]
            except ERRORS as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            limit[:] = [size // 2]
            del parts
            free_memory()
            tell(size // 2)

    return encode_in_parts


def as_memory_allows(
    wanted: Sequence[Value], make: Callable[[Value], Made], say: Callable[[str], None]
) -> Iterator[Made | None]:
    """What `make` makes of each; None, and a line, for what finds no memory even alone after freeing some."""
    for value in wanted:
        made = None
        for attempt in (1, 2):
            try:
                made = make(value)
                break
            except ERRORS as error:
                if not is_out_of_memory(error):
                    raise
            free_memory()
            if attempt == 2:
                say(
                    "note: not enough memory for a preview, which is left out; training goes on "
                    "(a smaller sample.width and height need less)"
                )
        yield made
