"""Walk a folder and verify its pictures, remembering what was found. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toolkit.data.findings import Findings
from toolkit.data.image_files import IMAGE_SUFFIXES, ImageFacts, inspect_image
from toolkit.data.image_memo import ImageMemo
from toolkit.data.prefetch import map_in_pieces
from toolkit.errors import DatasetError, Problem
from toolkit.text import is_unicode, printable

SKIPPED_FOLDERS = frozenset(("_controls", "_latent_cache", "_t_e_cache", "_clip_vision_cache"))

Progress = Callable[[int, int], None]


def walk_files(folder: Path, without: Sequence[Path] = ()) -> Iterator[str]:
    """Relative paths ('/' between parts) of all visible files, sorted; links are followed, loops are not.

    without: folders that are left out wherever they lie.
    """
    seen = {os.path.realpath(each) for each in without}
    found: list[str] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in SKIPPED_FOLDERS)
        inside = Path(root).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        found += [f"{prefix}{f}" for f in files if not f.startswith(".")]
    yield from sorted(found)


def is_written(folder: Path, name: str, findings: Findings) -> bool:
    """Whether a path can be put into texts, as reports and caches do.

    Appends a problem for one of a picture, or of the folder itself (name: "").
    """
    path = str(folder / name)
    written = is_unicode(path)
    if not written and (not name or name.lower().endswith(IMAGE_SUFFIXES)):
        reason, file = "its name is not UTF-8", printable(path)
        findings.problems.append(Problem("data.file_name", reason, file=file, remedy="rename it"))
    return written


def inspect_all(
    folder: Path,
    names: Sequence[str],
    memo: ImageMemo,
    findings: Findings,
    *,
    inspect: Callable[[Path], ImageFacts] = inspect_image,
    remember: bool = True,
    progress: Progress | None = None,
) -> dict[str, ImageFacts]:
    """Facts of every usable picture, whose remarks are told; the others become problems.

    remember: False leaves the memo as it is, for an `inspect` that does not verify.
    """

    def examine(name: str) -> ImageFacts | Problem:
        path = folder / name
        try:
            return _recall(name, path, memo, inspect, remember)
        except DatasetError as error:
            return error.problems[0]
        except OSError as error:
            return Problem("data.unreadable_image", f"cannot be read: {error.strerror}", file=str(path))

    facts: dict[str, ImageFacts] = {}
    # Pillow decodes outside the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done, (name, found) in enumerate(zip(names, map_in_pieces(pool, examine, names), strict=True), 1):
            if isinstance(found, Problem):
                findings.problems.append(found)
            else:
                facts[name] = found
            if progress is not None:
                progress(done, len(names))
    try:
        if remember:
            memo.save()
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); pictures are verified in full each time"
        findings.notes.append(f"{memo.path}: {reason}")
    odd = {name: "; ".join(fact.remarks) for name, fact in facts.items() if fact.remarks}
    shown = [f"{name}: {remark}" for name, remark in odd.items()]
    told = f"{len(odd)} pictures are not shown whole or as they are meant"
    findings.odd(folder, told, odd, shown=shown, code="data.odd_picture")
    return facts


def _recall(
    name: str, path: Path, memo: ImageMemo, inspect: Callable[[Path], ImageFacts], remember: bool
) -> ImageFacts:
    """Facts of one picture, remembered or found now. Raises DatasetError or OSError."""
    stat = path.stat()
    facts = memo.get(name, stat)
    if facts is None:
        facts = inspect(path)
        if remember:
            memo.put(name, stat, facts)
    return facts
