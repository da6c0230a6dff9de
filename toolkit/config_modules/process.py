"""The entries of `process:`: one class for each `type`, made of sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from toolkit.config_modules.base import Float, Int, Section, Text
from toolkit.config_modules.caption import CaptionConfig
from toolkit.config_modules.datasets import DatasetConfig
from toolkit.config_modules.embedding import DEFAULT_TRIGGER, EmbeddingConfig
from toolkit.config_modules.evaluation import EvalConfig
from toolkit.config_modules.generate import GenerateConfig
from toolkit.config_modules.loop import Dtype, LoopConfig
from toolkit.config_modules.model import ModelConfig, architecture_of
from toolkit.config_modules.network import LoggingConfig, NetworkConfig, SaveConfig
from toolkit.config_modules.notify import NotifyConfig
from toolkit.config_modules.sample import ImageFormat, SampleConfig
from toolkit.config_modules.slider import ConceptSliderConfig, TextSliderConfig
from toolkit.config_modules.train import TrainConfig
from toolkit.config_modules.validation import ValidationConfig

Device = Annotated[Text, Field(pattern=r"^(?i:auto|cpu|gpu|cuda|mps|xpu|npu)(:\d+)?$")]
_UI_DATABASE = "the run folder is what the UI reads; a job knows no database"

# Keys of ai-toolkit's process that no training of a diffusion model reads here.
PROCESS_NOT_YET: dict[str, Any] = {
    "torch_profiler": False, "adapter": None, "decorator": None, "guidance": None,
}  # fmt: skip
PROCESS_IDLE: dict[str, tuple[Any, str]] = {
    "performance_log_every": (0, "seconds per step are in every row of metrics.jsonl"),
    "sqlite_db_path": ("./aitk_db.db", _UI_DATABASE),
    "save_before_stop": (False, "a stopped run always leaves a checkpoint"),
}


def _handed_down(
    data: dict[str, Any], section: str, values: Mapping[str, Any], *, override: bool = False
) -> None:
    """Fill keys that a section (or each of a list of sections) leaves out from another section's."""
    inner = data.get(section)

    def fill(entry: Any) -> Any:
        if not isinstance(entry, Mapping):
            return entry
        given = {k: v for k, v in values.items() if v is not None and (override or entry.get(k) is None)}
        return {**entry, **given}

    if isinstance(inner, list):
        data[section] = [fill(entry) for entry in inner]
    elif inner is not None:
        data[section] = fill(inner)


def _get(data: Mapping[str, Any], section: str, key: str) -> Any:
    inner = data.get(section)
    return inner.get(key) if isinstance(inner, Mapping) else None


def _is_flow(data: Mapping[str, Any]) -> bool:
    """Whether models of this architecture are always flow-matching ones."""
    entry = architecture_of(data.get("model"))
    return entry is not None and entry.noise_scheduler == "flowmatch"


class FolderProcess(Section):
    """What every process that writes a run folder has."""

    training_folder: Text = Field(
        min_length=1, description="Folder of all runs; this one gets a folder of its name."
    )
    name: Text | None = Field(None, description="Name of the run (null: config.name).")
    device: Device | None = Field(
        None, description="Device such as cuda:0, mps or cpu (null: the best there is)."
    )


class RunProcess(FolderProcess):
    """What every training has."""

    training_seed: Int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="Seed of noise, noise levels, order and dropout (null: 0).",
    )
    save: SaveConfig = Field(default_factory=SaveConfig, description="What is written while training.")
    logging: LoggingConfig = Field(
        default_factory=LoggingConfig, description="What is recorded while training."
    )
    notify: NotifyConfig = Field(default_factory=NotifyConfig, description="Who is told when the run ends.")
    log_dir: Text | None = Field(
        None, min_length=1, description="Folder of TensorBoard's files, a folder of its own for this run."
    )
    model: ModelConfig = Field(description="The base model.")
    datasets: list[DatasetConfig] = Field(min_length=1, description="Folders of pictures to train on.")
    strict: bool = Field(False, description="The same key of every dataset that does not set its own.")

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Hand strictness down to the datasets."""
        _handed_down(data, "datasets", {"strict": data.get("strict")})
        return data


class DiffusionProcess(RunProcess):
    """What every training of a diffusion model has."""

    trigger_word: Text | None = Field(
        None, description="Word placed in every caption and for [trigger] in previews."
    )
    network: NetworkConfig | None = Field(
        None, description="Adapter to train (null: the model itself is trained)."
    )
    train: TrainConfig = Field(default_factory=TrainConfig, description="Steps, optimizer, noise and loss.")
    sample: SampleConfig = Field(default_factory=SampleConfig, description="Previews while training.")
    first_sample: SampleConfig | None = Field(
        None, description="Previews before the first step only (null: sample's)."
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Hand down what one section says for another."""
        data = super().prepare(data)
        _handed_down(data, "datasets", {"trigger_word": data.get("trigger_word")})
        if _get(data, "train", "cache_text_embeddings") is True:
            _handed_down(data, "datasets", {"cache_text_embeddings": True}, override=True)
        _handed_down(data, "model", {"dtype": _get(data, "train", "dtype")})
        if _is_flow(data) and _get(data, "train", "noise_scheduler") is None:
            data = {**data, "train": {} if data.get("train") is None else data["train"]}
            _handed_down(data, "train", {"noise_scheduler": "flowmatch"})
        if str(_get(data, "train", "noise_scheduler")).lower() == "flowmatch":
            data = {**data, "sample": {} if data.get("sample") is None else data["sample"]}
            for section in ("sample", "first_sample"):
                _handed_down(data, section, {"sampler": "flowmatch"})
        return data


class TrainProcess(DiffusionProcess):
    """Training of a diffusion model on captioned pictures: a network on top of it, or the model itself."""

    NOT_YET: ClassVar = PROCESS_NOT_YET | {"slider": None}
    IDLE: ClassVar = PROCESS_IDLE

    type: Literal["sd_trainer", "diffusion_trainer", "ui_trainer", "textual_inversion_trainer"] = Field(
        description="Kind of process."
    )
    embedding: EmbeddingConfig | None = Field(
        None, description="A new word to learn; without a network beside it, nothing else is trained."
    )
    validation: ValidationConfig | None = Field(
        None, description="Held-out pictures, whose loss tells whether training still helps."
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The embedding's trigger is the trigger word."""
        if isinstance(data.get("embedding"), Mapping) and data.get("trigger_word") is None:
            data = {**data, "trigger_word": _get(data, "embedding", "trigger") or DEFAULT_TRIGGER}
        return super().prepare(data)

    @property
    def held_out(self) -> ValidationConfig | None:
        """The validation that is asked for, in whichever form."""
        legacy = self.train.validation_config
        return legacy.section() if legacy is not None else self.validation


class ConceptSliderProcess(DiffusionProcess):
    """Training of a slider on pictures; their captions are not read."""

    NOT_YET: ClassVar = PROCESS_NOT_YET | {"embedding": None}
    IDLE: ClassVar = PROCESS_IDLE

    type: Literal["concept_slider"] = Field(description="Kind of process.")
    network: NetworkConfig = Field(description="The adapter that becomes the slider.")
    slider: ConceptSliderConfig = Field(description="What the slider moves.")


class SliderProcess(DiffusionProcess):
    """Training of a slider on prompts alone: the model draws its own pictures."""

    NOT_YET: ClassVar = PROCESS_NOT_YET | {"embedding": None}
    IDLE: ClassVar = PROCESS_IDLE

    type: Literal["slider"] = Field(description="Kind of process.")
    network: NetworkConfig = Field(description="The adapter that becomes the slider.")
    slider: TextSliderConfig = Field(description="What the slider moves.")
    datasets: list[DatasetConfig] = Field(
        [], max_length=0, description="None: this slider needs no pictures."
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """ai-toolkit's train.max_denoising_steps means the length of the path here."""
        if _get(data, "train", "timestep_type") is not None:
            raise PydanticCustomError(
                "timestep_type",
                "train.timestep_type means nothing here: a text slider trains at the levels of its own path",
            )
        steps = _get(data, "train", "max_denoising_steps")
        if steps is not None:
            _handed_down(data, "slider", {"max_denoising_steps": steps})
            data["train"] = {k: v for k, v in data["train"].items() if k != "max_denoising_steps"}
        return super().prepare(data)


class VaeLossConfig(Section):
    """Weights of the terms of the autoencoder's loss, each a mean over a picture's elements."""

    mse: Float = Field(1.0, ge=0, description="Weight of the squared error of pixels.")
    mae: Float = Field(0.0, ge=0, description="Weight of the absolute error of pixels.")
    pooled_mse: Float = Field(0.0, ge=0, description="Weight of the squared error of 4 x 4 averages.")
    kl: Float = Field(1e-6, ge=0, description="Weight of the divergence of the latents from a unit Gaussian.")


class VaeSampleConfig(Section):
    """Pictures that are encoded and decoded for the eye while training."""

    NULL_MEANS: ClassVar = {"sample_every": 0}

    sample_every: Int = Field(
        100, ge=0, description="Steps between previews; 0 or null draws none while training."
    )
    sources: list[Text] = Field(
        [], description="Pictures to reconstruct (empty: the first few of the datasets)."
    )
    format: ImageFormat = Field("png", description="File format of the previews: jpg, png or webp.")


class VaeTrainConfig(LoopConfig):
    """The loop of an autoencoder's training."""

    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about 30 % more time."
    )


class VaeProcess(RunProcess):
    """Training of the model's autoencoder on pictures; captions are not read."""

    type: Literal["vae"] = Field(description="Kind of process.")
    train: VaeTrainConfig = Field(default_factory=VaeTrainConfig, description="Steps and optimizer.")
    vae_loss: VaeLossConfig = Field(default_factory=VaeLossConfig, description="Weights of the loss's terms.")
    sample: VaeSampleConfig = Field(default_factory=VaeSampleConfig, description="Previews while training.")


class EvalProcess(FolderProcess):
    """A measurement of captions: do they help the model to predict their pictures?"""

    type: Literal["eval_dataset"] = Field(description="Kind of process.")
    dtype: Dtype | None = Field(
        None, description="Precision (null: model.dtype, else bf16 on a GPU, fp32 on a CPU)."
    )
    model: ModelConfig = Field(description="The model that predicts.")
    eval: EvalConfig = Field(description="What is measured.")


class CaptionProcess(FolderProcess):
    """Captions written beside pictures by a model that puts pictures into words."""

    type: Literal["caption_dataset"] = Field(description="Kind of process.")
    dtype: Dtype | None = Field(None, description="Precision (null: bf16 on a GPU, fp32 on a CPU).")
    caption: CaptionConfig = Field(description="What is captioned, and how.")


class GenerateProcess(Section):
    """Pictures drawn into a folder."""

    type: Literal["to_folder"] = Field(description="Kind of process.")
    output_folder: Text = Field(min_length=1, description="Folder that receives the pictures.")
    device: Device | None = Field(
        None, description="Device such as cuda:0, mps or cpu (null: the best there is)."
    )
    dtype: Dtype | None = Field(
        None, description="Precision (null: model.dtype, else fp16 on a GPU, fp32 on a CPU)."
    )
    model: ModelConfig = Field(description="The model that draws.")
    generate: GenerateConfig = Field(description="What is drawn.")

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A flow-matching architecture is sampled by flowmatch unless the file says otherwise."""
        if _is_flow(data):
            _handed_down(data, "generate", {"sampler": "flowmatch"})
        return data
