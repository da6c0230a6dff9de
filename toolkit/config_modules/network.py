"""The `network`, `save` and `logging` sections."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from toolkit.config_modules.base import Float, Int, Section, Text, one_of
from toolkit.config_modules.loop import Dtype
from toolkit.config_modules.names import NETWORK_TYPES, NETWORKS_NOT_YET

_NO_HUB = "only counts with push_to_hub"


class NetworkKwargs(Section):
    """Which modules a network touches, by parts of their names; `ignore` wins."""

    NOT_YET: ClassVar = {"full_train_in_out": False}

    only_if_contains: list[Text] | None = Field(
        None, description="Train only modules whose dotted name contains one of these (null: all)."
    )
    ignore_if_contains: list[Text] = Field(
        [], description="Leave out modules whose dotted name contains one of these."
    )

    attn_only: bool = Field(False, description="Adapt only the layers of attention.")
    loraplus_lr_ratio: Float | None = Field(
        None,
        gt=0,
        description="LoRA+ (arXiv:2402.12354): the learning rate of `up` as a multiple of lr; 16 is usual.",
    )


class NetworkConfig(Section):
    """The adapter that is trained; without this section the model itself is."""

    ALIASES: ClassVar = {"rank": "linear", "alpha": "linear_alpha"}
    NOT_YET: ClassVar = {
        "lorm": None, "layer_offloading": False, "all_layers": False, "lorm_config": None,
        "old_lokr_format": False,
    }  # fmt: skip
    IDLE: ClassVar = {
        "split_multistage_loras": (True, "the supported models have one stage"),
    }  # fmt: skip

    type: Annotated[
        Literal["lora", "locon", "dora", "loha", "lokr"],
        *one_of("network type", NETWORK_TYPES, NETWORKS_NOT_YET),
    ] = Field(
        "lora",
        description="Kind of adapter: lora, locon (convolutions too), dora, loha or lokr.",
    )
    linear: Int = Field(4, ge=1, description="Rank of the adapter of linear layers.")
    linear_alpha: Float = Field(
        1.0, gt=0, description="The adapter's output is scaled by linear_alpha / rank."
    )
    conv: Int | None = Field(
        None,
        ge=1,
        description="Rank of the adapter of a UNet's convolutions (null: none; with locon: linear).",
    )
    conv_alpha: Float | None = Field(
        None, gt=0, description="The same as linear_alpha for convolutions (null: conv)."
    )
    lokr_factor: Int = Field(
        -1, description="Smaller side of LoKr's first factor, such as 8; -1 is the nearest to a square."
    )
    lokr_full_rank: bool = Field(
        False, description="Keep LoKr's second factor whole; linear and linear_alpha then do not count."
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

    @property
    def conv_rank(self) -> int | None:
        """Rank of the adapter of convolutions, None if they have none."""
        return self.linear if self.conv is None and self.type == "locon" else self.conv

    @property
    def convolution_alpha(self) -> float | None:
        """Numerator of that adapter's scale."""
        if self.conv_alpha is not None or self.conv_rank is None:
            return self.conv_alpha
        return self.linear_alpha if self.conv is None else float(self.conv)


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
    IDLE: ClassVar = {
        "use_ui_logger": (False, "metrics.jsonl is always written and is what the UI reads"),
        "verbose": (False, "log.txt always holds everything"),
    }  # fmt: skip

    log_every: Int = Field(
        10,
        ge=1,
        description="Steps between readings of the loss from the device; metrics.jsonl then gets the row of "
        "every step since.",
    )
    use_wandb: bool = Field(
        False, description="Also record with Weights & Biases, offline unless WANDB_MODE says otherwise."
    )
    project_name: Text = Field("ai-toolkit", min_length=1, description="Name of the project there.")
    run_name: Text | None = Field(
        None, min_length=1, description="Name of the run there (null: the run's own)."
    )
