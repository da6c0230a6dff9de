"""The `slider` sections: what a slider moves, in pictures (concept_slider) or in prompts alone (slider)."""

from __future__ import annotations

from itertools import permutations
from math import factorial
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from toolkit.config_modules.base import Float, Int, Section, Text
from toolkit.config_modules.sample import SIZE_STEP
from toolkit.seeding import keyed_random

MAX_PERMUTATIONS = 8  # of a shuffled prompt's parts, as ai-toolkit's

Side = Annotated[Int, Field(ge=SIZE_STEP, le=16384)]


class SliderShared(Section):
    """What both kinds of slider have."""

    guidance_strength: Float = Field(
        3.0, gt=0, description="How many differences of positive and negative the class is moved by."
    )
    anchor_strength: Float = Field(1.0, ge=0, description="Weight of the term that holds anchors in place.")
    sample_multipliers: list[Float] = Field(
        [-2.0, -1.0, 0.0, 1.0, 2.0],
        min_length=1,
        description="Strengths at which each preview prompt is drawn: the columns of slider_sheet.png.",
    )


class ConceptSliderConfig(SliderShared):
    """A slider trained on noised pictures."""

    positive_prompt: Text = Field("", description="What the class becomes at positive strength.")
    negative_prompt: Text = Field("", description="What the class becomes at negative strength.")
    target_class: Text = Field("", description="The prompt that is moved; empty moves everything.")
    anchor_class: Text | None = Field(
        None, description="A prompt whose pictures stay as they are at any strength (null: none)."
    )

    @model_validator(mode="after")
    def _has_two_ends(self) -> ConceptSliderConfig:
        _require_two_ends(self.positive_prompt, self.negative_prompt, "positive_prompt", "negative_prompt")
        return self


class SliderTarget(Section):
    """One concept and its two ends; an empty end is the model's picture of no prompt."""

    target_class: Text = Field("", description="The prompt that is moved; empty moves everything.")
    positive: Text = Field("", description="What the class becomes at positive strength.")
    negative: Text = Field("", description="What the class becomes at negative strength.")
    multiplier: Float = Field(
        1.0,
        description="Strength of the network at which the positive end is learned; below 0 swaps the ends.",
    )
    weight: Float = Field(1.0, gt=0, description="Weight of this target's losses.")
    shuffle: bool = Field(
        False, description="Also train the parts of both ends between commas in other orders, 8 at most."
    )

    @model_validator(mode="after")
    def _has_two_ends(self) -> SliderTarget:
        _require_two_ends(self.positive, self.negative, "positive", "negative")
        if self.multiplier == 0:
            raise PydanticCustomError("multiplier", "multiplier: must not be 0, where a network does nothing")
        return self

    def ends(self) -> list[tuple[str, str]]:
        """The pairs (positive, negative) to train, one for each order of their parts."""
        if not self.shuffle:
            return [(self.positive, self.negative)]
        positive, negative = _orders(self.positive), _orders(self.negative)
        count = max(len(positive), len(negative))
        return [(positive[i % len(positive)], negative[i % len(negative)]) for i in range(count)]


class SliderAnchor(Section):
    """Prompts whose pictures stay as they are."""

    prompt: Text = Field(description="A prompt that is held.")
    neg_prompt: Text = Field("", description="A second prompt that is held, usually its negative prompt.")
    multiplier: Float = Field(
        1.0, description="Strength of the network, of either sign, at which it is held."
    )

    def texts(self) -> list[str]:
        """Every prompt that is held."""
        return [self.prompt, self.neg_prompt] if self.neg_prompt else [self.prompt]


class TextSliderConfig(SliderShared):
    """A slider trained on what the model itself draws: no pictures are needed."""

    NOT_YET: ClassVar = {"prompt_tensors": None, "low_ram": False}

    targets: list[SliderTarget] = Field(min_length=1, description="Concepts to move, all by one slider.")
    anchors: list[SliderAnchor] = Field([], description="What should stay as it is.")
    resolutions: list[tuple[Side, Side]] = Field(
        [(512, 512)], min_length=1, description="Width and height of the model's drawings; all are trained."
    )
    batch_full_slide: bool = Field(
        True, description="Train both directions in every step; false takes one of them at a time."
    )
    max_denoising_steps: Int = Field(
        50,
        ge=2,
        le=1000,
        description="Steps of the path from noise to picture; each item is trained at one of them.",
    )
    prompt_file: Text | None = Field(
        None,
        description="Text file; each of its lines is added in turn to the prompts of the targets.",
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A single pair of sides is a list of one."""
        sizes = data.get("resolutions")
        if isinstance(sizes, list) and len(sizes) == 2 and not any(isinstance(x, list) for x in sizes):
            return {**data, "resolutions": [sizes]}
        return data


def _require_two_ends(positive: str, negative: str, *names: str) -> None:
    if positive.strip() == negative.strip():
        raise PydanticCustomError(
            "ends", "{names}: must differ, or there is no direction to learn", {"names": " and ".join(names)}
        )


def _orders(prompt: str) -> list[str]:
    """Up to MAX_PERMUTATIONS orders of the parts between commas, the prompt's own first; always the same."""
    parts = [part.strip() for part in prompt.split(",") if part.strip()]
    if factorial(len(parts)) <= MAX_PERMUTATIONS:
        return list(dict.fromkeys(", ".join(order) for order in permutations(parts)))
    rng, found = keyed_random("slider_orders", prompt), {", ".join(parts): None}
    while len(found) < MAX_PERMUTATIONS:
        rng.shuffle(parts)
        found[", ".join(parts)] = None
    return list(found)
