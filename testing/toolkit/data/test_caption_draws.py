"""The text of each showing: dropped, shuffled, varied, and always the same for the same showing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data.caption_draws import (
    are_countable,
    final_caption,
    fullest_captions,
    possible_captions,
    split_tokens,
    vary,
)
from toolkit.data.captions import insert_trigger
from toolkit.data.items import PLAIN, Bucket, CaptionRules, MediaItem, Placement

WORDS = st.text("abcdefg ", min_size=1, max_size=6).filter(str.strip)
CAPTIONS = st.lists(WORDS, max_size=6).map(", ".join)
TRIGGER = "zwx"  # no caption of these letters holds it
RULES = st.builds(
    CaptionRules,
    dropout_rate=st.sampled_from([0.0, 0.3, 1.0]),
    token_dropout_rate=st.sampled_from([0.0, 0.5, 1.0]),
    shuffle_tokens=st.booleans(),
    keep_tokens=st.integers(0, 3),
    random_triggers=st.sampled_from([(), ("rt1",), ("rt1", "rt2", "rt3")]),
    random_triggers_max=st.integers(1, 3),
    trigger_word=st.sampled_from([None, TRIGGER]),
    variants=st.sampled_from([None, 1, 4]),
)


def item(caption: str, rules: CaptionRules = PLAIN, *, id: str = "1", sha256: str = "0") -> MediaItem:
    placed = insert_trigger(caption, rules.trigger_word, prepend=rules.prepend_trigger)
    return MediaItem(
        id, Path(f"{sha256}.png"), sha256, placed, "d", Bucket(8, 8), Placement(8, 8, 0, 0), caption, rules
    )


def without_trigger(text: str) -> list[str]:
    return split_tokens(text.removeprefix(TRIGGER))


@given(CAPTIONS, RULES, st.integers(0, 99))
def test_a_showing_has_one_text_whatever_was_drawn_before(caption, rules, epoch):
    one = item(caption, rules)
    final_caption(one, 5, epoch + 1)
    assert final_caption(one, 5, epoch) == final_caption(replace(one), 5, epoch)


@given(CAPTIONS, RULES, st.integers(0, 9))
def test_kept_tokens_stay_in_front_and_in_order_and_nothing_is_invented(caption, rules, seed):
    tokens = [" ".join(token.split()) for token in split_tokens(caption)]
    drawn = without_trigger(vary(caption, rules, Random(seed)))
    kept = tokens[: rules.keep_tokens]
    assert drawn[: len(kept)] == kept
    pool = Counter([*tokens, *rules.random_triggers])
    assert not Counter(drawn) - pool


@given(CAPTIONS, st.integers(0, 3), st.integers(0, 9))
def test_a_shuffle_is_a_permutation(caption, keep, seed):
    rules = CaptionRules(shuffle_tokens=True, keep_tokens=keep)
    tokens = [" ".join(token.split()) for token in split_tokens(caption)]
    assert sorted(split_tokens(vary(caption, rules, Random(seed)))) == sorted(tokens)


@given(CAPTIONS, RULES, st.integers(0, 9))
def test_the_trigger_is_there_unless_the_caption_was_dropped(caption, rules, epoch):
    text = final_caption(item(caption, replace(rules, trigger_word=TRIGGER)), 3, epoch)
    assert text == "" or text.split()[0].strip(",") == TRIGGER
    if rules.dropout_rate in (0.0, 1.0):
        assert (text == "") == (rules.dropout_rate == 1.0)


@given(CAPTIONS, RULES, st.integers(0, 20), st.integers(0, 3))
def test_every_text_of_a_countable_item_was_foreseen(caption, rules, epoch, seed):
    one = item(caption, rules)
    if are_countable([one]):
        assert final_caption(one, seed, epoch) in possible_captions([one], seed)
    else:
        assert rules.variants is None
        with pytest.raises(ValueError, match="anew"):
            possible_captions([one], seed)


@given(CAPTIONS, RULES, st.integers(0, 20))
def test_no_text_is_longer_than_the_fullest(caption, rules, epoch):
    one = item(caption, rules)
    [(fullest, owner)] = fullest_captions([one], len).items()
    assert owner is one
    # Measured in words, as a tokenizer would: commas count by themselves.
    assert len(final_caption(one, 1, epoch).replace(",", " ,").split()) <= len(
        fullest.replace(",", " ,").split()
    )


def test_all_orders_come_up_alike():
    rules = CaptionRules(shuffle_tokens=True, keep_tokens=1)
    counts = Counter(final_caption(item("x, a, b, c", rules), 0, epoch) for epoch in range(3000))
    assert len(counts) == 6
    assert max(counts.values()) < 1.3 * min(counts.values())


def test_dropout_removes_the_whole_caption_at_its_rate():
    dropped = item("sks cat", CaptionRules(dropout_rate=0.3, trigger_word="sks"))
    texts = [final_caption(dropped, 0, epoch) for epoch in range(4000)]
    assert set(texts) == {"", "sks cat"}
    assert texts.count("") / len(texts) == pytest.approx(0.3, abs=0.03)


def test_tokens_are_dropped_at_their_rate_each_by_itself():
    rules = CaptionRules(token_dropout_rate=0.25, keep_tokens=1)
    texts = [final_caption(item("x, a, b", rules), 0, epoch) for epoch in range(4000)]
    shares = {text: texts.count(text) / len(texts) for text in set(texts)}
    expected = {"x, a, b": 0.5625, "x, a": 0.1875, "x, b": 0.1875, "x": 0.0625}
    assert shares == {text: pytest.approx(share, abs=0.03) for text, share in expected.items()}


@pytest.mark.parametrize(("most", "numbers"), [(1, {1}), (2, {0, 1, 2}), (3, {0, 1, 2, 3})])
def test_random_triggers_are_added_none_twice(most, numbers):
    triggers = ("t1", "t2", "t3")
    rules = CaptionRules(random_triggers=triggers, random_triggers_max=most)
    drawn = [split_tokens(vary("a cat", rules, Random(seed)))[1:] for seed in range(300)]
    assert {len(each) for each in drawn} == numbers
    assert all(len(set(each)) == len(each) for each in drawn)
    assert {trigger for each in drawn for trigger in each} == set(triggers)


def test_a_placeholder_that_is_dropped_or_shuffled_leaves_the_trigger():
    rules = CaptionRules(token_dropout_rate=1.0, trigger_word="sks")
    assert vary("a photo of [trigger], red", rules, Random(0)) == "sks"
    rules = CaptionRules(shuffle_tokens=True, trigger_word="sks")
    texts = {vary("[trigger], red", rules, Random(seed)) for seed in range(20)}
    assert texts == {"sks, red", "red, sks"}


def test_regularisation_captions_get_no_trigger_in_any_draw():
    rules = CaptionRules(shuffle_tokens=True, trigger_word="sks", prepend_trigger=False)
    assert {vary("red, blue", rules, Random(seed)) for seed in range(20)} == {"red, blue", "blue, red"}


def test_a_caption_that_does_not_vary_is_left_exactly_as_it_is():
    assert final_caption(item("a cat ,asleep,, "), 0, 0) == "a cat ,asleep,,"


def test_variants_are_few_shared_by_repeats_and_keyed_by_seed_and_picture():
    rules = CaptionRules(shuffle_tokens=True, variants=3)
    caption = ", ".join("abcdefgh")
    repeats = [item(caption, rules, id=str(number)) for number in range(4)]
    texts = possible_captions(repeats, 1)
    assert len(texts) == 3
    shown = {final_caption(each, 1, epoch) for each, epoch in product(repeats, range(40))}
    assert shown == set(texts)
    assert possible_captions(repeats, 2).keys() != texts.keys()
    assert possible_captions([item(caption, rules, sha256="1")], 1).keys() != texts.keys()


def test_possible_captions_name_an_item_each():
    one, two, three = item("a", sha256="1"), item("b", sha256="2"), item("a", sha256="3")
    assert possible_captions([one, two, three], 0) == {"a": one, "b": two}
    dropped = [item("a", CaptionRules(0.5)), item("b", CaptionRules(1.0))]
    assert list(possible_captions(dropped, 0)) == ["a", ""]


def test_the_fullest_caption_has_the_longest_random_triggers():
    rules = CaptionRules(random_triggers=("x", "zzz", "yy"), random_triggers_max=2, token_dropout_rate=0.5)
    assert list(fullest_captions([item("a, b", rules)], len)) == ["a, b, zzz, yy"]
