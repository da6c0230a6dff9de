"""Bodies of requests and answers about datasets and evaluations, as the API documents them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from web.evaluations.status import EvalStatus
from web.models import Body
from web.queue.states import State

Text = Annotated[str, Field(max_length=64 * 1024)]


class DatasetIn(Body):
    """A dataset to make."""

    name: str = Field(max_length=200, description="A-Z, a-z, 0-9, '.', '-' and '_'.")


class LastEvalOut(BaseModel):
    """The newest report about a dataset."""

    model: str
    at: str
    path: str


class DatasetOut(BaseModel):
    """A dataset at a glance."""

    name: str
    num_pictures: int
    num_captioned: int
    num_bytes: int
    changed_at: str
    last_eval: LastEvalOut | None


class DatasetList(BaseModel):
    """Every dataset; links: folders in the root that are links and not followed."""

    datasets: list[DatasetOut]
    links: list[str]


class ItemOut(BaseModel):
    """A picture with its caption. Values of the newest report, where it was measured."""

    rel: str
    url: str
    thumb_url: str
    size: int
    width: int | None
    height: int | None
    caption: str
    caption_file: str | None
    etag: str = Field(description="Of the caption; send it as If-Match.")
    problem: str | None = Field(description="Why the caption cannot be read.")
    loss: float | None
    values: dict[str, float | None]
    flagged: bool
    reasons: list[str]
    stale: bool = Field(description="The caption has changed since it was measured.")


class RefusedOut(BaseModel):
    """A file that is not used, and why."""

    name: str
    reason: str


class ItemList(BaseModel):
    """A page of pictures."""

    items: list[ItemOut]
    total: int
    next_cursor: str | None
    refused: list[RefusedOut]


class SavedOut(BaseModel):
    """A file that was taken: the name it was sent with, and the one it has now."""

    name: str
    rel: str


class UploadOut(BaseModel):
    """What became of the files that were sent."""

    saved: list[SavedOut]
    skipped: list[RefusedOut]


class CaptionIn(Body):
    """A caption."""

    caption: Text


class CaptionOut(BaseModel):
    """A caption as it is now."""

    rel: str
    caption: str
    etag: str
    file: str | None
    problem: str | None


class BulkIn(Body):
    """A change of many captions: find and replace, then text before and behind."""

    find: str = Field("", max_length=2000)
    replace: str = Field("", max_length=2000)
    prefix: str = Field("", max_length=2000)
    suffix: str = Field("", max_length=2000)
    match_case: bool = False
    whole_words: bool = False
    items: list[Annotated[str, Field(max_length=4000)]] | None = Field(
        None, max_length=200_000, description="Only these pictures."
    )
    dry_run: bool = Field(True, description="Only tell what would change.")
    expected: str | None = Field(
        None, max_length=64, description="digest of a dry run: 412 if it would differ."
    )


class ChangeOut(BaseModel):
    """A caption before and after."""

    rel: str
    before: str
    after: str


class BulkOut(BaseModel):
    """The changes. id: to undo them; null for a dry run."""

    changes: list[ChangeOut]
    digest: str
    id: str | None


class UndoOut(BaseModel):
    """How many captions are as before, and those that were edited since and stay."""

    restored: int
    kept: list[str]


class DuplicatesOut(BaseModel):
    """Groups of pictures: the same bytes, the same look. num_left: not looked at yet, ask again."""

    exact: list[list[str]]
    near: list[list[str]]
    num_left: int
    unreadable: list[str]


class DeletedOut(BaseModel):
    """What lies in the trash. files: empty where a whole dataset was deleted."""

    id: str
    dataset: str
    files: list[str]
    deleted_at: str
    num_bytes: int


class TrashOut(BaseModel):
    """What lies in the trash, the newest first."""

    deleted: list[DeletedOut]


class EvalIn(BaseModel):
    """An evaluation to queue."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    dataset_path: str = Field(min_length=1, max_length=4000, description="Name of the dataset.")
    model: str | None = Field(
        None,
        max_length=1000,
        description="Embedded model, folder, file or hub id; or name_or_path in model_config.",
    )
    model_config_: dict[str, Any] | None = Field(
        None,
        alias="model_config",
        description="The `model` section of a job: name_or_path, arch, vae_path, dtype …",
    )
    batch_size: int = Field(1, ge=1, le=1024)
    sample_fraction: float = Field(1.0, gt=0, le=1, description="Share of the pictures to measure.")
    max_samples: int | None = Field(None, ge=1, lt=2**31, description="The most pictures to measure.")
    samples_per_image: int = Field(8, ge=1, le=4096, description="Draws of noise for each picture.")
    fixed_noise_std: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Measure at the one noise level with this standard deviation; null: at all.",
    )
    debug_captions: bool = False
    ablation_compare: bool = Field(True, description="Also measure without the captions: what do they gain?")
    device: str | None = Field(None, max_length=20, description="Lane, such as gpu:0; default: the first.")
    lora: str | None = Field(None, max_length=1000, description="LoRA file on the model.")
    seed: int | None = Field(None, ge=0, lt=2**31)
    eval_resolution: int | None = Field(None, ge=8, le=8192, description="Side in pixels; null: the model's.")


class LinksOut(BaseModel):
    """Where to look next."""

    status: str
    result: str
    page: str


class EvalMadeOut(BaseModel):
    """An evaluation that was queued."""

    id: str
    status: EvalStatus
    links: LinksOut


class EvalJobOut(BaseModel):
    """An evaluation. params: JSON in a string, as clients of ai-toolkit expect."""

    id: str
    name: str
    dataset: str
    model: str
    params: str
    status: EvalStatus
    job_status: State
    out_json: str | None
    info: str
    created_at: str
    updated_at: str


class EvalList(BaseModel):
    """Evaluations, the newest first."""

    jobs: list[EvalJobOut]


class EvalOut(BaseModel):
    """One evaluation."""

    job: EvalJobOut


class ReportFileOut(BaseModel):
    """A report. path: as GET /api/eval_dataset/file takes it."""

    filename: str
    path: str
    modelName: str  # noqa: N815 - the names that clients of ai-toolkit read
    mtimeMs: int  # noqa: N815


class ReportFiles(BaseModel):
    """Reports, the newest first."""

    files: list[ReportFileOut]


Show = Literal["all", "no-caption", "flagged", "duplicates"]
Sort = Literal["name", "newest", "worst"]
