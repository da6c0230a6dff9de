"""The `embedding` section: a new word for the model, learned by textual inversion."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from toolkit.config_modules.base import Int, Section, Text, one_of

DEFAULT_TRIGGER = "custom_embedding"


def _one_word(trigger: str) -> str:
    """Also a file's name, and what a tokenizer finds in a prompt: CLIP's reads lower case only."""
    if not re.fullmatch(r"[^\W_][\w.-]*", trigger) or trigger != trigger.lower():
        text = "must be one word of small letters, digits, '-', '_' and '.'"
        raise PydanticCustomError("trigger", "{text}", {"text": text})
    return trigger


def _has_words(words: str) -> str:
    if not words.strip():
        raise PydanticCustomError("init_words", "must name at least one word")
    return words


_FORMATS = {"safetensors": "safetensors", ".safetensors": "safetensors", "pt": "pt", ".pt": "pt"}


class EmbeddingConfig(Section):
    """A word of new vectors; the rest of the model stays as it is."""

    NOT_YET: ClassVar = {"trigger_class_name": None}

    trigger: Annotated[Text, AfterValidator(_one_word)] = Field(
        DEFAULT_TRIGGER, description="The new word; placed in every caption, and the name of the saved file."
    )
    tokens: Int = Field(4, ge=1, le=75, description="Vectors that the word consists of.")
    init_words: Annotated[Text, AfterValidator(_has_words)] = Field(
        "*", description="Words whose vectors the new ones begin as, spread over them."
    )
    save_format: Annotated[
        Literal["safetensors", "pt"],
        *one_of("format", _FORMATS),
    ] = Field("safetensors", description="File format: safetensors, or stable-diffusion-webui's older pt.")
