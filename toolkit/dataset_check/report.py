"""What a check of a data set tells: its fields. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

# code -> what it means; those of files that cannot be used come from toolkit.data.scan.
FINDINGS: dict[str, str] = {
    "data.no_caption": "pictures without a caption",
    "data.empty_caption": "empty caption files",
    "data.orphan_caption": "caption files without a picture",
    "data.unread_file": "files of kinds that are not read",
    "data.odd_picture": "pictures that are animated, or have damaged EXIF data",
    "data.duplicate": "files with the very same bytes",
    "data.enlarged": "pictures smaller than their bucket",
    "check.near_duplicate": "pictures that look the same",
    "check.tiny": "pictures of less than a quarter of the pixels that a bucket has",
    "check.aspect": "pictures of which much is cut off, or which are very long",
    "check.soft": "pictures that were enlarged or blurred before",
    "check.duplicate_caption": "captions that several pictures have",
    "check.trigger_missing": "captions without the trigger word",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class Finding(_Part):
    """Something that is odd about a file."""

    code: str
    message: str


class Crop(_Part):
    """What is cut out of a picture, in its own pixels."""

    left: int
    top: int
    width: int
    height: int
    share: float = Field(description="Of the picture's area that the model sees, in (0, 1].")


class Mask(_Part):
    """What says how much each place of a picture counts."""

    path: str = Field(
        description="Relative to the data set's folder, or absolute; of the picture: its transparency."
    )
    inverted: bool = Field(False, description="Black counts, white does not.")
    share: float | None = Field(
        description="How much of what the model sees counts, in [0, 1]; null: it is gone."
    )


class Picture(_Part):
    """A picture and what the model will see of it."""

    path: str = Field(description="Relative to the data set's folder.")
    width: int
    height: int
    sha256: str
    bucket: tuple[int, int] = Field(description="Width and height in pixels.")
    crop: Crop
    mask: Mask | None = None
    caption: str = Field(description="With the trigger word in place.")
    sharpness: float | None = Field(
        None, description="Finest detail beside the next coarser; below 0.28 it looks enlarged. Null: flat."
    )
    findings: list[Finding] = []


class BucketRow(_Part):
    """A bucket and its pictures."""

    width: int
    height: int
    pictures: int


class TagRow(_Part):
    """A tag, or word, and the pictures that have it."""

    tag: str
    pictures: int
    share: float


class DatasetCheck(_Part):
    """A data set, looked at."""

    path: str
    resolution: list[int]
    num_pictures: int
    problems: list[str] = Field([], description="What a training would refuse, a line each.")
    pictures: list[Picture] = []
    other_files: dict[str, Finding] = Field({}, description="Findings about files that are no pictures.")
    buckets: list[BucketRow] = []
    tags: list[TagRow] = Field([], description="Most frequent first; words where captions are sentences.")
    tags_once: int = Field(0, description="Tags that a single picture has.")
    tags_are_words: bool = False
    counts: dict[str, int] = Field({}, description="Number of files by the code of their findings.")
    notes: list[str] = []


class CheckReport(_Part):
    """A check of data sets."""

    schema_version: Literal[1] = 1
    kind: Literal["check_dataset"] = "check_dataset"
    datasets: list[DatasetCheck]
