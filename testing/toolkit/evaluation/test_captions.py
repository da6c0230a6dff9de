"""Which other captions an image is measured with, how captions are changed, and what is said of them."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from PIL import Image

from testing.eval_helpers import item_of
from toolkit.evaluation import edits
from toolkit.evaluation.contrasts import CaptionPool, design_hash, in_sample, sampled
from toolkit.evaluation.edits import NUM_KIN, Edit, Editor, Vocabulary, leave_one_out, swap_one, without
from toolkit.evaluation.flags import (
    FLAGS,
    HINTS,
    Measurement,
    hints,
    measured_reasons,
    overlap,
    text_reasons,
    unmeant_copies,
    words_of,
)

TEXTS = [f"caption {i}" for i in range(40)]


def codes(reasons) -> list[str]:
    return [reason.code for reason in reasons]


# -- other captions --------------------------------------------------------------------------------------


def test_others_are_distinct_not_the_own_and_do_not_depend_on_the_order():
    pool, shuffled = CaptionPool(TEXTS, seed=1), CaptionPool([*reversed(TEXTS), *TEXTS, ""], seed=1)
    found = pool.others(TEXTS[3], content="a", count=7)
    assert found == shuffled.others(TEXTS[3], content="a", count=7)
    assert len(set(found)) == 7
    assert TEXTS[3] not in found
    assert "" not in shuffled.others("", content="a", count=40)
    assert found[:3] == pool.others(TEXTS[3], content="a", count=3)


def test_others_change_with_image_and_seed_and_little_with_the_pool():
    found = CaptionPool(TEXTS, seed=1).others("own", content="a", count=7)
    assert CaptionPool(TEXTS, seed=2).others("own", content="a", count=7) != found
    assert CaptionPool(TEXTS, seed=1).others("own", content="b", count=7) != found
    larger = CaptionPool([*TEXTS, "one more"], seed=1).others("own", content="a", count=7)
    assert len(set(found) & set(larger)) >= 6


def test_all_captions_are_chosen_alike():
    pool = CaptionPool(TEXTS, seed=0)
    counts = Counter(text for i in range(4000) for text in pool.others("own", content=f"{i}", count=4))
    # Expected 400 each, standard deviation 19.
    assert len(counts) == 40
    assert all(310 < count < 490 for count in counts.values())


def test_few_captions_give_few_others():
    pool = CaptionPool(["one", "two", "one"], seed=0)
    assert pool.others("one", content="a", count=7) == ["two"]
    assert CaptionPool(["one"], seed=0).others("one", content="a", count=7) == []
    assert CaptionPool(["one"], seed=0).shuffled("one", content="a") is None
    assert pool.shuffled("one", content="a") == "two"


def test_ten_thousand_captions_are_searched_fast():
    pool = CaptionPool((f"a picture of thing number {i}" for i in range(10_000)), seed=0)
    start = time.process_time()
    for i in range(200):
        pool.others("own", content=f"{i}", count=7)
    assert (time.process_time() - start) / 200 < 0.005  # so all of them take less than a minute


# -- samples ---------------------------------------------------------------------------------------------


def test_a_larger_share_holds_every_smaller_one():
    contents = [f"{i}" for i in range(500)]
    small, large = (set(sampled(contents, seed=0, fraction=f, limit=None)) for f in (0.2, 0.5))
    assert small < large
    assert 70 < len(small) < 130
    assert sampled(contents, seed=0, fraction=1.0, limit=None) == list(range(500))
    limited = sampled(contents, seed=0, fraction=1.0, limit=10)
    assert len(limited) == 10
    assert limited == sorted(limited)
    assert set(limited) < set(sampled(contents, seed=0, fraction=1.0, limit=20))
    backwards = sampled(contents[::-1], seed=0, fraction=1.0, limit=10)
    assert {contents[::-1][i] for i in backwards} == {contents[i] for i in limited}
    assert in_sample("a", seed=0, fraction=1.0)


def test_the_design_hash_changes_with_every_part():
    assert design_hash([1, "a"]) != design_hash([1, "b"])
    assert design_hash([1, "a"]) == design_hash([1, "a"])


# -- edits -----------------------------------------------------------------------------------------------

SENTENCES = [
    "a red circle on a navy background",
    "a blue square on a light blue background",
    "a green star on a cream background",
]


def test_leave_one_out_of_a_sentence_leaves_words_that_say_something():
    edits = leave_one_out(SENTENCES[0])
    assert [edit.part for edit in edits] == ["red", "circle", "navy", "background"]
    assert edits[0].caption == "a circle on a navy background"
    assert all(edit.replacement is None for edit in edits)


@pytest.mark.parametrize("caption", ["a red, square", 'a "red" square', "a (red) square", "a red (square)"])
def test_no_part_spans_punctuation(caption):
    lines = ["a red square", "a circle"]
    vocabulary = Vocabulary.of(lines)
    assert [edit.part for edit in swap_one(lines[0], vocabulary, seed=0, content="a")] == ["red square"]
    assert swap_one(caption, vocabulary, seed=0, content="a") == []


def test_leave_one_out_of_tags():
    assert leave_one_out("cat, red hat,  sofa") == [
        Edit("red hat, sofa", "cat"),
        Edit("cat, sofa", "red hat"),
        Edit("cat, red hat", "sofa"),
    ]


def test_words_are_exchanged_for_what_stands_in_their_place_elsewhere():
    vocabulary = Vocabulary.of(SENTENCES)
    found = {
        (e.part, e.replacement): e.caption for e in swap_one(SENTENCES[0], vocabulary, seed=0, content="a")
    }
    assert found["navy", "light blue"] == "a red circle on a light blue background"
    assert found["navy", "cream"] == "a red circle on a cream background"
    assert not any(part == "background" for part, _ in found)
    assert swap_one(SENTENCES[0], vocabulary, seed=0, content="a") == swap_one(
        SENTENCES[0], Vocabulary.of(SENTENCES[::-1]), seed=0, content="a"
    )


def test_a_tag_is_exchanged_for_one_of_its_kind_first():
    lists = ["girl, red hair, sofa", "girl, blue hair, tree", "boy, black hair, car"]
    edits = swap_one(lists[0], Vocabulary.of(lists), seed=0, content="a", per_part=2)
    hair = [edit.replacement for edit in edits if edit.part == "red hair"]
    assert sorted(hair) == ["black hair", "blue hair"]
    assert all(edit.caption.count(",") == 2 for edit in edits)
    present = {"girl", "red hair", "sofa"}
    assert not any(edit.replacement in present for edit in edits)


@pytest.mark.parametrize(
    ("caption", "changed"),
    [
        ("a cat on grass.", "a cat on snow."),
        ('a cat on ("grass")', 'a cat on ("snow")'),
        ("Cat: a cat on Grass!", "Cat: a cat on Snow!"),
    ],
)
def test_capital_and_punctuation_stay_when_a_word_is_exchanged(caption, changed):
    vocabulary = Vocabulary.of(["a cat on grass", "a cat on snow"])
    assert [e.caption for e in swap_one(caption, vocabulary, seed=0, content="a")] == [changed]


def test_kin_stand_where_something_stands_or_where_those_do():
    lines = ["a red cat sleeps", "a red dog sleeps", "the old dog barks", "the old fox barks"]
    vocabulary = Vocabulary.of(lines)
    # The dog is where the cat is, and the fox where the dog is; what stands in other places is of no kin.
    assert vocabulary.kin_of_words("cat") == ["dog", "fox"]
    assert vocabulary.kin_of_words("unheard") == []
    assert vocabulary.kin_of_words("dog")[:2] == ["cat", "fox"]


def test_a_place_for_anything_says_nothing_of_a_kind():
    many = [f"a thing{index} stands" for index in range(65)]
    assert Vocabulary.of(many).kin_of_words("thing0") == []
    assert len(Vocabulary.of(many[:64]).kin_of_words("thing0")) == NUM_KIN


def test_kin_of_a_tag_have_its_last_word_or_exclude_it():
    """Day and night never meet, and would by chance; nobody can tell of the rare owl."""
    lists = ["day, girl, red hair, smile", "day, girl, smile, hat", "day, boy, smile, blue hair"] * 4
    lists += ["night, girl, smile, lamp", "night, boy, smile, red hair", "night, boy, lamp"] * 4
    lists += ["day, owl, night"]
    vocabulary = Vocabulary.of(lists)
    assert vocabulary.kin_of_tag("day", ["day", "girl", "smile"]) == ["night", "lamp"]
    assert vocabulary.kin_of_tag("red hair", ["day", "red hair"]) == ["blue hair", "hat"]
    assert not vocabulary.akin_to("smile")("girl") and not vocabulary.akin_to("smile")("day")
    assert vocabulary.akin_to("green hair")("red hair") and not vocabulary.akin_to("unheard")("day")


@pytest.mark.parametrize(
    ("caption", "changed", "left"),
    [
        ("a red cat on grass", "a blue cat on grass", "a cat on grass"),
        ("on a light blue wall", "on a navy wall", "on a wall"),
        ("on a light blue wall", "on a blue wall", "on a blue wall"),
        ("a cat", "a dog", "a"),
        ("red red cat", "red cat", "red cat"),
        ("girl, red hair, sofa", "girl, blue hair, sofa", "girl, sofa"),
        ("girl, red hair,  sofa", "boy, red hair, sofa", "red hair, sofa"),
        ("girl, red hair, sofa", "girl, red hair, sofa", "girl, red hair, sofa"),
    ],
)
def test_a_caption_without_what_was_exchanged(caption, changed, left):
    assert without(caption, changed) == left


def test_what_stands_in_a_place_does_not_depend_on_the_captions_order():
    """Also where more captions hold it than are looked at: nine hundred of these have a red hat."""
    lists = [f"girl, thing {i}, {'blue' if i < 300 else 'red'} hat" for i in range(1200)]
    words = [
        f"a {i}th {place} cat {verb}" for i in range(70) for place, verb in (("old", "is"), ("red", "ran"))
    ]
    words += [f"the {animal} {verb}" for animal in ("cat", "dog", "fox") for verb in ("is", "ran", "sat")]
    found = []
    for order in (1, -1):
        vocabulary = Vocabulary.of(lists[::order]), Vocabulary.of(words[::order])
        tags = vocabulary[0].kin_of_tag("old hat", ["girl", "old hat"])
        found.append((tags, [vocabulary[1].kin_of_words(word) for word in ("cat", "fox", "is")]))
    assert found[0] == found[1]
    assert found[0][0] == ["red hat", "blue hat"]


def test_of_a_phrase_with_many_places_the_fullest_are_looked_at(monkeypatch):
    monkeypatch.setattr(edits, "_MOST_PLACES", 2)
    lines = [f"the {animal} {verb}" for verb in ("ran", "sat") for animal in ("cat", "dog", "dog", "fox")]
    lines += [f"some {animal} {verb}" for verb in ("hid", "ate", "won") for animal in ("cat", "owl")]
    for order in (1, -1):
        # The owl stands in three places of the cat, which are seldom told of.
        assert Vocabulary.of(lines[::order]).kin_of_words("cat") == ["dog", "fox"]


def test_asking_a_vocabulary_does_not_make_it_larger():
    vocabulary = Vocabulary.of(SENTENCES)
    before = len(vocabulary.slots)
    swap_one("something that nobody said, of a purple kind", vocabulary, seed=0, content="a")
    assert before == len(vocabulary.slots) > 0


def test_an_editor_tries_what_is_new_and_fits():
    editor = Editor(Vocabulary.of(SENTENCES), 0, fits=lambda caption: "cream" not in caption)
    item = item_of(Image.new("RGB", (32, 32)), SENTENCES[0])
    first = editor.edits(item)
    assert {edit.replacement for edit in first if edit.part == "navy"} == {None, "light blue"}
    more = editor.more(item, ["navy", "red"], first)
    assert {edit.part for edit in more} <= {"navy", "red"}
    assert all(edit.further for edit in more) and not any(edit.further for edit in first)
    captions = [edit.caption for edit in [*first, *more]]
    assert len(set(captions)) == len(captions) and SENTENCES[0] not in captions
    assert editor.more(item, [], first) == []
    assert [editor.akin(item, edit) for edit in first] == [edit.replacement is not None for edit in first]
    listed = Editor(Vocabulary.of(["girl, red hair, sofa", "boy, blue hair, tree"] * 4), 0)
    tags = item_of(Image.new("RGB", (32, 32)), "girl, red hair, sofa")
    found = {edit.replacement: listed.akin(tags, edit) for edit in listed.edits(tags) if edit.part == "sofa"}
    assert found == {None: False, "boy": True, "blue hair": True, "tree": True}


def test_a_changed_caption_is_tried_once_and_as_an_exchange():
    """Leaving "light" out of "light blue" is the same as saying "blue" for it."""
    lines = [f"a star on a {colour} background" for colour in ("light blue", "blue", "navy")]
    found = editor_edits(lines[0], lines)
    assert [(e.part, e.replacement) for e in found if e.caption == lines[1]] == [("light blue", "blue")]
    assert [e.caption for e in editor_edits("red red red car", [])] == ["red red car", "red red red"]
    assert [e.caption for e in editor_edits("a, a, b", [])] == ["a, b", "a, a"]


def editor_edits(caption: str, captions: list[str]) -> list[Edit]:
    return Editor(Vocabulary.of(captions), 0).edits(item_of(Image.new("RGB", (32, 32)), caption))


# -- flags and hints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a yellow banana on a table", []),
        ("a nan", ["short_caption", "suspicious_text"]),
        ("<unk> picture of something", ["suspicious_text"]),
        ("red red red red square", ["repeated_words"]),
        ("cat", ["short_caption"]),
        ("word " * 201, ["long_caption", "repeated_words"]),
    ],
)
def test_hints_take_whole_words(caption, found):
    assert codes(hints(caption)) == found
    assert set(found) <= set(HINTS)


def measurement(gain: float, width: float, **values) -> Measurement:
    return Measurement(gain, gain - width, gain + width, **values)


def test_the_sign_of_a_gain_decides_what_is_flagged():
    hurting = measurement(-0.3, 0.05, q_hurts=0.01)
    assert codes(measured_reasons(hurting, typical_gain=1.0, rate=0.1)) == ["caption_hurts"]
    helping = measurement(0.9, 0.05, q_hurts=0.01)
    assert codes(measured_reasons(helping, typical_gain=1.0, rate=0.1)) == []
    unsure = measurement(-0.3, 0.9, q_hurts=0.4)
    assert codes(measured_reasons(unsure, typical_gain=1.0, rate=0.1)) == []
    nothing = measurement(0.01, 0.02, q_hurts=0.4)
    assert codes(measured_reasons(nothing, typical_gain=1.0, rate=0.1)) == ["caption_does_nothing"]
    other = measurement(0.9, 0.05, q_hurts=1.0, q_other=0.01, best_other="a dog")
    assert codes(measured_reasons(other, typical_gain=1.0, rate=0.1)) == ["other_fits_better"]
    assert "'a dog'" in measured_reasons(other, typical_gain=1.0, rate=0.1)[0].message


def test_what_can_be_read_off_a_caption():
    assert codes(text_reasons("  ")) == ["caption_empty"]
    found = text_reasons("a cat", trigger="zrb", num_tokens=90, max_tokens=77, copies=3)
    assert codes(found) == ["caption_too_long", "trigger_missing", "duplicate_caption"]
    assert "13 more" in found[0].message
    assert codes(text_reasons("a zrb, cat", trigger="zrb")) == []
    assert codes(text_reasons("a zrbcat", trigger="zrb")) == ["trigger_missing"]
    assert set(codes(found)) <= set(FLAGS)


def test_a_caption_of_most_images_is_meant_for_them():
    assert unmeant_copies(["a zrb"] * 40 + ["a zrb by night"] * 20) == ({}, 60)
    copies, shared = unmeant_copies(["a cat", "A Cat", "a dog", "a bird", "a fish"])
    assert (copies["a cat"], copies["a dog"], shared) == (2, 1, 0)
    assert unmeant_copies(["a cat", "a cat", "a dog"])[1] == 0
    assert unmeant_copies([f"a zrb on {i % 8}" for i in range(24)])[1] == 24
    assert unmeant_copies(["a zrb"] * 3 + [""] * 9) == ({}, 3)
    assert unmeant_copies([]) == ({}, 0)


def test_overlap_counts_words():
    assert overlap(words_of("a red cat"), words_of("a RED, dog")) == pytest.approx(0.5)
    assert overlap(words_of(""), words_of("...")) == 1.0
    assert overlap(words_of("a"), words_of("")) == 0.0
