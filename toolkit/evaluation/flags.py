"""What is wrong with a caption, by what was measured and by what can be read. Torch-free.

A flag is a finding with evidence; a hint is only worth a look. "hurts" and "another fits better" control the
false discovery rate over the data set; "does nothing" rests on the image's own 95 % interval; what can be
read (empty, too long, repeated) is a fact.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# Share of the data set's typical gain below which a caption is said to do nothing.
NOTHING_SHARE = 0.1
LONG_CAPTION_WORDS = 200
SHORT_CAPTION_WORDS = 2
REPEATED_SHARE = 0.3
_SUSPICIOUS = ("###", "<unk>", "null", "nan", "none", "undefined", "lorem ipsum", "as an ai", "i cannot")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an image's caption is flagged: a stable code, and what a reader should know."""

    code: str
    message: str


# code -> what it means, in the order in which reasons are told.
FLAGS: dict[str, str] = {
    "caption_hurts": "the picture is predicted better with no caption than with its own",
    "other_fits_better": "the caption of another image fits this picture better",
    "caption_does_nothing": "the picture is predicted as well without its caption",
    "caption_empty": "there is no caption",
    "caption_too_long": "the text encoder cannot read all of it",
    "trigger_missing": "the trigger word is not in it",
    "duplicate_caption": "other images have the very same caption",
    "twin_images": "a nearly equal picture has a quite different caption",
}
HINTS: dict[str, str] = {
    "short_caption": f"at most {SHORT_CAPTION_WORDS} words",
    "long_caption": f"more than {LONG_CAPTION_WORDS} words",
    "repeated_words": "the same word several times in a row",
    "suspicious_text": "text that a captioning program leaves when it fails",
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """What flags need of one image's measurement. log_gain: of the own caption over none, with its interval.

    q_hurts, q_other: false discovery rates of "hurts" and of "another fits better", None where not measured.
    """

    log_gain: float
    low: float
    high: float
    q_hurts: float | None = None
    q_other: float | None = None
    best_other: str | None = None


def measured_reasons(found: Measurement, *, typical_gain: float, rate: float) -> list[Reason]:
    """The reasons that a measurement gives. typical_gain: the data set's median log gain."""
    reasons = []
    if found.q_hurts is not None and found.q_hurts <= rate and found.log_gain < 0:
        text = f"without it the loss is {_percent(found.log_gain)} lower (q = {found.q_hurts:.2g})"
        reasons.append(Reason("caption_hurts", text))
    elif typical_gain > 0 and found.high < NOTHING_SHARE * typical_gain:
        share = f"at most {max(0.0, found.high) / typical_gain:.0%} of what captions here usually gain"
        reasons.append(Reason("caption_does_nothing", share))
    if found.q_other is not None and found.q_other <= rate and found.best_other:
        text = f"fits better: {found.best_other!r} (q = {found.q_other:.2g})"
        reasons.append(Reason("other_fits_better", text))
    return reasons


def _percent(log_gain: float) -> str:
    """A log ratio as the share by which one loss is below the other."""
    return f"{1 - math.exp(-abs(log_gain)):.1%}"


def _as_word(text: str, caption: str) -> bool:
    """Whether a text stands in a caption as a word of its own: "nan" is not in "banana"."""
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", caption, re.IGNORECASE) is not None


def text_reasons(
    caption: str,
    *,
    trigger: str | None = None,
    num_tokens: int | None = None,
    max_tokens: int | None = None,
    copies: int = 1,
) -> list[Reason]:
    """The reasons that can be read off a caption. copies: images that share it without meaning to."""
    reasons = []
    if not caption.strip():
        return [Reason("caption_empty", FLAGS["caption_empty"])]
    if num_tokens is not None and max_tokens is not None and num_tokens > max_tokens:
        lost = num_tokens - max_tokens
        reasons.append(Reason("caption_too_long", f"{num_tokens} tokens, {lost} more than can be read"))
    if trigger and not _as_word(trigger, caption):
        reasons.append(Reason("trigger_missing", f"'{trigger}' is not in it"))
    if copies > 1:
        reasons.append(Reason("duplicate_caption", f"{copies} images have this caption"))
    return reasons


def hints(caption: str) -> list[Reason]:
    """What may be worth a look; whole words only."""
    words = caption.split()
    found = []
    if 0 < len(words) <= SHORT_CAPTION_WORDS:
        found.append(Reason("short_caption", f"{len(words)} word{'s' if len(words) > 1 else ''}"))
    if len(words) > LONG_CAPTION_WORDS:
        found.append(Reason("long_caption", f"{len(words)} words"))
    repeats = sum(a.lower() == b.lower() for a, b in zip(words, words[1:], strict=False))
    if len(words) > 1 and repeats / len(words) >= REPEATED_SHARE:
        found.append(Reason("repeated_words", f"{repeats} of {len(words)} words repeat the one before"))
    for text in _SUSPICIOUS:
        if text in caption.lower() if not text.replace(" ", "").isalpha() else _as_word(text, caption):
            found.append(Reason("suspicious_text", f"contains {text!r}"))
    return found


def caption_copies(captions: Iterable[str]) -> Counter[str]:
    """How many images have each caption; upper and lower case count alike."""
    return Counter(caption.casefold() for caption in captions if caption.strip())


def unmeant_copies(captions: Iterable[str]) -> tuple[Counter[str], int]:
    """(how many images have each caption without meaning to, how many share theirs on purpose).

    Sharing is meant where at least half of the images with a caption do it, and three; then no copy is
    unmeant.
    """
    copies = caption_copies(captions)
    shared = sum(count for count in copies.values() if count > 1)
    if shared >= 3 and 2 * shared >= sum(copies.values()):
        return Counter(), shared
    return copies, 0


def words_of(caption: str) -> frozenset[str]:
    """The words of a caption, in lower case."""
    return frozenset(re.findall(r"\w+", caption.lower()))


def overlap(first: frozenset[str], second: frozenset[str]) -> float:
    """Shared words of two captions as a share of all their words; 1 for two empty ones."""
    return len(first & second) / len(first | second) if first or second else 1.0
