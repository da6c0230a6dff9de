"""A first look at a folder of pictures: how many, of which sizes, with which captions. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import median

from toolkit.data.caption_sources import CAPTION_SUFFIXES
from toolkit.data.captions import read_caption
from toolkit.data.image_files import IMAGE_SUFFIXES, inspect_header
from toolkit.data.inspection import walk_files
from toolkit.errors import DatasetError, Problem
from toolkit.text import count


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen. sizes: (width, height) of each readable picture; captions: texts that are not empty.

    unreadable, bad_captions: files of pictures and captions that a run would refuse.
    """

    folder: Path
    sizes: list[tuple[int, int]]
    unreadable: list[str]
    captions: list[str]
    caption_ext: str
    bad_captions: list[str] = field(default_factory=list)

    @property
    def side(self) -> float:
        """Side in pixels of the square that the middle picture has the area of."""
        return median(sqrt(width * height) for width, height in self.sizes)

    @property
    def aspect(self) -> float:
        """Width by height of the middle picture."""
        return median(width / height for width, height in self.sizes)

    def lines(self) -> list[str]:
        """What was seen, for a person."""
        widths, heights = zip(*self.sizes, strict=True)
        spread = f"{min(widths)} x {min(heights)} to {max(widths)} x {max(heights)} px"
        shapes = [width / height for width, height in self.sizes]
        tall, wide = sum(each < 0.9 for each in shapes), sum(each > 1.1 for each in shapes)
        kinds = [(tall, "tall"), (len(shapes) - tall - wide, "square"), (wide, "wide")]
        shown = ", ".join(f"{number} {kind}" for number, kind in kinds if number)
        with_captions = f"{len(self.captions)} of {len(self.sizes)} pictures have captions"
        lines = [f"{len(self.sizes)} pictures, {spread}; {shown}"]
        lines.append(f"{with_captions} ({self.caption_ext})" if self.captions else "no captions")
        return lines + [
            f"{count(len(names), what)} that cannot be read: {', '.join(names[:5])}"
            for names, what in ((self.unreadable, "picture"), (self.bad_captions, "caption"))
            if names
        ]


def look_at(folder: Path) -> Look:
    """Look at every picture's header and caption. Raises DatasetError if there are none."""
    if not folder.is_dir():
        reason = "is a file, not a folder of pictures" if folder.exists() else "no such folder"
        raise DatasetError(Problem("data.no_folder", reason, file=str(folder)))
    sizes, unreadable, found = [], [], []
    for name in walk_files(folder):
        if not name.lower().endswith(IMAGE_SUFFIXES):
            continue
        try:
            facts = inspect_header(folder / name)
        except DatasetError:
            unreadable.append(name)
        else:
            sizes.append((facts.width, facts.height))
            found.append(folder / name)
    if not sizes:
        looked_for = ", ".join(f"*{suffix}" for suffix in IMAGE_SUFFIXES)
        message = f"no images found in {folder}; looked for {looked_for} in it and its folders"
        raise DatasetError(Problem("data.no_images", message))
    extension = max(CAPTION_SUFFIXES, key=lambda ext: sum(p.with_suffix(ext).is_file() for p in found))
    texts, bad = _captions(found, extension)
    return Look(folder, sizes, unreadable, texts, extension, bad)


def _captions(pictures: list[Path], extension: str) -> tuple[list[str], list[str]]:
    """The captions that are not empty, and the names of files that cannot be read."""
    texts, bad = [], []
    for path in pictures:
        file = path.with_suffix(extension)
        try:
            caption = read_caption(file)
        except DatasetError:
            bad.append(file.name)
            continue
        if caption is not None and caption.text:
            texts.append(caption.text)
    return texts, bad
