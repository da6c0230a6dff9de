"""Checks of the optimizer with its rates, averages and the precision of the weights. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.config_modules.base import Location
from toolkit.config_modules.loop import LoopConfig
from toolkit.config_modules.names import RATE_FREE, SCHEDULE_FREE
from toolkit.config_modules.optimizer_params import check_params
from toolkit.config_modules.process import DiffusionProcess, TrainProcess
from toolkit.errors import ConfigError
from toolkit.training.lr_schedules import make_schedule

Finding = tuple[Location, str, str, str | None]

_CONFLICT = "config.conflict"
_TINY_FACTOR = 0.1  # of a rate that is estimated; ai-toolkit puts 1 in place of what is below


def check_loop(loop: LoopConfig) -> Iterator[Finding]:
    """Schedule, averages, steps and the optimizer's own keywords, whatever is trained."""
    yield from check_params(loop.optimizer, loop.optimizer_params)
    try:
        make_schedule(loop.lr_scheduler, loop.lr_scheduler_params, total=loop.steps, lr=loop.lr)
    except ConfigError as error:
        for problem in error.problems:
            location = tuple((problem.key or "train.lr_scheduler_params").split("."))
            yield location, problem.code, problem.message, problem.remedy
    if loop.optimizer in SCHEDULE_FREE and loop.ema_config.use_ema:
        message = f"cannot be combined with {loop.optimizer}, which averages the weights itself"
        yield ("train", "ema_config", "use_ema"), _CONFLICT, message, "leave it out"
    if loop.optimizer in RATE_FREE and loop.lr == 0:
        message = (
            f"must be above 0 with {loop.optimizer}, which estimates the rate: it is a factor, usually 1"
        )
        yield ("train", "lr"), "config.bad_value", message, "set lr: 1"
    if loop.start_step is not None and loop.start_step >= loop.steps:
        message = f"must be below steps ({loop.steps}), not {loop.start_step}: nothing would be trained"
        yield ("train", "start_step"), "config.bad_value", message, None


def check_rates(process: DiffusionProcess) -> Iterator[Finding]:
    """One rate where an optimizer allows one only; bfloat16 weights where there are whole models."""
    train = process.train
    if train.optimizer in RATE_FREE:
        for key in ("unet_lr", "text_encoder_lr", "embedding_lr"):
            rate = getattr(train, key)
            if rate is not None and rate != train.lr:
                message = (
                    f"must be lr ({train.lr:g}) with {train.optimizer}: it estimates one rate for all weights"
                )
                yield ("train", key), _CONFLICT, message, "leave it out, or use another optimizer"
        network = process.network
        if network is not None and network.network_kwargs.loraplus_lr_ratio not in (None, 1):
            message = f"cannot be combined with {train.optimizer}: it estimates one rate for all weights"
            location = ("network", "network_kwargs", "loraplus_lr_ratio")
            yield location, _CONFLICT, message, "leave it out"
    if train.full_bf16:
        yield from _check_bfloat16(process)


def _check_bfloat16(process: DiffusionProcess) -> Iterator[Finding]:
    train, place = process.train, ("train", "full_bf16")
    embedding = isinstance(process, TrainProcess) and process.embedding is not None
    if process.network is not None or embedding:
        message = "is for a full fine-tune: what is trained here is small and stays float32"
        yield place, _CONFLICT, message, "leave it out; model.dtype is the precision of the base"
    if train.dtype == "float16":
        message = "cannot be combined with dtype: fp16"
        yield place, _CONFLICT, message, "set dtype: bf16"
    if train.optimizer in SCHEDULE_FREE:
        message = f"cannot be combined with {train.optimizer}, whose averages need float32 weights"
        yield place, _CONFLICT, message, "use another optimizer"


def advice(loop: LoopConfig) -> list[str]:
    """Settings that work as written and hardly ever do what was meant."""
    notes = []
    if loop.optimizer in RATE_FREE and 0 < loop.lr < _TINY_FACTOR:
        notes.append(
            f"train.lr: {loop.lr:g} is a factor on the rate that {loop.optimizer} estimates, so that almost "
            "nothing is learned; 1 is usual (ai-toolkit takes 1 for every value below 0.1)"
        )
    if loop.optimizer in SCHEDULE_FREE and loop.lr_scheduler not in ("constant", "constant_with_warmup"):
        notes.append(
            f"train.lr_scheduler: {loop.optimizer} is made for a constant rate; {loop.lr_scheduler} lowers "
            "it all the same"
        )
    return notes
