"""Settings that every training loop has, whatever it trains: steps, optimizer, schedule, EMA, guards."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from toolkit.config_modules.base import Float, Int, Section, one_of
from toolkit.config_modules.names import (
    DTYPES,
    DTYPES_NOT_YET,
    LR_SCHEDULERS,
    OPTIMIZERS,
    OPTIMIZERS_NOT_YET,
    RATE_FREE,
)

WHOLE_EPOCH = -1  # as gradient_accumulation: the micro-batches of an epoch make one step

Dtype = Annotated[str, *one_of("dtype", DTYPES, DTYPES_NOT_YET)]


def _micro_batches(value: int) -> int:
    """At least 1, or WHOLE_EPOCH."""
    if value < 1 and value != WHOLE_EPOCH:
        raise PydanticCustomError("micro_batches", "must be at least 1, or -1 for an epoch")
    return value


class EMAConfig(Section):
    """Exponential moving average of the trained weights."""

    use_ema: bool = Field(
        False, description="Keep a moving average of the trained weights; it is saved and previewed."
    )
    ema_decay: Float = Field(
        0.999, ge=0, lt=1, description="Share of the old average kept at each step, in [0, 1)."
    )
    use_feedback: bool = Field(
        False,
        description="Draw the weights towards their average at every step, ten times as fast as it moves.",
    )
    param_multiplier: Float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor of the trained weights after every step; 0.9999 shrinks them slowly.",
    )


class LoopConfig(Section):
    """The loop itself. A step is one update of the weights."""

    ALIASES: ClassVar = {"gradient_accumulation_steps": "gradient_accumulation"}

    steps: Int = Field(1000, ge=1, description="Optimizer steps of the whole run.")
    batch_size: Int = Field(1, ge=1, description="Pictures per micro-batch, all of one bucket.")
    gradient_accumulation: Annotated[Int, AfterValidator(_micro_batches)] = Field(
        1,
        description="Micro-batches per optimizer step; a step sees batch_size times this many pictures. "
        "-1: all of an epoch, which must fit into memory.",
    )
    start_step: Int | None = Field(
        None, ge=0, description="Number of the step that a new run begins after (null: 0)."
    )
    lr: Float = Field(
        1e-6,
        ge=0,
        description="Peak learning rate. Left out it is 1 for optimizers that estimate the rate themselves "
        "(prodigy, dadapt...), where it is a factor.",
    )
    optimizer: Annotated[str, *one_of("optimizer", OPTIMIZERS, OPTIMIZERS_NOT_YET)] = Field(
        "adamw", description="Optimizer by name; docs/optimizers.md tells them apart."
    )
    optimizer_params: dict[str, Any] = Field(
        {}, description="The optimizer's own keywords, such as weight_decay or betas."
    )
    lr_scheduler: Annotated[str, *one_of("LR schedule", LR_SCHEDULERS)] = Field(
        "constant", description="Course of the learning rate over the run."
    )
    lr_scheduler_params: dict[str, Any] = Field(
        {},
        description="The schedule's own keywords, such as num_warmup_steps (updates; for every schedule), "
        "min_lr, num_cycles, step_size: docs/optimizers.md.",
    )
    max_grad_norm: Float = Field(
        1.0, ge=0, description="Gradients are scaled down to this global L2 norm; 0 does not clip."
    )
    dtype: Dtype = Field("float32", description="Precision of the forward pass: fp32, bf16 or fp16.")
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass: less memory, about 30 % more time."
    )
    ema_config: EMAConfig = Field(
        default_factory=EMAConfig, description="Moving average of the trained weights."
    )
    skip_first_sample: bool = Field(False, description="No previews before the first step.")
    force_first_sample: bool = Field(False, description="Previews before the first step even when resuming.")
    disable_sampling: bool = Field(False, description="No previews at all.")
    on_non_finite: Literal["abort", "skip", "rollback"] = Field(
        "abort",
        description="On a loss or gradient that is not finite: abort naming the files, skip the step, or "
        "rollback to the newest checkpoint and go on from there with the batches that come after it.",
    )
    num_threads: Int | None = Field(
        None,
        ge=1,
        le=1024,  # torch itself breaks down where the system has no more
        description="CPU threads of torch, at most 1024 (null: its default); bit-exact for each number.",
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A rate of 1 for optimizers that find the rate themselves."""
        name = str(data.get("optimizer")).strip().lower()
        if "lr" not in data and OPTIMIZERS.get(name) in RATE_FREE:
            data = {**data, "lr": 1.0}
        return data
