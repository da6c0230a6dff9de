"""From what models say to captions."""

from __future__ import annotations

import pytest

from toolkit.captioning.wording import compose, strip_intro, whole_sentences


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("The image shows a red cat on a sofa.", "a red cat on a sofa."),
        ("This picture prominently features two dogs", "two dogs"),
        ("In this image, there is a red cat", "a red cat"),
        ("In the photo we can see a bridge", "a bridge"),
        ("In this picture a man runs", "a man runs"),
        ("A close-up photo of a flower", "a flower"),
        ("there are two boats", "two boats"),
        ("The photograph is of a mountain", "a mountain"),
        ("In the photo booth, two women laugh", "In the photo booth, two women laugh"),
        ("In the picture book a dog is drawn", "In the picture book a dog is drawn"),
        ("In the photo, two women laugh", "two women laugh"),
        ("a red cat in the image", "a red cat in the image"),
        ("The images show nothing", "The images show nothing"),
        ("a photo of ", "a photo of"),
    ],
)
def test_openings_that_say_nothing(said, caption):
    assert strip_intro(said).strip() == caption
    assert compose(said) == caption
    assert compose(said, intro=False) == " ".join(said.split())


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("A cat. A dog that", "A cat."),
        ('He says "hi!" and then', 'He says "hi!"'),
        ("3.5 cats on a", "3.5 cats on a"),
        ("One. Two. Three.", "One. Two. Three."),
        ("", ""),
    ],
)
def test_a_cut_sentence_is_left_out(text, whole):
    assert whole_sentences(text) == whole


def test_prefix_and_suffix():
    assert compose("a photo of a cat", prefix="zrbcat,", suffix=", film grain") == "zrbcat, a cat, film grain"
    assert compose("a\n cat ", prefix=" x ", suffix="at night") == "x a cat at night"
    assert compose("  \n", prefix="zrbcat", suffix="x") == ""
    assert compose("A cat. A do", cut=True) == "A cat."
