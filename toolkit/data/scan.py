"""Find and verify the pictures of a dataset folder and make its items. Torch-free.

Nothing is swallowed: every file that cannot be used is a Problem, everything worth knowing is a note.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.data.buckets import choose_bucket, enlargement, place
from toolkit.data.caption_sources import CaptionSource, note_orphans, read_captions
from toolkit.data.captions import Caption, insert_trigger, normalize_extension
from toolkit.data.companions import NO_COMPANIONS, Companions, CompanionSettings, find_companions
from toolkit.data.crops import AT_THE_MIDDLE, CropSettings
from toolkit.data.dataset_list import is_list, read_list
from toolkit.data.findings import Findings, first_names
from toolkit.data.image_files import IMAGE_SUFFIXES, WHITE, ImageFacts, inspect_header, inspect_image
from toolkit.data.image_memo import ImageMemo
from toolkit.data.inspection import Progress, inspect_all, is_written, walk_files
from toolkit.data.items import PLAIN, Bucket, CaptionRules, MediaItem
from toolkit.errors import DatasetError, Problem
from toolkit.paths import is_folder

UNREAD_SUFFIXES = (
    (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jfif", ".jpe", ".jxl", ".jp2", ".j2k")
    + (".apng", ".tga", ".psd", ".svg", ".ico", ".ppm", ".pgm", ".pnm", ".exr", ".hdr")
    + (".raw", ".dng", ".cr2", ".nef", ".arw")
    + (".mp4", ".avi", ".mov", ".webm", ".mkv", ".wmv", ".m4v", ".flv")
)
NOTICEABLE_ENLARGEMENT = 1.05  # below this nobody sees the blur


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The items of a dataset in a stable order, what is wrong with it, and what the user may want to know.

    num_undecoded: pictures of which only the header was read.
    """

    items: list[MediaItem]
    problems: list[Problem]
    notes: list[str]
    num_pictures: int = 0
    num_undecoded: int = 0

    @property
    def buckets(self) -> dict[Bucket, int]:
        """How many items each bucket has, fullest first."""
        return dict(sorted(Counter(i.bucket for i in self.items).items(), key=lambda x: (-x[1], x[0])))

    @property
    def summary(self) -> str:
        """One line about pictures, items and buckets."""
        sizes = ", ".join(f"{b.width}x{b.height}: {count}" for b, count in self.buckets.items())
        counts = f"{self.num_pictures} pictures, {len(self.items)} items in {len(self.buckets)} buckets"
        return f"{counts} ({sizes})"

    def require_valid(self) -> ScanResult:
        """Itself. Raises DatasetError with all problems if there are any."""
        if self.problems:
            raise DatasetError(self.problems)
        return self


@dataclass(frozen=True, slots=True)
class _Rules:
    """How the items of one dataset are made of its pictures."""

    name: str
    resolutions: tuple[int, ...]
    size_multiple: int
    use_buckets: bool
    num_repeats: int
    flips: tuple[tuple[bool, bool], ...]
    caption_rules: CaptionRules
    settings: dict[str, object]  # fields that every MediaItem of the dataset shares
    is_reg: bool
    crops: CropSettings


@dataclass(frozen=True, slots=True)
class _Found:
    """The pictures of a dataset by name, relative to a folder (or absolute), and where captions come from."""

    folder: Path
    names: list[str]
    captions: CaptionSource
    others: tuple[str, ...] = ()  # the other files of the folder


def _find_pictures(
    path: Path, captions: CaptionSource, findings: Findings, without: Sequence[Path]
) -> _Found:
    """The pictures of a folder, or of a file that lists them. Appends a problem if there are none.

    without: folders of other pictures, wherever they lie.
    """
    if not is_written(path, "", findings):
        return _Found(path, [], captions)
    if is_list(path):
        return _listed_pictures(path, captions, findings)
    if not is_folder(path):
        reason = "is a file, not a folder of pictures" if os.path.exists(path) else "no such folder"  # noqa: PTH110
        findings.problems.append(Problem("data.no_folder", reason, file=str(path)))
        return _Found(path, [], captions)
    files = [name for name in walk_files(path, without) if is_written(path, name, findings)]
    pictures = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    _note_unread(path, files, findings)
    if not pictures and not findings.problems:
        looked_for = ", ".join(f"*{suffix}" for suffix in IMAGE_SUFFIXES)
        message = f"no images found in {path}; looked for {looked_for} in it and its folders"
        findings.problems.append(Problem("data.no_images", message))
        return _Found(path, [], captions)
    return _Found(path, pictures, captions, tuple(set(files) - set(pictures)))


def _listed_pictures(path: Path, captions: CaptionSource, findings: Findings) -> _Found:
    listed: Mapping[str, Caption] = {}
    try:
        listed = read_list(path)
    except DatasetError as error:
        findings.problems.extend(error.problems)
    unread = _note_unread(path.parent, list(listed), findings)
    names = [name for name in listed if name not in unread]
    return _Found(path.parent, names, replace(captions, listed=listed))


def _note_unread(folder: Path, files: list[str], findings: Findings) -> list[str]:
    """The files among these that may be pictures or videos and are not read; they are told."""
    unread = [name for name in files if name.lower().endswith(tuple(UNREAD_SUFFIXES))]
    remedy = "; convert pictures to png, jpg or webp to use them"
    told = f"{len(unread)} files of kinds that are not read"
    findings.odd(folder, told, dict.fromkeys(unread, "is not read"), hint=remedy, code="data.unread_file")
    return unread


def item_id(
    sha256: str, dataset: str, resolution: int, flip: tuple[bool, bool] = (False, False), repeat: int = 0
) -> str:
    """The key of all random draws for an item: it survives renaming and moving the file."""
    return next(_item_ids(sha256, dataset, resolution, flip, range(repeat, repeat + 1)))


def _item_ids(
    sha256: str, dataset: str, resolution: int, flip: tuple[bool, bool], repeats: Iterable[int]
) -> Iterator[str]:
    parts = (sha256, dataset, resolution, *map(int, flip))
    shared = hashlib.sha256("".join(f"{part}\x1f" for part in parts).encode())
    for repeat in repeats:
        own = shared.copy()
        own.update(b"%d" % repeat)
        yield own.hexdigest()


def _make_items(
    folder: Path,
    facts: dict[str, ImageFacts],
    captions: dict[str, str],
    companions: dict[str, Companions],
    rules: _Rules,
) -> Iterator[MediaItem]:
    num_seen: Counter[str] = Counter()  # copies of one picture count as further repeats of it
    trigger, prepend = rules.caption_rules.trigger_word, rules.caption_rules.prepend_trigger
    for name, source in captions.items():
        caption = insert_trigger(source, trigger, prepend=prepend)
        fact, beside, path = facts[name], companions[name], folder / name
        size = (fact.width, fact.height)
        key = fact.sha256 or name
        first_repeat = num_seen[key] * rules.num_repeats
        repeats = range(first_repeat, first_repeat + rules.num_repeats)
        num_seen[key] += 1
        for resolution in rules.resolutions:
            counted, square = rules.crops.counted(*size), not rules.use_buckets
            bucket = choose_bucket(*counted, resolution, rules.size_multiple, square=square)
            crops = rules.crops.choice(size, bucket, beside.poi)
            for flip in rules.flips:
                placement = place(*size, bucket, flip_x=flip[0], flip_y=flip[1])
                for item in _item_ids(key, rules.name, resolution, flip, repeats):
                    yield MediaItem(  # repeats share all of their parts: there may be very many
                        id=item,
                        path=path,
                        sha256=fact.sha256,
                        caption=caption,
                        dataset=rules.name,
                        bucket=bucket,
                        placement=placement,
                        source_size=size,
                        caption_source=source,
                        caption_rules=rules.caption_rules,
                        is_reg=rules.is_reg,
                        crops=crops,
                        mask=beside.mask,
                        control_paths=beside.controls,
                        **rules.settings,  # type: ignore[arg-type]
                    )


def _note_sizes_and_copies(
    folder: Path, facts: dict[str, ImageFacts], items: list[MediaItem], findings: Findings
) -> None:
    names = {folder / name: name for name in facts}
    factors: dict[str, float] = {}
    for item in {id(item.placement): item for item in items}.values():  # one of all repeats
        name = names[item.path]
        factor = enlargement(facts[name].width, facts[name].height, item.bucket)
        if factor > NOTICEABLE_ENLARGEMENT:
            factors[name] = max(factor, factors.get(name, 0.0))
    worst = max(factors.values(), default=0.0)
    findings.odd(
        folder,
        f"{len(factors)} of {len(facts)} pictures are smaller than their bucket and enlarged, "
        f"up to {worst:.2f} times",
        {name: f"is smaller than its bucket and enlarged {f:.2f} times" for name, f in factors.items()},
        code="data.enlarged",
    )
    same: dict[str, list[str]] = {}
    for name, fact in facts.items():
        same.setdefault(fact.sha256 or name, []).append(name)
    copies = {names[0]: names[1:] for names in same.values() if len(names) > 1}
    findings.odd(
        folder,
        f"{len(copies)} pictures are there more than once",
        {name: f"is the same picture as {first_names(others)}" for name, others in copies.items()},
        shown=[" = ".join([name, *others]) for name, others in copies.items()],
        code="data.duplicate",
    )


def scan_dataset(  # noqa: PLR0913 - one keyword for each key of a dataset's section
    folder: Path,
    *,
    resolutions: Sequence[int],
    size_multiple: int,
    name: str | None = None,
    caption_ext: str = ".txt",
    default_caption: str | None = None,
    use_short_captions: bool = False,
    replacements: Sequence[tuple[str, str]] = (),
    trigger_word: str | None = None,
    captioned: bool = True,
    caption_rules: CaptionRules = PLAIN,
    use_buckets: bool = True,
    num_repeats: int = 1,
    flip_x: bool = False,
    flip_y: bool = False,
    is_reg: bool = False,
    loss_multiplier: float = 1.0,
    network_weight: float = 1.0,
    alpha_color: tuple[int, int, int] = WHITE,
    crops: CropSettings = AT_THE_MIDDLE,
    companions: CompanionSettings = NO_COMPANIONS,
    strict: bool = False,
    memo: Path | None = None,
    rescan: bool = False,
    progress: Progress | None = None,
    decode: bool = True,
) -> ScanResult:
    """The items of a folder, walked recursively, or of a list: one per picture, resolution, flip and repeat.

    name: stands in the items' ids; default the folder's name, and must differ between the datasets of a run.
    captioned: whether captions are read. caption_rules: how texts are drawn, with the trigger word from here.
    strict: what else would be a note on a file is a problem. memo: cache folder for what was verified,
    default the user's; rescan: verify every picture anew. progress: called with (done, total).
    decode: False looks at headers only, where nothing is remembered: for a quick check, not for training.
    Problems are returned, not raised: see ScanResult.require_valid.
    """
    folder = Path(folder)
    settings = {
        "loss_multiplier": loss_multiplier,
        "network_weight": network_weight,
        "alpha_color": alpha_color,
        "control_color": companions.control_color,
        "full_size_controls": companions.aligned_controls,
    }
    rules = _Rules(
        name=name if name is not None else Path(os.path.realpath(folder)).name,
        resolutions=tuple(dict.fromkeys(resolutions)),
        size_multiple=size_multiple,
        use_buckets=use_buckets,
        num_repeats=num_repeats,
        flips=tuple((x, y) for y in (False, True)[: 1 + flip_y] for x in (False, True)[: 1 + flip_x]),
        caption_rules=replace(caption_rules, trigger_word=trigger_word, prepend_trigger=not is_reg),
        settings=settings,
        is_reg=is_reg,
        crops=crops,
    )
    findings = Findings(strict)
    if len(rules.resolutions) < len(resolutions):
        findings.notes.append(f"{folder}: a resolution given twice counts once: {list(resolutions)}")
    source = CaptionSource(
        normalize_extension(caption_ext), default_caption, use_short_captions, tuple(replacements)
    )
    found = _find_pictures(folder, source, findings, companions.folders)
    verified = ImageMemo(folder, memo, forget=rescan)
    facts = {}
    if found.names:
        inspect = inspect_image if decode else inspect_header
        facts = inspect_all(
            found.folder, found.names, verified, findings, inspect=inspect, remember=decode, progress=progress
        )
    captions = dict.fromkeys(facts, "")
    if captioned:
        note_orphans(found.folder, found.others, found.names, found.captions, findings)
        captions = read_captions(found.folder, facts, found.captions, findings)
    beside = find_companions(found.folder, facts, companions, memo, findings, rescan=rescan)
    items = list(_make_items(found.folder, facts, captions, beside, rules))
    _note_sizes_and_copies(found.folder, facts, items, findings)
    num_undecoded = sum(not fact.sha256 for fact in facts.values())
    return ScanResult(items, findings.problems, findings.notes, len(captions), num_undecoded)
