"""The `eval` section: which captions are measured, and how. Its keys are options of tools.eval_dataset."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from toolkit.config_modules.base import Float, Int, Section, Text, one_of
from toolkit.config_modules.datasets import Extension
from toolkit.config_modules.names import EVAL_TIMESTEP_TYPES

Share = Annotated[Float, Field(gt=0, le=1)]
Rate = Annotated[Float, Field(gt=0, lt=1)]
Level = Annotated[Float, Field(ge=0, le=1)]


class EvalConfig(Section):
    """A measurement of captions."""

    dataset_path: list[Text] = Field(
        min_length=1, description="Folders of pictures with captions, or .json or .jsonl lists of them."
    )
    caption_ext: Extension = Field(".txt", description="Extension of caption files.")
    default_caption: Text | None = Field(None, description="Caption of images without one.")
    trigger_word: Text | None = Field(
        None, description="Stands for [trigger] in captions; those without it are flagged."
    )
    sample_fraction: Share = Field(1.0, description="Share of the images to measure, in (0, 1].")
    max_samples: Int | None = Field(None, ge=1, description="The most images to measure (null: all).")
    samples_per_image: Int = Field(
        16, ge=1, description="Draws of noise for each image; fewer than 16 flag little."
    )
    fixed_noise_std: Share | None = Field(
        None, description="Measure at the one noise level with this standard deviation (null: at all)."
    )
    timestep_type: Annotated[str, *one_of("timestep type", EVAL_TIMESTEP_TYPES)] = Field(
        "uniform", description="Density of the noise levels."
    )
    t_range: tuple[Level, Level] = Field((0.0, 1.0), description="Lowest and highest noise level, in [0, 1].")
    caption_ablation: Literal["none", "zero", "blank", "shuffle", "random"] = Field(
        "none", description="What stands in for the caption in ablation_delta; none is the empty caption."
    )
    caption_ablation_compare: bool = Field(True, description="Also measure without the caption.")
    others: Int = Field(7, ge=0, description="Captions of other images to compare with; 0 for none.")
    edits: bool = Field(
        False, description="Also leave out and exchange each part of a caption: which word is wrong?"
    )
    suggest: bool = Field(False, description="The same, and look for the word that fits better.")
    target_se: Float | None = Field(
        None, gt=0, description="Stop an image when its mean log ratio is known to this standard error."
    )
    target_q: Rate | None = Field(
        None,
        description="Stop an image when it is found to hurt at this false discovery rate, or to help.",
    )
    fdr: Rate = Field(0.1, description="False discovery rate of the flags.")
    eval_resolution: Int | None = Field(
        None, ge=8, description="Side in pixels whose area the images get (null: 256, or the model's)."
    )
    batch_size: Int = Field(1, ge=1, description="Images in one forward pass, each with all its captions.")
    lora: Text | None = Field(None, description="LoRA file on the model.")
    lora_multiplier: Float = Field(1.0, description="Strength of the LoRA.")
    against_base: bool = Field(
        False, description="Also measure without the LoRA: what did training gain on each image?"
    )
    seed: Int = Field(0, description="Of all draws: equal seeds give equal numbers for an image.")
    step: Int = Field(0, ge=0, description="Number in the report's name, of the checkpoint it is about.")
    html: bool = Field(True, description="Also write the report as one page to look at.")
    normalize_loss: bool = Field(True, description="Also tell each loss relative to the data set's mean.")
    log_conditioning: bool = Field(False, description="Write .eval_caption_cond_*.log.")
    debug_captions: bool = Field(False, description="Write .eval_caption_debug_*.log.")
    debug_noise: bool = Field(False, description="Print the noise levels of every image.")

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """One folder is a list of one."""
        if isinstance(data.get("dataset_path"), str):
            data["dataset_path"] = [data["dataset_path"]]
        return data

    @field_validator("t_range")
    @classmethod
    def _rises(cls, levels: tuple[float, float]) -> tuple[float, float]:
        if levels[0] >= levels[1]:
            raise PydanticCustomError("t_range", "must rise")
        return levels

    @field_validator("against_base")
    @classmethod
    def _has_a_lora(cls, wanted: bool, info: ValidationInfo) -> bool:
        if wanted and info.data.get("lora", "") is None:
            raise PydanticCustomError("needs", "needs a LoRA (eval.lora) to compare with the base model")
        return wanted

    @field_validator("target_se", "target_q")
    @classmethod
    def _compares(cls, target: float | None, info: ValidationInfo) -> float | None:
        if target is not None and info.data.get("caption_ablation_compare") is False:
            raise PydanticCustomError("needs", "needs caption_ablation_compare: true")
        return target
