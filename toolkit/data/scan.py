"""Find and verify the pictures of a dataset folder and make its items. Torch-free.

Nothing is swallowed: every file that cannot be used is a Problem, everything worth knowing is a note.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.data.buckets import choose_bucket, enlargement, place
from toolkit.data.captions import insert_trigger, normalize_extension, read_caption, tidy
from toolkit.data.image_files import IMAGE_SUFFIXES, WHITE, ImageFacts, inspect_image
from toolkit.data.image_memo import ImageMemo
from toolkit.data.items import Bucket, MediaItem
from toolkit.errors import DatasetError, Problem

SKIPPED_FOLDERS = frozenset(("_controls", "_latent_cache", "_t_e_cache", "_clip_vision_cache"))
UNREAD_SUFFIXES = frozenset(
    (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jfif", ".jxl")
    + (".mp4", ".avi", ".mov", ".webm", ".mkv", ".wmv", ".m4v", ".flv")
)
CAPTION_SUFFIXES = (".txt", ".caption", ".json")
NOTICEABLE_ENLARGEMENT = 1.05  # below this nobody sees the blur

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The items of a dataset in a stable order, what is wrong with it, and what the user may want to know."""

    items: list[MediaItem]
    problems: list[Problem]
    notes: list[str]
    num_pictures: int = 0

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
    caption_ext: str
    default_caption: str | None
    trigger_word: str | None
    settings: dict[str, object]  # fields that every MediaItem of the dataset shares
    is_reg: bool


@dataclass(slots=True)
class _Findings:
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def first_names(names: Iterable[str], limit: int = 5) -> str:
    """The first few of some names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def walk_files(folder: Path) -> Iterator[str]:
    """Relative paths ('/' between parts) of all visible files, sorted; links are followed, loops are not."""
    seen: set[str] = set()
    found: list[str] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in SKIPPED_FOLDERS)
        found += [Path(root, f).relative_to(folder).as_posix() for f in files if not f.startswith(".")]
    yield from sorted(found)


def _find_pictures(folder: Path, findings: _Findings) -> list[str]:
    """Relative paths of the pictures. Appends the problem if there are none."""
    if not folder.is_dir():
        reason = "is a file, not a folder of pictures" if folder.exists() else "no such folder"
        findings.problems.append(Problem("data.no_folder", reason, file=str(folder)))
        return []
    files = list(walk_files(folder))
    pictures = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    unread = [name for name in files if Path(name).suffix.lower() in UNREAD_SUFFIXES]
    if unread:
        findings.notes.append(
            f"{folder}: {len(unread)} files of kinds that are not read: {first_names(unread)}; "
            "convert pictures to png, jpg or webp to use them"
        )
    if not pictures:
        looked_for = ", ".join(f"*{suffix}" for suffix in IMAGE_SUFFIXES)
        message = f"no images found in {folder}; looked for {looked_for} in it and its folders"
        findings.problems.append(Problem("data.no_images", message))
    return pictures


def _inspect_all(
    folder: Path, names: list[str], cache_folder: Path | None, findings: _Findings, progress: Progress | None
) -> dict[str, ImageFacts]:
    """Facts of every usable picture; the others become problems."""
    memo = ImageMemo(folder, cache_folder)

    def inspect(name: str) -> ImageFacts | Problem:
        path = folder / name
        try:
            stat = path.stat()
            facts = memo.get(name, stat)
            if facts is None:
                facts = inspect_image(path)
                memo.put(name, stat, facts)
        except DatasetError as error:
            return error.problems[0]
        except OSError as error:
            return Problem("data.unreadable_image", f"cannot be read: {error.strerror}", file=str(path))
        return facts

    facts: dict[str, ImageFacts] = {}
    # Pillow decodes outside the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done, (name, found) in enumerate(zip(names, pool.map(inspect, names), strict=True), start=1):
            if isinstance(found, Problem):
                findings.problems.append(found)
            else:
                facts[name] = found
            if progress is not None:
                progress(done, len(names))
    try:
        memo.save()
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); pictures are verified in full each time"
        findings.notes.append(f"{memo.path}: {reason}")
    findings.notes.extend(f"{folder / name}: {remark}" for name, f in facts.items() for remark in f.remarks)
    return facts


def _hint_at_captions(folder: Path, names: list[str], wanted: str) -> str:
    """If all captions are missing: where they may be."""
    for suffix in CAPTION_SUFFIXES:
        if suffix != wanted and any((folder / name).with_suffix(suffix).exists() for name in names):
            return f"; there are {suffix} files: set caption_ext: {suffix}"
    return ""


def _captions(folder: Path, names: Iterable[str], rules: _Rules, findings: _Findings) -> dict[str, str]:
    """The caption of every picture, trigger word in place; unreadable ones become problems."""
    captions: dict[str, str] = {}
    missing: list[str] = []
    for name in names:
        try:
            text = read_caption((folder / name).with_suffix(rules.caption_ext))
        except DatasetError as error:
            findings.problems.extend(error.problems)
            continue
        if not text and rules.default_caption is None:
            missing.append(name)
        caption = text or tidy(rules.default_caption or "")
        captions[name] = insert_trigger(caption, rules.trigger_word, prepend=not rules.is_reg)
    if missing:
        hint = _hint_at_captions(folder, missing, rules.caption_ext) if len(missing) == len(captions) else ""
        findings.notes.append(
            f"{folder}: {len(missing)} of {len(captions)} pictures have no caption ({rules.caption_ext}) "
            f"and there is no default_caption: {first_names(missing)}{hint}"
        )
    return captions


def item_id(
    sha256: str, dataset: str, resolution: int, flip: tuple[bool, bool] = (False, False), repeat: int = 0
) -> str:
    """The key of all random draws for an item: it survives renaming and moving the file."""
    parts = (sha256, dataset, resolution, *map(int, flip), repeat)
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def _make_items(
    folder: Path, facts: dict[str, ImageFacts], captions: dict[str, str], rules: _Rules
) -> Iterator[MediaItem]:
    num_seen: Counter[str] = Counter()  # copies of one picture count as further repeats of it
    for name, caption in captions.items():
        fact = facts[name]
        size = (fact.width, fact.height)
        first_repeat = num_seen[fact.sha256] * rules.num_repeats
        num_seen[fact.sha256] += 1
        for resolution in rules.resolutions:
            bucket = choose_bucket(*size, resolution, rules.size_multiple, square=not rules.use_buckets)
            for flip in rules.flips:
                placement = place(*size, bucket, flip_x=flip[0], flip_y=flip[1])
                for repeat in range(first_repeat, first_repeat + rules.num_repeats):
                    yield MediaItem(
                        id=item_id(fact.sha256, rules.name, resolution, flip, repeat),
                        path=folder / name,
                        sha256=fact.sha256,
                        caption=caption,
                        dataset=rules.name,
                        bucket=bucket,
                        placement=placement,
                        source_size=size,
                        is_reg=rules.is_reg,
                        **rules.settings,  # type: ignore[arg-type]
                    )


def _note_sizes_and_copies(
    folder: Path, facts: dict[str, ImageFacts], items: list[MediaItem], notes: list[str]
) -> None:
    by_path = {folder / name: fact for name, fact in facts.items()}
    factors: dict[str, float] = {}
    for item in items:
        fact = by_path[item.path]
        factor = enlargement(fact.width, fact.height, item.bucket)
        if factor > NOTICEABLE_ENLARGEMENT:
            name = item.path.relative_to(folder).as_posix()
            factors[name] = max(factor, factors.get(name, 0.0))
    if factors:
        worst = max(factors.values())
        notes.append(
            f"{folder}: {len(factors)} of {len(facts)} pictures are smaller than their bucket and enlarged, "
            f"up to {worst:.2f} times: {first_names(factors)}"
        )
    same: dict[str, list[str]] = {}
    for name, fact in facts.items():
        same.setdefault(fact.sha256, []).append(name)
    copies = [" = ".join(names) for names in same.values() if len(names) > 1]
    if copies:
        notes.append(f"{folder}: {len(copies)} pictures are there more than once: {first_names(copies)}")


def scan_dataset(  # noqa: PLR0913 - one keyword for each key of a dataset's section
    folder: Path,
    *,
    resolutions: Sequence[int],
    size_multiple: int,
    name: str | None = None,
    caption_ext: str = ".txt",
    default_caption: str | None = None,
    trigger_word: str | None = None,
    caption_dropout_rate: float = 0.0,
    use_buckets: bool = True,
    num_repeats: int = 1,
    flip_x: bool = False,
    flip_y: bool = False,
    is_reg: bool = False,
    loss_multiplier: float = 1.0,
    network_weight: float = 1.0,
    alpha_color: tuple[int, int, int] = WHITE,
    memo: Path | None = None,
    progress: Progress | None = None,
) -> ScanResult:
    """The items of a folder, walked recursively: one per picture, resolution, flip and repeat.

    name: stands in the items' ids; default the folder's name, and must differ between the datasets of a run.
    memo: cache folder for what was verified, default the user's. progress: called with (done, total).
    Problems are returned, not raised: see ScanResult.require_valid.
    """
    folder = Path(folder)
    settings = {
        "caption_dropout_rate": caption_dropout_rate,
        "loss_multiplier": loss_multiplier,
        "network_weight": network_weight,
        "alpha_color": alpha_color,
    }
    rules = _Rules(
        name=name if name is not None else folder.resolve().name,
        resolutions=tuple(dict.fromkeys(resolutions)),
        size_multiple=size_multiple,
        use_buckets=use_buckets,
        num_repeats=num_repeats,
        flips=tuple((x, y) for y in (False, True)[: 1 + flip_y] for x in (False, True)[: 1 + flip_x]),
        caption_ext=normalize_extension(caption_ext),
        default_caption=default_caption,
        trigger_word=trigger_word,
        settings=settings,
        is_reg=is_reg,
    )
    findings = _Findings()
    if len(rules.resolutions) < len(resolutions):
        findings.notes.append(f"{folder}: a resolution given twice counts once: {list(resolutions)}")
    names = _find_pictures(folder, findings)
    facts = _inspect_all(folder, names, memo, findings, progress) if names else {}
    captions = _captions(folder, facts, rules, findings)
    items = list(_make_items(folder, facts, captions, rules))
    _note_sizes_and_copies(folder, facts, items, findings.notes)
    return ScanResult(items, findings.problems, findings.notes, num_pictures=len(captions))
