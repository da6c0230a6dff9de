"""The `network`, `save` and `logging` sections."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from toolkit.config_modules.base import AnyOf, Float, Int, Section, Text, one_of
from toolkit.config_modules.loop import Dtype
from toolkit.config_modules.names import NETWORKS_NOT_YET

_NO_LOKR = "only counts with type: lokr"
_NO_HUB = "only counts with push_to_hub"
_NO_WANDB = "only counts with use_wandb"


class NetworkKwargs(Section):
    """Which modules a network touches, by parts of their names; `ignore` wins."""

    NOT_YET: ClassVar = {"attn_only": False, "full_train_in_out": False}

    only_if_contains: list[Text] | None = Field(
        None, description="Train only modules whose dotted name contains one of these (null: all)."
    )
    ignore_if_contains: list[Text] = Field(
        [], description="Leave out modules whose dotted name contains one of these."
    )


class NetworkConfig(Section):
    """The adapter that is trained; without this section the model itself is."""

    ALIASES: ClassVar = {"rank": "linear", "alpha": "linear_alpha"}
    NOT_YET: ClassVar = {
        "conv": None, "conv_alpha": None, "lorm": None, "layer_offloading": False, "all_layers": False,
        "lorm_config": None,
    }  # fmt: skip
    IDLE: ClassVar = {
        "lokr_full_rank": (False, _NO_LOKR),
        "lokr_factor": (-1, _NO_LOKR), "old_lokr_format": (False, _NO_LOKR),
        "split_multistage_loras": (True, "the supported models have one stage"),
    }  # fmt: skip

    type: Annotated[Literal["lora"], *one_of("network type", ("lora",), NETWORKS_NOT_YET)] = Field(
        "lora", description="Kind of adapter."
    )
    linear: Int = Field(4, ge=1, description="Rank of the adapter of linear layers.")
    linear_alpha: Float = Field(
        1.0, gt=0, description="The adapter's output is scaled by linear_alpha / rank."
    )
    dropout: Float | None = Field(
        None, ge=0, lt=1, description="Dropout before the adapter, in [0, 1) (null: none)."
    )
    network_kwargs: NetworkKwargs = Field(
        default_factory=NetworkKwargs, description="Choice of the modules that are adapted."
    )
    transformer_only: bool = Field(True, description="Adapt only modules inside transformer blocks.")
    pretrained_lora_path: Text | None = Field(
        None, description="LoRA file to start from when the run has no checkpoint of its own."
    )

    @property
    def rank(self) -> int:
        """Rank of the adapter."""
        return self.linear

    @property
    def alpha(self) -> float:
        """Numerator of the adapter's scale."""
        return self.linear_alpha


class SaveConfig(Section):
    """What is written while training, and how often."""

    NOT_YET: ClassVar = {"push_to_hub": False}
    IDLE: ClassVar = {"hf_repo_id": (None, _NO_HUB), "hf_private": (False, _NO_HUB)}
    NULL_MEANS: ClassVar = {"save_every": 0}

    save_every: Int = Field(1000, ge=0, description="Steps between saves; 0 or null saves only at the end.")
    dtype: Dtype = Field("float16", description="Precision of saved weights: fp16, bf16 or fp32.")
    max_step_saves_to_keep: Int = Field(
        5, ge=1, description="How many of this run's numbered saves are kept."
    )
    save_format: Literal["safetensors", "diffusers"] = Field(
        "safetensors",
        description="A full model as one file, or as a diffusers folder; a network is always one file.",
    )


class LoggingConfig(Section):
    """What is recorded while training; metrics.jsonl is always written."""

    ALIASES: ClassVar = {"performance_log_every": "log_every"}
    NOT_YET: ClassVar = {"use_wandb": False}
    IDLE: ClassVar = {
        "project_name": (AnyOf("ai-toolkit", None), _NO_WANDB), "run_name": (None, _NO_WANDB),
        "use_ui_logger": (False, "metrics.jsonl is always written and is what the UI reads"),
        "verbose": (False, "log.txt always holds everything"),
    }  # fmt: skip

    log_every: Int = Field(
        10,
        ge=1,
        description="Steps between readings of the loss from the device; metrics.jsonl then gets the row of "
        "every step since.",
    )
