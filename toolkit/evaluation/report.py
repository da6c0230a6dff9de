"""The report of an evaluation: its fields, and its JSON Schema. Torch-free.

`python -m tools.eval_dataset --schema` prints the schema; docs/eval_report.schema.json is its copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from toolkit.runs import atomic

SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), ser_json_inf_nan="null")


class Interval(_Part):
    """A mean with its standard error and 95 % interval; null where too few draws say how sure it is."""

    mean: float
    se: float | None = None
    low: float | None = None
    high: float | None = None


class ReasonReport(_Part):
    """Why a caption is flagged, or worth a look."""

    code: str
    message: str


class OtherCaption(_Part):
    """The caption of another image that fits best, beside the own one."""

    caption: str
    log_ratio: float = Field(
        description="log loss(this) - log loss(own): below 0 it fits better than the own."
    )
    p_value: float = Field(
        description="That it does not fit better, corrected for the number of others tried."
    )
    q_value: float


class DrawsReport(_Part):
    """The draws of an image: lists of one length, an entry a draw."""

    t: list[float] = Field(description="Noise levels in (0, 1].")
    noise_std: list[float] = Field(description="Standard deviation of the noise in the mixture at t.")
    loss_with_caption: list[float]
    loss_with_blank: list[float] | None = None
    loss_ablated: list[float] | None = None


class EditReport(_Part):
    """A changed caption on the same draws."""

    part: str = Field(description="What was left out or exchanged.")
    replacement: str | None = Field(None, description="By what; null where it was left out.")
    caption: str
    log_ratio: float = Field(description="log loss(changed) - log loss(own): below 0 the change fits better.")


class SuggestionReport(EditReport):
    """The exchange that fits best."""

    replacement: str = Field(description="By what.")
    confirmed: Interval | None = Field(
        None, description="The log ratio on draws that had no part in choosing it."
    )


class BaseReport(_Part):
    """The image under the model without its LoRA, on the same draws."""

    loss: float
    log_ratio: Interval = Field(description="log loss(base) - log loss(with the LoRA): what training gained.")


class ImageReport(_Part):
    """One image and its caption."""

    path: str = Field(description="Relative to the data set's folder.")
    dataset: str
    caption: str
    sha256: str
    width: int = Field(description="Pixels it was measured at.")
    height: int
    num_draws: int
    loss: float | None = Field(
        description="Mean loss under the own caption; null where nothing was measured."
    )
    loss_with_caption: float | None
    loss_with_blank: float | None = None
    loss_ablated: float | None = Field(None, description="Under the condition of --caption-ablation.")
    loss_relative: float | None = Field(
        None, description="Loss / mean loss of the data set: 1 is usual. Not a measure of captions."
    )
    ablation_delta: float | None = Field(
        None, description="Loss without the caption - loss with it: positive means that it helped."
    )
    ablation_delta_interval: Interval | None = None
    log_ratio: Interval | None = Field(
        None, description="log loss(blank) - log loss(own): positive means that the caption helped."
    )
    p_value: float | None = Field(None, description="That the caption does not hurt.")
    q_value: float | None = Field(
        None, description="Smallest false discovery rate at which it is found to hurt."
    )
    e_value: float | None = Field(None, description="Evidence that it hurts, valid whenever one stops.")
    rank: int | None = Field(
        None, description="Place of the own caption among itself and the others; 1 is best."
    )
    num_others: int = 0
    rank_p_value: float | None = Field(None, description="That the own caption is like any other here.")
    best_other: OtherCaption | None = None
    draws: DrawsReport | None = None
    edits: list[EditReport] = []
    edit_contrast: float | None = Field(
        None,
        description="log ratio of the exchange that fits best: ranks captions by how likely a detail is "
        "wrong; its sign says little, since for most right captions some exchange fits better too.",
    )
    suggestion: SuggestionReport | None = Field(
        None,
        description="The exchange that fits best, if it fits better than the own caption, than that without "
        "what is exchanged and than none on draws too that did not choose it; only where suggestions were "
        "asked for.",
    )
    base: BaseReport | None = None
    num_tokens: int | None = None
    tokens_lost: int = 0
    flagged: bool = False
    reasons: list[ReasonReport] = []
    hints: list[ReasonReport] = []


class CurvePoint(_Part):
    """All images in one part of the schedule."""

    t: float
    num_draws: int
    loss_with_caption: float
    loss_with_blank: float | None = None
    log_ratio: float | None = None


class DatasetReport(_Part):
    """All images of a data set together."""

    path: str
    num_images: int = Field(description="Images in the folder.")
    num_measured: int
    mean_loss: float | None
    median_loss: float | None
    log_ratio: Interval | None = Field(None, description="Mean over images, bootstrap interval over them.")
    median_log_ratio: float | None = Field(
        None, description="What captions here usually gain: above 0 the scale of caption_does_nothing."
    )
    base_log_ratio: Interval | None = None
    share_helped: float | None = Field(None, description="Images whose caption helped, in [0, 1].")
    retrieval_top1: float | None = Field(
        None, description="Images whose own caption ranked first, in [0, 1]."
    )
    num_flagged: int = 0
    num_suggestions: int = Field(0, description="Images with a word that another would fit better than.")
    reasons: dict[str, int] = Field({}, description="Number of images by the code of their reasons.")
    curve: list[CurvePoint] = []


class RunReport(_Part):
    """With what, and how, was measured."""

    job_name: str
    step: int
    model: str
    arch: str
    model_hash: str = Field(description="Of the denoiser, the autoencoder and the text encoders.")
    lora: str | None = None
    lora_sha256: str | None = None
    lora_multiplier: float | None = Field(None, description="Its strength.")
    seed: int
    samples_per_image: int
    timestep_type: str
    t_range: tuple[float, float]
    fixed_noise_std: float | None
    caption_ablation: str
    num_others: int
    target_se: float | None
    target_q: float | None
    false_discovery_rate: float
    eval_resolution: int
    batch_size: int
    dtype: str
    device: str
    design: str = Field(
        description="Hash of model, LoRA and settings: reports with an equal one repeat each other's "
        "numbers. Draws depend on seed, timestep_type, t_range and fixed_noise_std alone."
    )
    num_forwards: int = Field(description="Predictions made in this start.")
    num_draws: int = Field(description="Draws of all images together.")
    num_draws_full: int = Field(description="What they would have been without stopping early.")
    started: str
    seconds: float
    versions: dict[str, str]


class Report(_Part):
    """An evaluation of the captions of data sets."""

    schema_version: Literal[1] = 1
    kind: Literal["eval_dataset"] = "eval_dataset"
    run: RunReport
    datasets: list[DatasetReport]
    images: Sequence[ImageReport]
    notes: list[str] = []


def write_report(report: Report, path: Path) -> None:
    """Write a report, an image a line. Raises RunError if it cannot be written."""
    frame = report.model_copy(update={"images": []}).model_dump_json(indent=1)
    head, tail = frame.split('\n "images": []', 1)  # not inside a text: those hold no line breaks
    with atomic.writing(path) as part, part.open("wb") as file:
        file.write(f'{head}\n "images": ['.encode())
        for number, image in enumerate(report.images):
            file.write((b",\n  " if number else b"\n  ") + image.model_dump_json().encode())
        file.write(f"\n ]{tail}\n".encode())


def report_schema() -> dict[str, Any]:
    """The JSON Schema of a report."""
    schema = Report.model_json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "AI Toolkit evaluation",
    }


def report_name(job_name: str, step: int) -> str:
    """The file name of a report."""
    return f"{job_name}_{step:09d}.json"
