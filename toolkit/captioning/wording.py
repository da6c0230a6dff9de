"""From what a model said to what stands in a caption file. Torch-free."""

from __future__ import annotations

import re

from toolkit.data.captions import tidy

# How describing models begin whatever they are asked; the rest of the sentence says the same without it.
_THING = r"(?:image|picture|photo|photograph|scene|illustration|drawing|painting)"
_SEEN = r"(?:there (?:is|are)|(?:we|you) (?:can )?see)"
_SHOWS = r"(?:shows|depicts|features|displays|presents|captures|contains|is of|is)"
_DETERMINER = r"(?:an?|the|some|one|two|three|several|many)"
_INTROS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^(?:this|the) {_THING}(?: here)? (?:\w+ly )?{_SHOWS}\s+",
        rf"^in (?:this|the) {_THING}(?:,\s+(?:{_SEEN}\s+)?|\s+{_SEEN}\s+|\s+(?={_DETERMINER}\s))",
        rf"^an? (?:close-?up )?{_THING} of\s+",
        rf"^{_SEEN}\s+",
    )
]
_SENTENCE_END = re.compile(r"[.!?]['\")\]]*(?=\s|$)")
_CLINGS = ",.;:!?)"


def strip_intro(text: str) -> str:
    """`text` without an opening such as "The image shows" or "a photo of"; whole if nothing would remain."""
    for intro in _INTROS:
        rest = intro.sub("", text, count=1)
        if rest != text:
            return rest or text
    return text


def whole_sentences(text: str) -> str:
    """`text`, which was cut off somewhere, up to its last sentence's end; all of it where there is none."""
    ends = list(_SENTENCE_END.finditer(text))
    return text[: ends[-1].end()] if ends else text


def compose(said: str, *, cut: bool = False, intro: bool = True, prefix: str = "", suffix: str = "") -> str:
    """The caption in one line: what was said, with prefix and suffix; '' if nothing was said.

    cut: the model was stopped within a sentence. intro: leave out an opening that says nothing.
    """
    text = tidy(said)
    if cut:
        text = whole_sentences(text)
    if intro:
        text = strip_intro(text)
    if not text:
        return ""
    ending = tidy(suffix)
    joint = "" if not ending or ending[0] in _CLINGS else " "
    return tidy(f"{prefix} {text}{joint}{ending}")
