"""The `validation` section: pictures that are not trained on, and how the loss on them is measured."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from toolkit.config_modules.base import Float, Int, Section, Text
from toolkit.config_modules.datasets import Resolution

NoiseLevel = Annotated[Float, Field(gt=0, le=1)]


class ValidationItem(Section):
    """One held-out picture with its caption."""

    image_path: Text = Field(min_length=1, description="The picture's file.")
    prompt: Text = Field("", description="Its caption, as it stands.")


class ValidationConfig(Section):
    """Held-out pictures, from one source of three, and the grid that they are measured on."""

    NULL_MEANS: ClassVar = {"every": 0}

    folder_path: Text | None = Field(
        None,
        min_length=1,
        description="Folder (or list) of held-out pictures, read as the first dataset is. "
        "Pictures that look like trained ones are left out.",
    )
    fraction: Float | None = Field(
        None,
        gt=0,
        le=0.5,
        description="Share of the datasets' pictures to hold out; pictures that look alike stay together, "
        "regularisation pictures stay in training.",
    )
    items: list[ValidationItem] = Field([], description="Held-out pictures listed one by one.")
    every: Int = Field(
        250,
        ge=0,
        description="Steps between measurements; 0 or null: only before the first step and at the end.",
    )
    num_images: Int = Field(
        16, ge=2, description="Held-out pictures that are measured, and as many trained ones beside them."
    )
    num_levels: Int = Field(
        4, ge=1, le=64, description="Parts of the noise schedule; each picture has a fixed level in each."
    )
    num_noises: Int = Field(1, ge=1, description="Fixed noises of each picture in each part of the schedule.")
    noise_levels: list[NoiseLevel] = Field(
        [],
        description="Fixed noise levels in place of num_levels, as the noise's standard deviation in the "
        "mixture, in (0, 1].",
    )
    resolution: Resolution | None = Field(
        None, description="Resolution of folder_path or items (null: the first dataset's largest)."
    )
    seed: Int = Field(
        0, ge=0, description="Seed of split, levels and noises; training_seed does not change them."
    )

    @property
    def sources(self) -> list[str]:
        """The keys that name pictures; exactly one should."""
        return [key for key in ("folder_path", "fraction", "items") if getattr(self, key)]


class ValidationItemsConfig(Section):
    """ai-toolkit's form of the section, in `train.validation_config`."""

    validation_items: list[ValidationItem] = Field(
        min_length=2, description="Held-out pictures, each with image_path and prompt."
    )
    resolution: Resolution = Field(512, description="Side in pixels of the square whose area they are given.")
    validate_every_n_steps: Int = Field(10, ge=1, description="Steps between measurements.")
    validation_sigmas: list[NoiseLevel] = Field(
        [1.0, 0.75, 0.5, 0.25], min_length=1, description="Noise levels: the noise's standard deviation."
    )

    def section(self) -> ValidationConfig:
        """The same as a `validation` section."""
        return ValidationConfig(
            items=self.validation_items,
            every=self.validate_every_n_steps,
            num_images=max(2, len(self.validation_items)),
            noise_levels=self.validation_sigmas,
            resolution=self.resolution,
        )
