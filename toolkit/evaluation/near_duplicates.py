"""Pictures that look the same, by a hash of how brightness runs across them. Torch-free.

dHash: the picture in grey at 9 x 8; a bit says whether a place is clearly brighter than the one left of it.
Clearly, since in a flat picture the sign of a difference is noise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy
from numpy.typing import NDArray
from PIL import Image

from toolkit.data.image_files import open_rgb
from toolkit.data.items import MediaItem
from toolkit.data.prefetch import map_in_pieces
from toolkit.evaluation.flags import Reason, overlap, words_of

NEAR_BITS = 4  # of 64: re-encoded or scaled copies differ by less
CLEARLY = 4  # of 255
NEAR_COLOUR = 5.0  # of 255: root mean square over an 8 x 8 thumbnail
MIN_OVERLAP = 0.5  # of the words of two captions
MOST_COMPARED = 256  # captions of pictures that look like one
_DISTANCES = 1 << 18  # of the table of all pairs at once
_PAIRS = 1 << 12  # candidates compared in colour at once

Indices = NDArray[numpy.intp]


@dataclass(frozen=True, slots=True)
class Look:
    """How a picture looks from afar: 64 bits, and its 8 x 8 colours, 192 bytes."""

    bits: int
    colours: bytes


def look_of(image: Image.Image) -> Look:
    """The look of an RGB picture."""
    grey = numpy.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=numpy.int16)
    bits = (grey[:, 1:] > grey[:, :-1] + CLEARLY).ravel()
    colours = image.resize((8, 8), Image.Resampling.BOX).tobytes()
    return Look(int.from_bytes(numpy.packbits(bits).tobytes(), "big"), colours)


def look_at(path: Path) -> Look:
    """The look of a picture's file. Raises DatasetError."""
    return look_of(open_rgb(path))


def near_blocks(looks: Sequence[Look]) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of pictures that look the same, many at once: their indices (P,) and (P,), the first the lower.

    The bits find candidates fast and know nothing of colour, which a flat picture has nothing else than.
    """
    if not looks:
        return
    values: NDArray[numpy.uint64] = numpy.array([look.bits for look in looks], dtype=numpy.uint64)
    joined = numpy.frombuffer(b"".join(look.colours for look in looks), dtype=numpy.uint8)
    colours = joined.reshape(len(looks), -1)
    block = max(1, _DISTANCES // len(values))
    for start in range(0, len(values), block):
        distance = numpy.bitwise_count(values[start : start + block, None] ^ values[None, start:])
        rows, columns = numpy.nonzero(numpy.triu(distance <= NEAR_BITS, k=1))
        for first in range(0, len(rows), _PAIRS):
            i, j = rows[first : first + _PAIRS] + start, columns[first : first + _PAIRS] + start
            near = ((colours[i].astype(numpy.float32) - colours[j]) ** 2).mean(axis=1) <= NEAR_COLOUR**2
            yield i[near], j[near]


def look_at_all(paths: Sequence[Path]) -> list[Look]:
    """The looks of pictures' files, in their order. Raises DatasetError."""
    # Pillow decodes outside the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(map_in_pieces(pool, look_at, paths))


def twins(items: Sequence[MediaItem]) -> dict[Path, Reason]:
    """By path: a reason for each picture whose near copy is described in other words.

    Of a picture's near copies MOST_COMPARED or some more are looked at.
    """
    words = [words_of(item.caption) for item in items]
    numbers: dict[frozenset[str], int] = {}
    said = numpy.array([numbers.setdefault(each, len(numbers)) for each in words])
    twin, compared = numpy.full(len(items), -1), numpy.zeros(len(items), int)
    for first, second in near_blocks(look_at_all([item.path for item in items])):
        # Where very many look the same, most pairs have nothing new to tell.
        open_ = (twin < 0) & (compared < MOST_COMPARED)
        new = (said[first] != said[second]) & (open_[first] | open_[second])
        numpy.add.at(compared, first[new], 1)
        numpy.add.at(compared, second[new], 1)
        for i, j in zip(first[new].tolist(), second[new].tolist(), strict=True):
            if overlap(words[i], words[j]) < MIN_OVERLAP:
                twin[i], twin[j] = (j if twin[i] < 0 else twin[i]), (i if twin[j] < 0 else twin[j])
    return {
        item.path: _twin_reason(items[other])
        for item, other in zip(items, twin.tolist(), strict=True)
        if other >= 0
    }


def _twin_reason(other: MediaItem) -> Reason:
    return Reason("twin_images", f"{other.path.name} looks the same and says {other.caption!r}")
