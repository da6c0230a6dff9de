"""Which pictures of a dataset are the same, or look the same; what was found out is kept for the next time.

dHash (Krawetz 2013): a picture in grey at 9 x 8, each of 64 bits telling whether a place is brighter than the
one right of it. Bits know nothing of colour, so 8 x 8 colours decide with them.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.runs import atomic
from web.datasets.library import Entry, Library
from web.datasets.uploads import sha256_of

NEAR_BITS = 4  # of 64: copies that were scaled or encoded again differ by less
NEAR_COLOUR = 6.0  # of 255: root mean square over 8 x 8 colours
BUDGET_S = 8.0  # how long one request may look; the next one goes on
_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Look:
    """A picture: hash of its bytes, 64 bits, 8 x 8 colours as hex. bits is None for what cannot be read."""

    sha256: str
    bits: int | None
    colours: str


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Groups of paths: the same bytes, and the same look. num_left: pictures not looked at yet."""

    exact: list[list[str]]
    near: list[list[str]]
    num_left: int
    unreadable: list[str]


def find_duplicates(library: Library, name: str, budget_s: float = BUDGET_S) -> Duplicates:
    """The duplicates among the pictures looked at so far, after looking for some seconds. Raises 404."""
    folder, pictures = library.folder(name), library.listing(name).pictures
    cache = library.data_root / "looks" / f"{name}.json"
    known, left = _look(folder, pictures, _load(cache), budget_s)
    _save(cache, pictures, known)
    looks = {entry.rel: known[_key(entry)] for entry in pictures if _key(entry) in known}
    by_hash: dict[str, list[str]] = {}
    for rel, look in looks.items():
        by_hash.setdefault(look.sha256, []).append(rel)
    firsts = {rels[0]: looks[rels[0]] for rels in by_hash.values() if looks[rels[0]].bits is not None}
    return Duplicates(
        exact=[rels for rels in by_hash.values() if len(rels) > 1], near=_near(firsts), num_left=left,
        unreadable=[rel for rel, look in looks.items() if look.bits is None],
    )  # fmt: skip


def _key(entry: Entry) -> str:
    return f"{entry.mtime_ns}:{entry.size}:{entry.rel}"


def _look(
    folder: Path, pictures: Sequence[Entry], known: dict[str, Look], budget_s: float
) -> tuple[dict[str, Look], int]:
    end = time.monotonic() + budget_s
    left = 0
    for entry in pictures:
        if _key(entry) in known:
            continue
        if time.monotonic() > end:
            left += 1
            continue
        try:
            known[_key(entry)] = look_at(folder / entry.rel)
        except FileNotFoundError:
            continue  # deleted since it was listed
    return known, left


def look_at(path: Path) -> Look:
    """How a picture looks."""
    from PIL import Image

    digest = sha256_of(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                image.draft("RGB", (64, 64))
                rgb = image.convert("RGB")
        except (
            Image.DecompressionBombWarning, Image.DecompressionBombError,
            OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError,
        ):  # fmt: skip
            return Look(digest, None, "")
    grey = rgb.convert("L").resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            bits = bits << 1 | (grey[row * 9 + column] > grey[row * 9 + column + 1])
    return Look(digest, bits, rgb.resize((8, 8), Image.Resampling.BOX).tobytes().hex())


def _near(looks: dict[str, Look]) -> list[list[str]]:
    """Groups of pictures that look the same, each picture once."""
    import numpy

    rels = list(looks)
    if len(rels) < 2:
        return []
    bits = numpy.array([looks[rel].bits for rel in rels], dtype=numpy.uint64)
    colours = numpy.stack([numpy.frombuffer(bytes.fromhex(looks[rel].colours), numpy.uint8) for rel in rels])
    groups = _Groups(len(rels))
    for start in range(0, len(rels), _BLOCK):
        distance = numpy.bitwise_count(bits[start : start + _BLOCK, None] ^ bits[None, :])
        rows, columns = numpy.nonzero(distance <= NEAR_BITS)
        later = columns > rows + start
        rows, columns = rows[later] + start, columns[later]
        for first in range(0, len(rows), 1 << 16):
            i, j = rows[first : first + (1 << 16)], columns[first : first + (1 << 16)]
            difference = colours[i].astype(numpy.float32) - colours[j]
            close = (difference**2).mean(axis=1) <= NEAR_COLOUR**2
            groups.join(zip(i[close].tolist(), j[close].tolist(), strict=True))
    return [[rels[index] for index in group] for group in groups.several()]


class _Groups:
    """Numbers that belong together."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def root(self, index: int) -> int:
        """The number that stands for the group."""
        while self.parent[index] != index:
            self.parent[index] = self.parent[self.parent[index]]
            index = self.parent[index]
        return index

    def join(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Put both of each pair into one group."""
        for i, j in pairs:
            self.parent[self.root(j)] = self.root(i)

    def several(self) -> list[list[int]]:
        """The groups of more than one."""
        found: dict[int, list[int]] = {}
        for index in range(len(self.parent)):
            found.setdefault(self.root(index), []).append(index)
        return [group for group in found.values() if len(group) > 1]


def _load(path: Path) -> dict[str, Look]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return {key: Look(str(each[0]), each[1], str(each[2])) for key, each in body["looks"].items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}


def _save(path: Path, pictures: Iterable[Entry], known: dict[str, Look]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: known[key] for key in map(_key, pictures) if key in known}
    body = {"looks": {key: [look.sha256, look.bits, look.colours] for key, look in kept.items()}}
    atomic.write_json(path, body, durable=False, indent=None)
