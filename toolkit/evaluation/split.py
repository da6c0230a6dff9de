"""Pictures held out of training, so that none of them looks like one that is trained on. Torch-free.

Pictures that look alike (near copies, also mirrored ones) form groups: connected components, so that a chain
of small changes is one group too. A group is held out whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy
from PIL import ImageOps

from toolkit.data.image_files import open_rgb
from toolkit.data.items import MediaItem
from toolkit.errors import DatasetError, Problem
from toolkit.evaluation.near_duplicates import Look, look_of, near_blocks
from toolkit.seeding import keyed_seed

Name = TypeVar("Name", bound=Hashable)
Looks = tuple[Look, Look]  # of a picture and of its mirror image

FEWEST = 2  # groups: with fewer nothing can be said about how sure a mean is
FEW = 8  # groups, below which bands are wide
_THREADS = 4


def look_both_ways(path: Path) -> Looks:
    """How a picture looks, and how its mirror image does. Raises DatasetError."""
    picture = open_rgb(path)
    return look_of(picture), look_of(ImageOps.mirror(picture))


def look_at_all(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> list[Looks]:
    """The looks of many pictures, in their order. Raises DatasetError."""
    looks = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(look_both_ways, paths):
            looks.append(found)
            if progress is not None:
                progress(len(looks), len(paths))
    return looks


def groups_of(looks: Sequence[Looks]) -> list[int]:
    """A number for each picture, equal for those that look alike, directly or over others."""
    count = len(looks)
    parents = list(range(count))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    # A mirrored picture need only be found beside one that is not: both ways of each are in the list.
    known, num_looked_at = numpy.arange(count), 0
    for first, second in near_blocks([own for own, _ in looks] + [mirrored for _, mirrored in looks]):
        first, second = first % count, second % count
        new = known[first] != known[second]  # most are not, where very many look alike
        for i, j in zip(first[new].tolist(), second[new].tolist(), strict=True):
            one, other = sorted((root(i), root(j)))
            parents[other] = one
            num_looked_at += 1
        if num_looked_at > count:
            known, num_looked_at = numpy.array([root(index) for index in range(count)]), 0
    return [root(index) for index in range(count)]


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known of a picture's file: its content, its group, and whether it may be held out."""

    path: Path
    sha256: str
    group: int
    may_be_held_out: bool = True


def pictures_of(
    items: Iterable[MediaItem], progress: Callable[[int, int], None] | None = None
) -> dict[Path, Picture]:
    """Every picture of the items once, by path, in groups; equal bytes are one group in any case.

    A picture that any dataset uses for regularisation may not be held out. Raises DatasetError.
    """
    first: dict[Path, MediaItem] = {}
    regularising = set()
    for item in items:
        first.setdefault(item.path, item)
        if item.is_reg:
            regularising.add(item.path)
    groups = groups_of(look_at_all(list(first), progress))
    return {
        path: Picture(path, item.sha256, group, path not in regularising)
        for (path, item), group in zip(first.items(), groups, strict=True)
    }


def hold_out(pictures: Iterable[Picture], fraction: float, seed: int) -> set[Path]:
    """The pictures to hold out: whole groups, at most that fraction of those that may be.

    Which ones depends on the seed and on the pictures' bytes, neither on names nor on order, so that a
    picture more leaves most of the choice as it was. Raises DatasetError if fewer than two groups fit.
    """
    groups: dict[int, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.group, []).append(picture)
    free = [group for group in groups.values() if all(each.may_be_held_out for each in group)]
    count = sum(len(group) for group in free)
    room, chosen = round(fraction * count), []
    most = room // FEWEST  # so that no crowd of copies is all there is
    for group in sorted(free, key=lambda group: min(_draw(seed, each) for each in group)):
        if len(group) <= min(room, most):
            chosen.append(group)
            room -= len(group)
    if len(chosen) < FEWEST:
        alike = f" ({len(free)} where those that look alike count once)" if len(free) < count else ""
        message = (
            f"{fraction:g} of {count} pictures{alike} holds out {len(chosen)}; at least {FEWEST} that look "
            "different are needed"
        )
        remedy = "raise validation.fraction, or give validation.folder_path"
        raise DatasetError(Problem("data.validation", message, key="validation.fraction", remedy=remedy))
    return {picture.path for group in chosen for picture in group}


def few_note(num_groups: int) -> str:
    """A line about so few groups of held-out pictures; empty if they are enough."""
    if num_groups >= FEW:
        return ""
    return f"validation: {num_groups} pictures that look different tell little; bands will be wide"


def _draw(seed: int, picture: Picture) -> int:
    return keyed_seed("validation-split", seed, picture.sha256)


def drawn(items: Sequence[MediaItem], count: int, seed: int, stream: str) -> list[MediaItem]:
    """At most so many of the items, one of each content, drawn by content and seed; in the drawn order."""
    by_content = {item.sha256: item for item in reversed(items)}
    ordered = sorted(by_content.values(), key=lambda item: keyed_seed(stream, seed, item.sha256))
    return ordered[:count]


def one_each(items: Iterable[MediaItem]) -> list[MediaItem]:
    """Of each picture the item that shows the most of it: the largest resolution, not flipped if possible."""
    best: dict[Path, MediaItem] = {}
    for item in items:
        known = best.get(item.path)
        if known is None or _fitness(item) > _fitness(known):
            best[item.path] = item
    return list(best.values())


def _fitness(item: MediaItem) -> tuple[int, bool]:
    flipped = item.placement.flip_x or item.placement.flip_y
    return item.bucket.width * item.bucket.height, not flipped


def unlike(
    held_out: Sequence[MediaItem], trained: Sequence[MediaItem], pictures: dict[Path, Picture]
) -> tuple[list[MediaItem], list[str]]:
    """The held-out items that look like none that is trained on, and a note naming the others.

    pictures: of both. Raises DatasetError if fewer than two groups are left.
    """
    known = {pictures[item.path].group: item for item in trained}
    leaks = [(item, known[pictures[item.path].group]) for item in held_out
             if pictures[item.path].group in known]  # fmt: skip
    leaking = {item.path for item, _ in leaks}
    kept = [item for item in held_out if item.path not in leaking]
    notes = []
    if leaks:
        pairs = [f"{item.path.name} looks like {twin.path.name}" for item, twin in leaks]
        shown = ", ".join(pairs[:4]) + (f" and {len(pairs) - 4} more" if len(pairs) > 4 else "")
        notes.append(f"validation: {len(leaks)} of {len(held_out)} held-out pictures are left out: {shown}")
    if len({pictures[item.path].group for item in kept}) < FEWEST:
        message = f"{len(kept)} held-out pictures are left that look different from the trained ones"
        raise DatasetError(Problem("data.validation", message, key="validation",
                                   remedy=f"hold out at least {FEWEST}"))  # fmt: skip
    return kept, notes
