"""Which parts of a caption are looked into, and which exchange is measured again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import pytest
from PIL import Image

from testing.eval_helpers import item_of
from toolkit.evaluation.edit_stages import EditStages, edit_ratios, suspects
from toolkit.evaluation.edits import Edit, Editor, Vocabulary
from toolkit.evaluation.outcomes import OWN, Outcome, content_of, key_of
from toolkit.evaluation.records import RecordFile


def outcome_of(*effects: tuple[str, float]) -> Outcome:
    """An image, and for changes of parts of its caption by how much each raises the log of the loss."""
    item = item_of(Image.new("RGB", (32, 32)), "a caption")
    own = numpy.linspace(0.1, 0.9, 4)
    return Outcome(
        item, content_of(item), key_of(item), [OWN], [item.caption], own[None], own,
        edits=[Edit(f"{number}", part) for number, (part, _) in enumerate(effects)],
        edit_losses=numpy.stack([own * numpy.exp(effect) for _, effect in effects]) if effects else None,
    )  # fmt: skip


def test_the_three_worst_parts_are_suspects_each_by_its_best_change():
    effects = [("d", -0.1), ("a", 2), ("a", -0.4), ("c", -0.2), ("right", 0.5), ("b", -0.3), ("b", 0.1)]
    assert suspects(outcome_of(*effects)) == ["a", "b", "c"]
    assert suspects(outcome_of(*effects[-3:])) == ["b"]
    assert suspects(outcome_of(("right", 0.0))) == []


def test_what_was_not_measured_is_said_so():
    assert edit_ratios(outcome_of(("a", -0.4), ("b", 1.0))) == pytest.approx([-0.4, 1.0])
    with pytest.raises(ValueError, match="no changed captions were measured"):
        edit_ratios(outcome_of())


def test_what_is_measured_again_is_of_the_tags_kind_and_has_to_beat_its_absence(tmp_path):
    """To say "blue ring" for "big" gains most, but the two stand together as often as not."""
    lists = ["big, red ring, wall", "big, blue ring, wall", "small, red ring, wall", "small, blue ring, tree"]
    editor = Editor(Vocabulary.of(lists * 4), 0)
    gains = {"blue ring, red ring, wall": 0.1, "small, red ring, wall": 0.5}
    asked: list[list[str]] = []

    def measure(
        outcome: Outcome, texts: Sequence[str], draws: range
    ) -> tuple[list[list[float]], list[float]]:
        asked.append(list(texts))
        return [[gains.get(text, 1.0)] * len(draws) for text in texts], [0.5] * len(draws)

    item = item_of(Image.new("RGB", (32, 32)), lists[0])
    outcome = Outcome(
        item, content_of(item), key_of(item), [OWN], [lists[0]], numpy.ones((1, 4)), numpy.ones(4)
    )
    records = RecordFile(tmp_path / "records.jsonl", "design")
    assert EditStages(editor, records, suggest=True).fill(outcome, measure)
    assert set(gains) <= set(asked[0])
    assert asked[-1] == ["small, red ring, wall", lists[0], "", "red ring, wall"]
    assert outcome.suggestion.edit == Edit("small, red ring, wall", "big", "small")
    assert outcome.suggestion.log_ratios() == pytest.approx(numpy.full((3, 12), numpy.log(0.5)))
