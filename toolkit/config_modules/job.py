"""A whole job: its type, its name and its processes; and which process types each job takes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from toolkit.config_modules.base import Section, Text
from toolkit.config_modules.process import (
    CaptionProcess,
    ConceptSliderProcess,
    EvalProcess,
    GenerateProcess,
    SliderProcess,
    TrainProcess,
    VaeProcess,
)

# Those that have a diffusion model.
ModelProcess = (
    TrainProcess | ConceptSliderProcess | SliderProcess | VaeProcess | GenerateProcess | EvalProcess
)
AnyProcess = ModelProcess | CaptionProcess
TRAINERS: dict[str, type[AnyProcess]] = {
    **dict.fromkeys(
        ("sd_trainer", "diffusion_trainer", "ui_trainer", "textual_inversion_trainer"), TrainProcess
    ),
    "concept_slider": ConceptSliderProcess,
    "slider": SliderProcess,
}

# job -> type of process -> its class.
JOBS: dict[str, dict[str, type[AnyProcess]]] = {
    "train": {**TRAINERS, "vae": VaeProcess},
    "extension": TRAINERS,
    "generate": {"to_folder": GenerateProcess},
    "eval": {"eval_dataset": EvalProcess},
    "caption": {"caption_dataset": CaptionProcess},
}
JOBS_NOT_YET = ("extract", "mod", "merge")
PROCESSES_NOT_YET = (
    "slider_old", "rescale_sd", "esrgan", "concept_replacer",
    "image_reference_slider_trainer", "ultimate_slider_trainer", "reference_generator",
    "pure_lora_generator", "batch_img2img", "dataset_tools", "sync_from_collection", "super_tagger",
    "example_merge_extension", "locon", "lora", "rescale_lora",
)  # fmt: skip


class JobConfig(Section):
    """A job that can run: everything validated, defaults filled in."""

    job: Literal["train", "extension", "generate", "eval", "caption"] = Field(description="Kind of job.")
    name: Text = Field(description="Name of the job, used for its folder and files.")
    process: list[Annotated[AnyProcess, Field(discriminator="type")]] = Field(
        min_length=1, description="What the job does, one after the other."
    )
    meta: dict[str, Any] = Field(
        {}, description="Free values that are stored in the header of saved weights."
    )


class _Body(Section):
    """The `config:` of a job file."""

    name: Text = Field(description="Name of the job, used for its folder and files.")
    process: list[Annotated[AnyProcess, Field(discriminator="type")]] = Field(
        min_length=1, description="What the job does, one after the other."
    )


class _File(Section):
    """A job file."""

    job: Literal["train", "extension", "generate", "eval", "caption"] = Field(description="Kind of job.")
    config: _Body = Field(description="Name and processes.")
    meta: dict[str, Any] = Field(
        {}, description="Free values that are stored in the header of saved weights."
    )


def job_schema() -> dict[str, Any]:
    """JSON Schema of a job file, for completion in editors."""
    schema = _File.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "AI Toolkit job"}
