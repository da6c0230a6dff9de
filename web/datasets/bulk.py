"""Changes to many captions at once: shown before they are made, and taken back afterwards. Torch-free.

What was changed is kept in a file, so that it can be undone after the server was restarted too.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.runs import atomic
from web.datasets import captions
from web.datasets.captions import MOST_BYTES
from web.datasets.library import CHANGING, Library
from web.problems import ApiError, conflict, invalid, not_found

_ID = re.compile(r"\d{13}-[0-9a-f]{8}", re.ASCII)
KEPT = 50  # changes of a dataset that can be taken back


@dataclass(frozen=True, slots=True)
class Replacement:
    """What is done to each caption, in this order: find and replace, then text before and behind."""

    find: str = ""
    replace: str = ""
    prefix: str = ""
    suffix: str = ""
    match_case: bool = False
    whole_words: bool = False

    def check(self) -> Replacement:
        """Itself. Raises 422 if it would do nothing, or nothing sensible."""
        if not self.find and self.replace:
            raise invalid("give a text to find", "/find")
        try:
            "".join((self.find, self.replace, self.prefix, self.suffix)).encode()
        except UnicodeEncodeError:
            raise invalid("holds signs that are no text", "/find") from None
        if not (self.find or self.prefix or self.suffix):
            raise invalid("give a text to find, or one to put before or behind", "/find")
        return self

    def of(self, text: str) -> str:
        """A caption after the change."""
        changed = text
        if self.find:
            pattern = re.escape(self.find)
            if self.whole_words:
                pattern = rf"(?<!\w){pattern}(?!\w)"
            flags = 0 if self.match_case else re.IGNORECASE
            changed = re.sub(pattern, lambda _match: self.replace, changed, flags=flags)
        return captions.clean(f"{self.prefix}{changed}{self.suffix}")


@dataclass(frozen=True, slots=True)
class Change:
    """A caption before and after. etag: of its file before."""

    rel: str
    before: str
    after: str
    etag: str


@dataclass(frozen=True, slots=True)
class Done:
    """A change that was made. undone: it was taken back."""

    id: str
    at: float
    what: str
    changes: tuple[Change, ...]
    undone: bool


def preview(
    library: Library, name: str, wanted: Replacement, only: Iterable[str] | None = None
) -> list[Change]:
    """The captions that would change, by name. only: paths of pictures. Raises 404, 422."""
    wanted.check()
    folder, listing = library.folder(name), library.listing(name)
    chosen = None if only is None else set(only)
    found: dict[str, Change] = {}
    for entry in listing.pictures:
        if chosen is not None and entry.rel not in chosen:
            continue
        caption = captions.read_listed(folder, listing, entry.rel)
        after = wanted.of(caption.text)
        file = caption.file or captions.stem_of(entry.rel)
        if caption.problem is None and after != caption.text and file not in found:
            if len(after.encode()) >= MOST_BYTES:
                raise invalid(
                    f"the caption of {entry.rel} would be longer than {MOST_BYTES // 1024} KiB", "/replace"
                )
            found[file] = Change(entry.rel, caption.text, after, caption.etag)
    return list(found.values())


def digest(changes: Sequence[Change]) -> str:
    """A mark of exactly these changes, so that what is made is what was shown."""
    body = json.dumps([[change.rel, change.etag, change.after] for change in changes])
    return hashlib.sha256(body.encode()).hexdigest()[:20]


def apply(
    library: Library,
    name: str,
    wanted: Replacement,
    only: Iterable[str] | None = None,
    expected: str | None = None,
) -> Done:
    """Make the changes. Raises 404, 409 (nothing would change), 412 (not what was shown), 422."""
    with CHANGING:
        changes = preview(library, name, wanted, only)
        if expected is not None and expected != digest(changes):
            raise ApiError(412, "web.stale", "captions have changed since the preview; look at it again")
        if not changes:
            raise conflict("no caption would change")
        done = Done(f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(4)}", time.time(), _said(wanted),
                    tuple(changes), False)  # fmt: skip
        # Written first: whatever happens then, what was there is not lost.
        _write(_folder(library, name), done)
        folder = library.folder(name)
        for change in changes:
            captions.put(folder, change.rel, change.after, captions.read(folder, change.rel))
    return done


def undo(library: Library, name: str, identifier: str) -> tuple[int, list[str]]:
    """Take a change back: (how many captions, those that were edited since and stay). Raises 404, 409."""
    with CHANGING:
        folder, done = library.folder(name), get(library, name, identifier)
        if done.undone:
            raise conflict("this change was taken back already")
        count, kept = 0, []
        for change in done.changes:
            now = captions.read(folder, change.rel)
            if now.text != change.after or not (folder / change.rel).is_file():
                kept.append(change.rel)
                continue
            captions.put(folder, change.rel, change.before, now)
            count += 1
        _write(_folder(library, name), Done(done.id, done.at, done.what, done.changes, True))
    return count, kept


def history(library: Library, name: str) -> list[Done]:
    """The changes that can be taken back, the newest first. Raises 404."""
    library.folder(name)
    found = (_read(path) for path in sorted(_folder(library, name).glob("*.json"), reverse=True))
    return [done for done in found if done is not None and not done.undone]


def get(library: Library, name: str, identifier: str) -> Done:
    """A change. Raises 404."""
    path = _folder(library, name) / f"{identifier}.json"
    found = _read(path) if _ID.fullmatch(identifier) else None
    if found is None:
        raise not_found("this change")
    return found


def _folder(library: Library, name: str) -> Path:
    return library.data_root / "caption_changes" / name


def _write(folder: Path, done: Done) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    listed = [[change.rel, change.before, change.after, change.etag] for change in done.changes]
    body = {"at": done.at, "what": done.what, "changes": listed, "undone": done.undone}
    atomic.write_json(folder / f"{done.id}.json", body, indent=None)
    for old in sorted(folder.glob("*.json"))[:-KEPT]:
        old.unlink(missing_ok=True)


def _read(path: Path) -> Done | None:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        changes = tuple(Change(*map(str, each)) for each in body["changes"])
        return Done(path.stem, float(body["at"]), str(body["what"]), changes, bool(body["undone"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _said(wanted: Replacement) -> str:
    parts = [f"“{wanted.find}” → “{wanted.replace}”"] if wanted.find else []
    parts += [f"“{wanted.prefix}” before"] if wanted.prefix else []
    parts += [f"“{wanted.suffix}” behind"] if wanted.suffix else []
    return ", ".join(parts)
