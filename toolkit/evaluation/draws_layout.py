"""How an image's draws hang together: levels, signs, and which are independent. Torch-free."""

from __future__ import annotations

BLOCK = 4  # draws: two levels, each with a noise and its negative


def van_der_corput(index: int) -> float:
    """The index-th number of the base 2 sequence: 0, 1/2, 1/4, 3/4, 1/8 ... in [0, 1)."""
    value, weight = 0.0, 0.5
    while index:
        value += weight * (index & 1)
        index, weight = index >> 1, weight / 2
    return value


def level_of(draw: int) -> int:
    """The number of the noise level (and of the noise) that a draw uses."""
    block, place = divmod(draw, BLOCK)
    return 2 * block + place % 2


def sign_of(draw: int) -> int:
    """1, or -1 for a draw whose noise is the negative of an earlier one's."""
    return 1 if draw % BLOCK < BLOCK // 2 else -1


def draws_of_levels(num_draws: int) -> list[list[int]]:
    """The draws that share a level and a noise up to its sign: the independent units of `num_draws` draws."""
    units: dict[int, list[int]] = {}
    for draw in range(num_draws):
        units.setdefault(level_of(draw), []).append(draw)
    return list(units.values())
