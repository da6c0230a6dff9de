"""Small changes of a caption: one part left out, or exchanged for another of its kind. Torch-free.

A caption with commas is a list of tags; any other is a sentence, whose parts are its words. What may stand in
a part's place is learned from the data set: for a tag the other tags, for words the one or two that stand
between the same neighbours in other captions ("on a [navy] background": "light blue", "cream" ...), and the
kin of those, which stand where they do ("teal", "in the [teal] sea").
"""

from __future__ import annotations

import heapq
import random
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise

import numpy

from toolkit.data.items import MediaItem
from toolkit.seeding import keyed_random, keyed_seed

START, END = "\x02", "\x03"
_PUNCTUATION = ".,;:!?()[]\"'"  # around words
MAX_WORDS = 2  # of a part of a sentence
PER_PART = 4  # exchanges of a part that are tried at first
NUM_KIN = 24  # that are tried for a part which looks wrong
# Where more different things stand between two neighbours than this, the place says nothing of their kind.
_TELLING = 64
_MOST_PLACES = 256  # of a phrase or tag that are looked at, and phrases of a place
_EXCLUDING = 0.25  # of the captions that two tags would share by chance, where they exclude each other
# Words that carry no picture; leaving them out says nothing about a caption.
EMPTY_WORDS = frozenset((
    "a", "an", "the", "of", "on", "in", "at", "to", "with", "and", "or", "is", "are", "it", "its", "this",
    "that", "by", "for", "from", "as", "into", "onto", "over", "under",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Edit:
    """A changed caption. part: what was changed; replacement: by what, None where it was left out.

    further: tried only since the part looked wrong.
    """

    caption: str
    part: str
    replacement: str | None = None
    further: bool = False


def is_tag_list(caption: str) -> bool:
    """Whether a caption is tags between commas rather than a sentence."""
    return caption.count(",") >= 2


def tags_of(caption: str) -> list[str]:
    """The tags of a caption, tidied, empty ones left out."""
    return [tag.strip() for tag in caption.split(",") if tag.strip()]


def _head(tag: str) -> str:
    """The last word of a tag, lower case: what it is about."""
    return tag.split()[-1].lower()


def _words(caption: str) -> list[str]:
    return caption.split()


def _bare(word: str) -> str:
    """A word without the punctuation around it, lower case."""
    return word.strip(_PUNCTUATION).lower()


@dataclass
class Vocabulary:
    """What the captions of a data set are made of: tags, and words by the neighbours they stand between.

    slots: of the places where several different things stand; there are far fewer of them than of others.
    """

    tags: Counter[str] = field(default_factory=Counter)
    heads: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    slots: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    _lists: list[tuple[str, ...]] = field(default_factory=list)
    _places: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    _every: list[str] = field(default_factory=list)
    _holding: dict[str, array[int]] = field(default_factory=lambda: defaultdict(lambda: array("L")))
    _kin: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, captions: Sequence[str]) -> Vocabulary:
        """Read the captions of a whole data set."""
        made, shared = cls(), _shared_places(captions)
        for caption in captions:
            if is_tag_list(caption):
                made._lists.append(tuple(map(sys.intern, sorted(set(tags_of(caption))))))
                continue
            for left, phrase, right, _ in _phrases(caption):
                if _number(left, right) in shared:
                    made.slots[left, right][sys.intern(phrase)] += 1
        made._note_lists()
        made._note_places()
        return made

    def _note_lists(self) -> None:
        """Which lists hold each tag: of many any, whatever the captions' order."""
        self._lists.sort(key=lambda tags: keyed_seed("eval-list", *tags))
        for number, tags in enumerate(self._lists):
            self.tags.update(tags)
            for tag in tags:
                if len(self._holding[tag]) < _MOST_PLACES:
                    self._holding[tag].append(number)
        for tag in sorted(self.tags):
            self.heads[_head(tag)].append(tag)

    def _note_places(self) -> None:
        """Where each phrase stands: the places with most in them first, whatever the captions' order."""
        for place in sorted(self.slots, key=lambda place: (-self.slots[place].total(), place)):
            if len(self.slots[place]) <= _TELLING:
                for phrase in self.slots[place]:
                    if len(self._places[phrase]) < _MOST_PLACES:
                        self._places[phrase].append(place)

    def other_tags(self, tag: str, present: Collection[str], draw: random.Random, count: int) -> list[str]:
        """Tags that may stand for one: of the same last word ("red hair": "blue hair") first, then any."""
        akin = [other for other in self.heads[_head(tag)] if other not in present]
        found = akin if len(akin) <= count else draw.sample(akin, count)
        every = self._sorted_tags()
        rest = draw.sample(every, min(len(every), count + len(present) + len(found)))
        return [*found, *(other for other in rest if other not in present and other not in found)][:count]

    def _sorted_tags(self) -> list[str]:
        if len(self._every) != len(self.tags):
            self._every = sorted(self.tags)
        return self._every

    def kin_of_tag(self, tag: str, present: Collection[str]) -> list[str]:
        """Other tags of a kind with one: of the same last word first, then those that exclude it.

        present: the tags of the caption; the more of them stand in the captions of another tag, the sooner it
        comes.
        """
        head, beside = _head(tag), self._beside(*(set(present) - {tag}))
        akin = self.akin_to(tag)
        others = (other for other in {*self.heads.get(head, ()), *beside} - set(present) if akin(other))
        ranked = ((_head(other) != head, -beside[other], other) for other in others)
        return [other for *_, other in heapq.nsmallest(NUM_KIN, ranked)]

    def akin_to(self, tag: str) -> Callable[[str], bool]:
        """Whether another tag is of a kind with one.

        It has the same last word, or they exclude each other as "day" and "night" do: they hardly ever stand
        in one caption, where by chance they would. To exchange a tag that says nothing of the picture for one
        that says something else of it would be no exchange.
        """
        head, beside, held = _head(tag), self._beside(tag), len(self._holding.get(tag, ()))

        def akin(other: str) -> bool:
            by_chance = held * self.tags[other] / max(1, len(self._lists))
            excludes = by_chance >= 1 and beside[other] < _EXCLUDING * by_chance
            return excludes or _head(other) == head

        return akin

    def _beside(self, *tags: str) -> Counter[str]:
        """How often each tag stands in the captions of some, in each once for every one of them."""
        places = chain.from_iterable(self._holding.get(tag, ()) for tag in tags)
        return Counter(chain.from_iterable(self._lists[place] for place in places))

    def kin_of_words(self, phrase: str) -> list[str]:
        """Other phrases of a kind with one: in as many of its places as can be, then in places of those."""
        if phrase not in self._kin:
            self._kin[phrase] = self._find_kin(phrase)
        return self._kin[phrase]

    def _find_kin(self, phrase: str) -> list[str]:
        near, far = Counter[str](), Counter[str]()
        for place in self._places.get(phrase, ()):
            near.update(self.slots[place].keys())
        for other, count in sorted(near.items(), key=lambda pair: (-pair[1], pair[0]))[:NUM_KIN]:
            for place in self._places[other]:
                far.update(dict.fromkeys(self.slots[place], count))
        found = (other for other in far if other != phrase and not _changes_two(phrase, other))
        return heapq.nsmallest(NUM_KIN, found, key=lambda other: (-near[other], -far[other], other))

    def substitutes(self, left: str, phrase: str, right: str) -> list[str]:
        """What else stands between these neighbours, most frequent first; no more than _MOST_PLACES.

        Two words are not exchanged for two quite different ones: that would be two changes.
        """
        return [
            other
            for other, _ in heapq.nsmallest(
                _MOST_PLACES, self.slots.get((left, right), {}).items(), key=lambda pair: (-pair[1], pair[0])
            )
            if other != phrase and not _changes_two(phrase, other)
        ]


def _shared_places(captions: Sequence[str]) -> frozenset[int]:
    """The numbers of the places where different phrases stand in different captions."""
    pairs = array("q")  # not of objects: there are a hundred for each caption
    for caption in captions:
        if not is_tag_list(caption):
            for left, phrase, right, _ in _phrases(caption):
                pairs.extend((_number(left, right), _number(phrase)))
    distinct = numpy.unique(numpy.frombuffer(pairs, numpy.int64).reshape(-1, 2), axis=0)
    places, counts = numpy.unique(distinct[:, 0], return_counts=True)
    return frozenset(places[counts > 1].tolist())


def _number(*words: str) -> int:
    return hash(words)


def _changes_two(phrase: str, other: str) -> bool:
    old, new = phrase.split(), other.split()
    return len(old) == len(new) == MAX_WORDS and not set(old) & set(new)


def _phrases(caption: str) -> list[tuple[str, str, str, tuple[int, int]]]:
    """(left neighbour, phrase, right neighbour, its words' range) of each part that says something."""
    words = _words(caption)
    bare = [START, *map(_bare, words), END]
    found = []
    for length in range(1, MAX_WORDS + 1):
        for first in range(len(words) - length + 1):
            inside = bare[first + 1 : first + 1 + length]
            # A part neither begins nor ends with an empty word, nor spans punctuation.
            if inside[0] in EMPTY_WORDS or inside[-1] in EMPTY_WORDS or not all(inside):
                continue
            if _is_split(words[first : first + length]):
                continue
            found.append((bare[first], " ".join(inside), bare[first + 1 + length], (first, first + length)))
    return found


def _is_split(words: Sequence[str]) -> bool:
    """Whether there is punctuation between some words, which then are no phrase."""
    pairs = pairwise(words)
    return any(old[-1:] in _PUNCTUATION or new[:1] in _PUNCTUATION for old, new in pairs)


def leave_one_out(caption: str) -> list[Edit]:
    """The caption without each of its parts in turn."""
    if is_tag_list(caption):
        tags = tags_of(caption)
        return [Edit(", ".join(tags[:i] + tags[i + 1 :]), tag) for i, tag in enumerate(tags) if len(tags) > 1]
    words = _words(caption)
    return [
        Edit(" ".join([*words[:first], *words[last:]]), phrase)
        for _, phrase, _, (first, last) in _phrases(caption)
        if last - first == 1 and len(words) > 1
    ]


def swap_one(
    caption: str, vocabulary: Vocabulary, *, seed: int, content: str, per_part: int = PER_PART
) -> list[Edit]:
    """The caption with each of its parts exchanged for up to `per_part` others of its kind.

    Which ones is a function of (seed, content, vocabulary).
    """
    if is_tag_list(caption):
        tags = tags_of(caption)
        present = frozenset(tags)
        return [
            Edit(", ".join([*tags[:i], other, *tags[i + 1 :]]), tag, other)
            for i, tag in enumerate(tags)
            for other in vocabulary.other_tags(
                tag, present, keyed_random("eval-swap", seed, content, tag), per_part
            )
        ]
    return _distinct(
        _exchanged(caption, place, phrase, other)
        for left, phrase, right, place in _phrases(caption)
        for other in _chosen(vocabulary.substitutes(left, phrase, right), seed, content, phrase, per_part)
    )


def swap_kin(caption: str, vocabulary: Vocabulary, parts: Collection[str]) -> list[Edit]:
    """The caption with each of some of its parts exchanged for up to NUM_KIN others of its kind."""
    if is_tag_list(caption):
        tags = tags_of(caption)
        return [
            Edit(", ".join([*tags[:i], other, *tags[i + 1 :]]), tag, other)
            for i, tag in enumerate(tags)
            if tag in parts
            for other in vocabulary.kin_of_tag(tag, tags)
        ]
    return _distinct(
        _exchanged(caption, place, phrase, other)
        for _, phrase, _, place in _phrases(caption)
        if phrase in parts
        for other in vocabulary.kin_of_words(phrase)
    )


def _exchanged(caption: str, place: tuple[int, int], phrase: str, other: str) -> Edit:
    """A sentence with a phrase at some of its words exchanged; capital and punctuation around it stay."""
    words, (first, last) = _words(caption), place
    old = " ".join(words[first:last])
    bare = old.strip(_PUNCTUATION)
    before, _, behind = old.partition(bare)
    new = other[0].upper() + other[1:] if bare[0].isupper() else other
    return Edit(" ".join([*words[:first], f"{before}{new}{behind}", *words[last:]]), phrase, other)


def _chosen(others: Sequence[str], seed: int, content: str, part: str, count: int) -> list[str]:
    return sorted(others, key=lambda other: (keyed_seed("eval-swap", seed, content, part, other), other))[
        :count
    ]


def without(caption: str, changed: str) -> str:
    """A caption without those of its words, or tags, that a changed one has others for."""
    listed = is_tag_list(caption)
    own, new = (tags_of(caption), tags_of(changed)) if listed else (_words(caption), _words(changed))
    pairs = list(zip(own, new, strict=False))
    first = next((i for i, (old, other) in enumerate(pairs) if old != other), len(pairs))
    most = len(pairs) - first  # that may be equal at the end
    backwards = zip(own[::-1][:most], new[::-1], strict=False)
    last = next((i for i, (old, other) in enumerate(backwards) if old != other), most)
    return (", " if listed else " ").join([*own[:first], *own[len(own) - last :]])


def _distinct(edits: Iterable[Edit]) -> list[Edit]:
    """Each new caption once: as an exchange, if it is one too, and by the shortest part that explains it."""
    found: dict[str, Edit] = {}
    for edit in edits:
        known = found.get(edit.caption)
        if known is None or _plainness(edit) < _plainness(known):
            found[edit.caption] = edit
    return list(found.values())


def _plainness(edit: Edit) -> tuple[bool, int]:
    return edit.replacement is None, len(edit.part)


@dataclass(frozen=True)
class Editor:
    """Which changed captions of an image are measured. fits: whether the model can read one."""

    vocabulary: Vocabulary
    seed: int
    fits: Callable[[str], bool] = lambda caption: True

    def edits(self, item: MediaItem) -> list[Edit]:
        """The caption without each of its parts, and with each exchanged for a few others."""
        swaps = swap_one(item.caption, self.vocabulary, seed=self.seed, content=item.sha256)
        found = _distinct([*leave_one_out(item.caption), *swaps])
        return [edit for edit in found if self.fits(edit.caption)]

    def more(self, item: MediaItem, parts: Collection[str], known: Iterable[Edit]) -> list[Edit]:
        """The caption with some of its parts exchanged for others of their kind that were not tried yet."""
        tried = {item.caption, *(edit.caption for edit in known)}
        swaps = swap_kin(item.caption, self.vocabulary, parts)
        new = (edit for edit in swaps if edit.caption not in tried and self.fits(edit.caption))
        return [replace(edit, further=True) for edit in new]

    def akin(self, item: MediaItem, edit: Edit) -> bool:
        """Whether an exchange is one for something of its kind."""
        if edit.replacement is None or not is_tag_list(item.caption):
            return edit.replacement is not None
        return self.vocabulary.akin_to(edit.part)(edit.replacement)
