"""Look at a data set before it is trained on: files, sizes, copies, captions. Torch-free."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy
from PIL import ImageStat

from toolkit.data.captions import insert_trigger, normalize_extension
from toolkit.data.companions import NO_COMPANIONS, CompanionSettings
from toolkit.data.dataset_list import is_list
from toolkit.data.image_files import open_mask, open_rgb
from toolkit.data.items import MaskSource, MediaItem
from toolkit.data.placing import fit
from toolkit.data.scan import ScanResult, scan_dataset
from toolkit.dataset_check.report import BucketRow, Crop, DatasetCheck, Finding, Mask, Picture, TagRow
from toolkit.dataset_check.sharpness import SOFT_RATIO, octave_ratio
from toolkit.errors import DatasetError, Problem
from toolkit.evaluation.edits import EMPTY_WORDS, is_tag_list, tags_of
from toolkit.evaluation.flags import text_reasons, unmeant_copies
from toolkit.evaluation.near_duplicates import Look, look_of, near_blocks

LEAST_SHARE = 0.75  # of a picture's area; what is cut beyond is worth knowing
LONGEST_ASPECT = 3.0
MOST_TAGS = 200
_NAMED = 3  # of the pictures that one looks like
# What the scan says of single files when it is strict; everything else it says stops a training.
ODDITIES = frozenset((
    "data.no_caption", "data.empty_caption", "data.orphan_caption", "data.unread_file", "data.odd_picture",
    "data.duplicate", "data.enlarged",
))  # fmt: skip

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Rules:
    """How the data set would be trained on; as in a job's datasets section."""

    resolutions: tuple[int, ...] = (512,)
    size_multiple: int = 8
    caption_ext: str = ".txt"
    default_caption: str | None = None
    trigger_word: str | None = None
    companions: CompanionSettings = NO_COMPANIONS


@dataclass(frozen=True, slots=True)
class _Seen:
    """How a picture looks from afar and as the model gets it, and how much of that its mask lets count."""

    look: Look
    sharpness: float | None
    masked: float | None


def check_dataset(
    path: Path, rules: Rules, progress: Progress = lambda what, done, total: None
) -> DatasetCheck:
    """Everything there is to say about a folder, or a list, of pictures."""
    result = scan_dataset(
        path,
        resolutions=rules.resolutions,
        size_multiple=rules.size_multiple,
        caption_ext=normalize_extension(rules.caption_ext),
        default_caption=rules.default_caption,
        trigger_word=rules.trigger_word,
        companions=rules.companions,
        strict=True,
        progress=lambda done, total: progress("pictures verified", done, total),
    )
    folder = path.parent if is_list(path) else path
    first = _largest_resolution(result.items)
    found: dict[Path, list[Finding]] = defaultdict(list)
    for problem in result.problems:
        if problem.code in ODDITIES and problem.file:
            found[Path(problem.file)].append(Finding(code=problem.code, message=problem.message))
    seen, unreadable = _look_at_all(first, progress)
    for where, finding in _about_sizes(first, seen):
        found[where].append(finding)
    for where, finding in _about_looks(first, seen):
        found[where].append(finding)
    notes = list(result.notes)
    for where, finding in _about_captions(first, rules, notes):
        found[where].append(finding)
    pictures = [_picture(item, folder, seen.get(item.path), found[item.path]) for item in first]
    known = {item.path for item in first}
    others = {_name(where, folder): some[0] for where, some in found.items() if where not in known and some}
    every = [finding for picture in pictures for finding in picture.findings] + list(others.values())
    tags, once, words = _tags(first)
    return DatasetCheck(
        path=str(path),
        resolution=list(rules.resolutions),
        num_pictures=result.num_pictures,
        problems=[str(p) for p in [*result.problems, *unreadable] if p.code not in ODDITIES],
        pictures=pictures,
        other_files=others,
        buckets=_buckets(result),
        tags=tags,
        tags_once=once,
        tags_are_words=words,
        counts=dict(Counter(finding.code for finding in every).most_common()),
        notes=notes,
    )


def _odd(kind: str, message: str) -> Finding:
    """Something about a picture that a training would take, and its reader might not want."""
    return Finding(code=kind, message=message)


def _name(path: Path, folder: Path) -> str:
    return (path.relative_to(folder) if path.is_relative_to(folder) else path.absolute()).as_posix()


def _largest_resolution(items: Sequence[MediaItem]) -> list[MediaItem]:
    """One item for each picture: that of its largest bucket."""
    best: dict[Path, MediaItem] = {}
    for item in items:
        known = best.get(item.path)
        if known is None or item.bucket.width * item.bucket.height > known.bucket.width * known.bucket.height:
            best[item.path] = item
    return list(best.values())


def _look_at_all(items: Sequence[MediaItem], progress: Progress) -> tuple[dict[Path, _Seen], list[Problem]]:
    def look(item: MediaItem) -> _Seen | Problem:
        try:
            image = open_rgb(item.path)
            masked = None if item.mask is None else _share_of(item, item.mask)
        except DatasetError as error:  # it was there a moment ago
            return error.problems[0]
        return _Seen(look_of(image), octave_ratio(fit(image, item.bucket, item.placement)), masked)

    seen: dict[Path, _Seen] = {}
    problems = []
    # Pillow decodes outside the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done, (item, found) in enumerate(zip(items, pool.map(look, items), strict=True), start=1):
            if isinstance(found, Problem):
                problems.append(found)
            else:
                seen[item.path] = found
            progress("pictures looked at", done, len(items))
    return seen, problems


def _share_of(item: MediaItem, mask: MaskSource) -> float:
    """The mean of what a mask lets count of the part that the model sees, in [0, 1]."""
    grey = fit(open_mask(mask.path, from_alpha=mask.from_alpha), item.bucket, item.placement)
    mean = ImageStat.Stat(grey).mean[0] / 255
    return 1 - mean if mask.inverted else mean


def _mask(item: MediaItem, folder: Path, seen: _Seen | None) -> Mask | None:
    if item.mask is None:
        return None
    share = None if seen is None or seen.masked is None else round(seen.masked, 4)
    return Mask(path=_name(item.mask.path, folder), inverted=item.mask.inverted, share=share)


def _crop(item: MediaItem) -> Crop:
    """What is cut out, in the picture's own pixels."""
    assert item.source_size is not None
    width, height = item.source_size
    place = item.placement
    across, down = width / place.scaled_width, height / place.scaled_height
    share = item.bucket.width * item.bucket.height / (place.scaled_width * place.scaled_height)
    return Crop(
        left=round(place.left * across), top=round(place.top * down), width=round(item.bucket.width * across),
        height=round(item.bucket.height * down), share=round(share, 4),
    )  # fmt: skip


def _about_sizes(items: Sequence[MediaItem], seen: dict[Path, _Seen]) -> Iterator[tuple[Path, Finding]]:
    largest = max((item.bucket.width * item.bucket.height for item in items), default=0)
    for item in items:
        assert item.source_size is not None
        width, height = item.source_size
        if 4 * width * height < largest:
            text = f"{width} x {height}: less than a quarter of the pixels that the largest bucket here has"
            yield item.path, _odd("check.tiny", text)
        share, aspect = _crop(item).share, max(width, height) / min(width, height)
        if share < LEAST_SHARE or aspect > LONGEST_ASPECT:
            text = f"{width} x {height}: {1 - share:.0%} of it is cut off"
            yield item.path, _odd("check.aspect", text)
        sharpness = seen[item.path].sharpness if item.path in seen else None
        if sharpness is not None and sharpness < SOFT_RATIO:
            detail = f"its finest detail is {sharpness:.2f} of the next coarser, in sharp pictures 0.35 to 1"
            text = f"looks enlarged or blurred: {detail}"
            yield item.path, _odd("check.soft", text)


def _about_looks(items: Sequence[MediaItem], seen: dict[Path, _Seen]) -> Iterator[tuple[Path, Finding]]:
    """Pictures that look the same without being the same file: the scan tells of those."""
    known = [item for item in items if item.path in seen]
    files: dict[str, int] = {}
    same = numpy.array([files.setdefault(item.sha256, len(files)) for item in known])
    alike: list[list[int]] = [[] for _ in known]
    counts = numpy.zeros(len(known), int)
    for first, second in near_blocks([seen[item.path].look for item in known]):
        other = same[first] != same[second]
        for ones, others in ((first[other], second[other]), (second[other], first[other])):
            # Where very many look the same, most have named theirs long ago.
            few = counts[ones] < _NAMED
            for i, j in zip(ones[few].tolist(), others[few].tolist(), strict=True):
                alike[i].append(j)
            numpy.add.at(counts, ones, 1)
    for item, ones, count in zip(known, alike, counts.tolist(), strict=True):
        if ones:
            names = [known[j].path.name for j in sorted(ones)[:_NAMED]]
            more = f" and {count - _NAMED} more" if count > _NAMED else ""
            yield item.path, _odd("check.near_duplicate", f"looks like {', '.join(names)}{more}")


def _about_captions(
    items: Sequence[MediaItem], rules: Rules, notes: list[str]
) -> Iterator[tuple[Path, Finding]]:
    copies, shared = unmeant_copies(item.caption for item in items)
    if shared:
        notes.append(f"{shared} of {len(items)} pictures share their caption, which is taken for meant")
    for item in items:
        count = copies[item.caption.casefold()]
        # Looked for in what was written: a training puts the trigger word in front.
        written = insert_trigger(item.caption_source, rules.trigger_word, prepend=False)
        for reason in text_reasons(written, trigger=rules.trigger_word, copies=count):
            if reason.code != "caption_empty":  # the scan knows whether a file is missing or blank
                yield item.path, Finding(code=f"check.{reason.code}", message=reason.message)


def _picture(item: MediaItem, folder: Path, seen: _Seen | None, findings: list[Finding]) -> Picture:
    assert item.source_size is not None
    width, height = item.source_size
    sharpness = seen.sharpness if seen is not None else None
    return Picture(
        path=_name(item.path, folder), width=width, height=height, sha256=item.sha256,
        bucket=(item.bucket.width, item.bucket.height), crop=_crop(item),
        mask=_mask(item, folder, seen), caption=item.caption,
        sharpness=None if sharpness is None else round(sharpness, 4), findings=findings,
    )  # fmt: skip


def _buckets(result: ScanResult) -> list[BucketRow]:
    return [
        BucketRow(width=bucket.width, height=bucket.height, pictures=count)
        for bucket, count in result.buckets.items()
    ]


def _tags(items: Sequence[MediaItem]) -> tuple[list[TagRow], int, bool]:
    """Tags with their pictures, how many occur once, and whether they are the words of sentences."""
    captions = [item.caption for item in items if item.caption]
    words = 2 * sum(map(is_tag_list, captions)) < len(captions)
    counts: Counter[str] = Counter()
    for caption in captions:
        parts = (
            [word.strip(".,;:!?()[]\"'") for word in caption.lower().split()] if words else tags_of(caption)
        )
        counts.update({part for part in parts if part and not (words and part in EMPTY_WORDS)})
    rows = [
        TagRow(tag=tag, pictures=count, share=round(count / len(captions), 4))
        for tag, count in sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:MOST_TAGS]
    ]
    return rows, sum(count == 1 for count in counts.values()), words
