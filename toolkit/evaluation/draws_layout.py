"""How an image's draws hang together: noises, signs, and which are independent. Torch-free."""

from __future__ import annotations

# Raised when a draw's number comes to mean another level or noise: records of before are then set aside.
LAYOUT = 2
BLOCK = 4  # draws: four levels; two noises, and their negatives


def van_der_corput(index: int) -> float:
    """The index-th number of the base 2 sequence: 0, 1/2, 1/4, 3/4, 1/8 ... in [0, 1)."""
    value, weight = 0.0, 0.5
    while index:
        value += weight * (index & 1)
        index, weight = index >> 1, weight / 2
    return value


def noise_of(draw: int) -> int:
    """The number of the noise that a draw uses, up to its sign."""
    block, place = divmod(draw, BLOCK)
    return 2 * block + place % 2


def sign_of(draw: int) -> int:
    """1, or -1 for a draw whose noise is the negative of an earlier one's."""
    return 1 if draw % BLOCK < BLOCK // 2 else -1


def draws_of_noises(num_draws: int) -> list[list[int]]:
    """The draws that share a noise up to its sign: the independent units of `num_draws` draws."""
    units: dict[int, list[int]] = {}
    for draw in range(num_draws):
        units.setdefault(noise_of(draw), []).append(draw)
    return list(units.values())
