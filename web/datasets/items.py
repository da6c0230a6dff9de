"""The pictures of a dataset as a page shows them: with captions and results, filtered and sorted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from web.datasets import captions, looks
from web.datasets.captions import Caption
from web.datasets.library import CHANGING, Entry, Library, Listing
from web.datasets.names import CAPTIONS
from web.evaluations.reports import METRICS, ImageResult, Metric

Show = Literal["all", "no-caption", "flagged", "duplicates"]
Sort = Literal["name", "newest", "worst"]


@dataclass(frozen=True, slots=True)
class Item:
    """A picture with its caption. result: what the report says of it, if it does."""

    entry: Entry
    caption: Caption
    result: ImageResult | None
    size: tuple[int, int] | None = None

    @property
    def rel(self) -> str:
        """Its path below the dataset."""
        return self.entry.rel

    @property
    def is_stale(self) -> bool:
        """Whether the caption is another one than was measured; the evaluator reads it as one line."""
        return self.result is not None and " ".join(self.caption.text.split()) != " ".join(
            self.result.caption.split()
        )


@dataclass(frozen=True, slots=True)
class ItemQuery:
    """Which pictures, and in which order. text: in the caption or the name."""

    show: Show = "all"
    text: str = ""
    sort: Sort = "name"
    metric: Metric = "log_ratio"
    offset: int = 0
    limit: int = 60


@dataclass(frozen=True, slots=True)
class ItemPage:
    """Some of the pictures that were asked for; total: how many those are. counts: of each filter."""

    items: list[Item]
    total: int
    counts: Mapping[str, int]
    refused: Sequence[tuple[str, str]]


def find_items(
    library: Library, name: str, query: ItemQuery, results: Mapping[str, ImageResult] | None = None
) -> ItemPage:
    """A page of the pictures of a dataset. results: of a report, by path. Raises 404."""
    known = results or {}
    folder, listing = library.folder(name), library.listing(name)
    chosen, counts, texts = _choose(library, name, listing, query, known)
    shown = chosen[query.offset : query.offset + query.limit]
    items = [
        Item(
            entry, texts.get(entry.rel) or captions.read_listed(folder, listing, entry.rel),
            known.get(entry.rel), picture_size(folder / entry.rel),
        )
        for entry in shown
    ]  # fmt: skip
    return ItemPage(items, len(chosen), counts, listing.refused)


def order_of(
    library: Library, name: str, query: ItemQuery, results: Mapping[str, ImageResult] | None = None
) -> list[Entry]:
    """All the pictures that a query finds, in its order. Raises 404."""
    return _choose(library, name, library.listing(name), query, results or {})[0]


def _choose(
    library: Library, name: str, listing: Listing, query: ItemQuery, known: Mapping[str, ImageResult]
) -> tuple[list[Entry], dict[str, int], dict[str, Caption]]:
    """(the pictures, how many each filter has, captions that were read for it)."""
    folder, pictures = library.folder(name), listing.pictures
    without = {entry.rel for entry in pictures if _is_bare(folder, listing, entry.rel)}
    flagged = {entry.rel for entry in pictures if entry.rel in known and known[entry.rel].flagged}
    counts = {"all": len(pictures), "no-caption": len(without), "flagged": len(flagged)}
    chosen = pictures
    if query.show == "no-caption":
        chosen = [entry for entry in pictures if entry.rel in without]
    elif query.show == "flagged":
        chosen = [entry for entry in pictures if entry.rel in flagged]
    elif query.show == "duplicates":
        found = looks.find_duplicates(library, name)
        doubled = {rel: number for number, group in enumerate([*found.exact, *found.near]) for rel in group}
        chosen = sorted(
            (entry for entry in pictures if entry.rel in doubled), key=lambda each: doubled[each.rel]
        )
    texts: dict[str, Caption] = {}
    if query.text:
        wanted = query.text.casefold()
        texts = {entry.rel: captions.read_listed(folder, listing, entry.rel) for entry in chosen}
        chosen = [
            entry for entry in chosen
            if wanted in texts[entry.rel].text.casefold() or wanted in entry.rel.casefold()
        ]  # fmt: skip
    return _sorted(chosen, query, known), counts, texts


def _is_bare(folder: Path, listing: Listing, rel: str) -> bool:
    """Whether a picture has no caption. Only small files are read to find out."""
    entry = listing.caption_of(rel)
    if entry is None or entry.size == 0:
        return True
    return entry.size < 64 and not captions.read_file(folder, entry.rel).text


def _sorted(entries: list[Entry], query: ItemQuery, results: Mapping[str, ImageResult]) -> list[Entry]:
    if query.sort == "newest":
        return sorted(entries, key=lambda entry: (-entry.mtime_ns, entry.rel))
    if query.sort == "worst":
        sign = -1 if METRICS[query.metric][1] else 1

        def badness(entry: Entry) -> tuple[bool, float]:
            result = results.get(entry.rel)
            value = None if result is None else result.value(query.metric)
            return value is None, 0.0 if value is None else sign * value

        return sorted(entries, key=badness)
    return entries


def get_item(library: Library, name: str, rel: str, results: Mapping[str, ImageResult] | None = None) -> Item:
    """A picture of a dataset. Raises 404."""
    path = captions.picture_path(library, name, rel)
    stat = path.stat()
    folder = library.folder(name)
    return Item(
        Entry(rel, stat.st_size, stat.st_mtime_ns), captions.read(folder, rel), (results or {}).get(rel),
        picture_size(path),
    )  # fmt: skip


def delete_item(library: Library, name: str, rel: str) -> str:
    """Move a picture, and a caption that is its alone, to the trash; the id that restores both. 404."""
    with CHANGING:
        captions.picture_path(library, name, rel)
        listing = library.listing(name)
        files = [rel]
        stem = captions.stem_of(rel)
        if not any(captions.stem_of(entry.rel) == stem and entry.rel != rel for entry in listing.pictures):
            files += [stem + end for end in CAPTIONS if stem + end in listing.files]
        return library.trash.put_files(library.folder(name), files)


def picture_size(path: Path) -> tuple[int, int] | None:
    """(width, height) in pixels as stored, from the header; None for what is no picture."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                return image.width, image.height
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
