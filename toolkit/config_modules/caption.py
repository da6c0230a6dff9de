"""The `caption` section: pictures put into words. Its keys are options of tools.caption_dataset."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from toolkit.config_modules.base import Int, Section, Text

# Equal to IMAGE_SUFFIXES in toolkit/data/image_files.py (a test compares them), which imports Pillow.
PICTURE_EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp")


class CaptionConfig(Section):
    """A captioning."""

    dataset_path: list[Text] = Field(
        min_length=1, description="Folders of pictures; captions go beside them."
    )
    model: Text = Field(
        min_length=1, description="Image-to-text model of transformers: a folder or a hub id."
    )
    caption_ext: Text = Field(
        ".txt", pattern=r"^\.?[A-Za-z0-9]+$", description="Extension of caption files: txt, caption or json."
    )
    recaption: bool = Field(
        False, description="Also replace captions that exist; captions.jsonl keeps the earlier ones."
    )
    prompt: Text | None = Field(
        None, description="What the model is asked, or how the caption begins (null: by the kind of model)."
    )
    prefix: Text = Field("", description="Text in front of every caption, such as a trigger word.")
    suffix: Text = Field("", description="Text behind every caption.")
    strip_intro: bool = Field(
        True, description="Leave out openings that say nothing: 'The image shows', 'a photo of'."
    )
    max_new_tokens: Int = Field(
        160, ge=1, description="The longest caption in tokens; a cut sentence is left out."
    )
    num_beams: Int = Field(1, ge=1, le=32, description="Width of the search for words; 1 is greedy.")
    resolution: Int = Field(
        1024, ge=32, description="Pictures with more pixels than this squared are scaled down."
    )
    batch_size: Int = Field(1, ge=1, description="Pictures described at once.")
    max_samples: Int | None = Field(None, ge=1, description="The most pictures to caption (null: all).")
    dry_run: bool = Field(False, description="Show the captions and write none.")

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """One folder is a list of one; an extension begins with a dot."""
        if isinstance(data.get("dataset_path"), str):
            data["dataset_path"] = [data["dataset_path"]]
        extension = data.get("caption_ext")
        if isinstance(extension, str) and extension and not extension.startswith("."):
            data["caption_ext"] = f".{extension}"
        return data

    @field_validator("caption_ext")
    @classmethod
    def _no_picture(cls, extension: str) -> str:
        """A caption never takes the name of a picture."""
        if extension.lower() in PICTURE_EXTENSIONS:
            raise PydanticCustomError("caption_ext", "is that of pictures; take txt, caption or json")
        return extension
