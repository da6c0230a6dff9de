"""What counts as running out of memory, and what is done about it."""

import pytest
import torch

from toolkit.errors import RunError
from toolkit.training.out_of_memory import as_memory_allows, in_halves, is_out_of_memory, telling

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (NO_MEMORY, True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_what_counts(error, verdict):
    assert is_out_of_memory(error) is verdict


def test_torch_says_so_itself_on_the_processor():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_batch_is_halved_until_it_fits_and_stays_so():
    sizes, told = [], []

    def encode(values):
        sizes.append(len(values))
        if len(values) > 2:
            raise NO_MEMORY
        return values * 2

    halved = in_halves(encode, told.append)
    values = torch.arange(8.0)
    assert torch.equal(halved(values), values * 2)
    assert sizes == [8, 4, 2, 2, 2, 2] and told == [4, 2]
    assert torch.equal(halved(values[:3]), values[:3] * 2)
    assert sizes[6:] == [2, 1] and told == [4, 2], "what did not fit once is not tried again"


def test_one_that_does_not_fit_and_other_errors_are_passed_on():
    def fail(error):
        def encode(values):
            raise error

        return in_halves(encode, lambda size: None)

    with pytest.raises(torch.OutOfMemoryError):
        fail(NO_MEMORY)(torch.zeros(1))
    with pytest.raises(ValueError, match="shape"):
        fail(ValueError("shape"))(torch.zeros(4))


def test_a_preview_is_tried_again_and_then_left_out_by_name():
    said, tries = [], []

    def draw(name):
        tries.append(name)
        if name == "large" or (name == "second time" and tries.count(name) == 1):
            raise NO_MEMORY
        return name.upper()

    assert list(as_memory_allows(["small", "large", "second time"], draw, said.append)) == [
        "SMALL", None, "SECOND TIME",
    ]  # fmt: skip
    assert len(said) == 1 and "preview" in said[0]


def test_a_line_says_while_doing_what_and_what_helps():
    with pytest.raises(RunError) as caught, telling("caching latents", ("first", "second")):
        raise NO_MEMORY
    assert str(caught.value) == ("not enough memory while caching latents (cheapest first: first; second)")
    with pytest.raises(RuntimeError, match="shapes"), telling("caching latents", ()):
        raise RuntimeError("shapes")
