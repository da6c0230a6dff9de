"""Which parts of a caption are looked into."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image

from testing.eval_helpers import item_of
from toolkit.evaluation.edit_stages import edit_ratios, suspects
from toolkit.evaluation.edits import Edit
from toolkit.evaluation.outcomes import OWN, Outcome, content_of, key_of


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
