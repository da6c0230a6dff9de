"""The text of each showing of a picture: its caption, dropped, shuffled or varied by its rules. Torch-free.

Every draw is keyed by what it is for: a showing has the same text however often and in whatever order it is
asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from toolkit.data.captions import insert_trigger
from toolkit.data.items import CaptionRules, MediaItem
from toolkit.seeding import keyed_random


def split_tokens(caption: str) -> list[str]:
    """What stands between the commas of a caption, without blanks."""
    return [token for part in caption.split(",") if (token := part.strip())]


def vary(source: str, rules: CaptionRules, rng: random.Random) -> str:
    """One text for a caption without its trigger word.

    The first keep_tokens tokens stay in front and in order; of the others each may be dropped, random
    triggers join them, and they are shuffled. Then the trigger word is placed, so that no draw removes it.
    """
    tokens = split_tokens(source)
    kept, others = tokens[: rules.keep_tokens], tokens[rules.keep_tokens :]
    others = [token for token in others if rng.random() >= rules.token_dropout_rate]
    others += _some_triggers(rules, rng)
    if rules.shuffle_tokens:
        rng.shuffle(others)
    text = ", ".join([*kept, *others])
    return insert_trigger(text, rules.trigger_word, prepend=rules.prepend_trigger)


def _some_triggers(rules: CaptionRules, rng: random.Random) -> list[str]:
    if not rules.random_triggers:
        return []
    most = min(rules.random_triggers_max, len(rules.random_triggers))
    return rng.sample(rules.random_triggers, rng.randint(0, most) if rules.random_triggers_max > 1 else most)


def _variant(item: MediaItem, seed: int, number: int) -> str:
    """One of the texts that are all an item's picture ever has; its flips and repeats share them."""
    rng = keyed_random("caption_variant", seed, item.dataset, item.sha256, number)
    return vary(item.caption_source, item.caption_rules, rng)


def final_caption(item: MediaItem, seed: int, epoch: int) -> str:
    """The text of an item's showing in an epoch; '' (trigger included) with its dropout rate."""
    rules = item.caption_rules
    rng = keyed_random("caption", seed, epoch, item.id)
    if rng.random() < rules.dropout_rate:
        return ""
    if not rules.vary:
        return item.caption
    if rules.variants is None:
        return vary(item.caption_source, rules, rng)
    return _variant(item, seed, rng.randrange(rules.variants))


def are_countable(items: Iterable[MediaItem]) -> bool:
    """Whether every text of every showing can be listed before the first."""
    return all(not item.caption_rules.vary or item.caption_rules.variants is not None for item in items)


def possible_captions(items: Iterable[MediaItem], seed: int) -> dict[str, MediaItem]:
    """Every text that `final_caption` can give for these items, with the first item that has it.

    Raises ValueError for an item whose texts cannot be counted (see `are_countable`).
    """
    texts: dict[str, MediaItem] = {}
    seen = set()
    for item in items:
        rules = item.caption_rules
        same = (item.dataset, item.sha256, item.caption_source, item.caption)
        if same in seen:
            continue
        seen.add(same)
        for text in _texts(item, rules, seed):
            texts.setdefault(text, item)
    return texts


def _texts(item: MediaItem, rules: CaptionRules, seed: int) -> Iterable[str]:
    if rules.vary and rules.variants is None:
        raise ValueError(f"{item.path}: its captions are drawn anew for every showing")
    if rules.dropout_rate < 1:
        numbers = range(rules.variants or 0)
        yield from [_variant(item, seed, number) for number in numbers] if rules.vary else [item.caption]
    if rules.dropout_rate > 0:
        yield ""


def fullest_captions(items: Iterable[MediaItem], measure: Callable[[str], int]) -> dict[str, MediaItem]:
    """For each caption the text with nothing dropped and the longest random triggers, with its first item.

    measure: the length of a text. No text of a showing is longer, up to how a tokenizer joins words.
    """
    longest: dict[CaptionRules, list[str]] = {}
    texts: dict[str, MediaItem] = {}
    for item in items:
        rules = item.caption_rules
        if rules not in longest:
            by_length = sorted(rules.random_triggers, key=measure, reverse=True)
            longest[rules] = by_length[: rules.random_triggers_max]
        texts.setdefault(", ".join([item.caption, *longest[rules]]), item)
    return texts
