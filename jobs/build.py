"""Config section -> object: the only place where the config meets constructors."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.config_modules.datasets import DatasetConfig
from toolkit.config_modules.embedding import EmbeddingConfig
from toolkit.config_modules.loop import WHOLE_EPOCH
from toolkit.config_modules.model import ModelConfig
from toolkit.config_modules.process import (
    DiffusionProcess,
    FolderProcess,
    SliderProcess,
    TrainProcess,
    VaeProcess,
)
from toolkit.config_modules.prompt_flags import RANDOM_SEED
from toolkit.config_modules.sample import SampleRequest
from toolkit.data.companions import CompanionSettings
from toolkit.data.crops import CropSettings
from toolkit.data.inspection import Progress
from toolkit.data.items import CaptionRules
from toolkit.data.order import EpochOrder
from toolkit.data.scan import ScanResult, scan_dataset
from toolkit.errors import ConfigError, ModelError, Problem
from toolkit.models.catalogue import find_architecture
from toolkit.models.geometry import size_multiple as read_size_multiple
from toolkit.models.geometry import vae_size_multiple as read_vae_size_multiple
from toolkit.paths import resolve_model, resolve_path

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

    from toolkit.stable_diffusion_model import StableDiffusion
    from toolkit.training.ema import Averages
    from toolkit.training.run_state import RunIdentity
    from toolkit.training.trainer import Losses, Trainer, TrainerSettings

TrainingSection = DiffusionProcess | VaeProcess


# -- data ------------------------------------------------------------------------------------------------


def scan_each(
    datasets: Sequence[DatasetConfig],
    *,
    size_multiple: int,
    captioned: bool = True,
    rescan: bool = False,
    decode: bool = True,
    progress: Progress | None = None,
) -> Iterator[tuple[DatasetConfig, ScanResult]]:
    """Scan dataset by dataset; problems are in the results. See scan_dataset for what is not given here."""
    for index, dataset in enumerate(datasets):
        yield (
            dataset,
            scan_dataset(
                resolve_path(dataset.folder_path),
                name=dataset_name(index, dataset),
                resolutions=dataset.resolution,
                size_multiple=math.lcm(size_multiple, dataset.bucket_tolerance or 1),
                caption_ext=dataset.caption_ext,
                default_caption=dataset.default_caption,
                use_short_captions=dataset.use_short_captions,
                replacements=[(old, new) for old, _, new in (r.partition("|") for r in dataset.replacements)],
                trigger_word=dataset.trigger_word,
                captioned=captioned,
                caption_rules=caption_rules(dataset),
                use_buckets=dataset.buckets and not dataset.square_crop,
                num_repeats=dataset.num_repeats,
                flip_x=dataset.flip_x,
                flip_y=dataset.flip_y,
                is_reg=dataset.is_reg,
                loss_multiplier=dataset.loss_multiplier,
                alpha_color=dataset.alpha_color,
                crops=crop_settings(dataset),
                companions=companion_settings(dataset),
                strict=dataset.strict,
                rescan=rescan,
                decode=decode or dataset.alpha_mask,  # a mask in a picture is among its pixels
                progress=progress,
            ),
        )


def caption_rules(dataset: DatasetConfig) -> CaptionRules:
    """How the texts of a dataset's showings are drawn; bounded in number where they are to be cached."""
    return CaptionRules(
        dropout_rate=dataset.caption_dropout_rate,
        token_dropout_rate=dataset.token_dropout_rate,
        shuffle_tokens=dataset.shuffle_tokens,
        keep_tokens=dataset.keep_tokens,
        random_triggers=tuple(dataset.random_triggers),
        random_triggers_max=dataset.random_triggers_max,
        variants=dataset.caption_variants if dataset.cache_text_embeddings else None,
    )


def crop_settings(dataset: DatasetConfig) -> CropSettings:
    """How a dataset's pictures are cut; so many times in all if their latents are cached."""
    return CropSettings(
        scale=dataset.scale,
        random_crop=dataset.random_crop,
        random_scale=dataset.random_scale,
        own_size=dataset.cuts_at_own_size,
        num_draws=dataset.cached_crops if dataset.caches_latents else None,
    )


def companion_settings(dataset: DatasetConfig) -> CompanionSettings:
    """The masks, control pictures and points of interest of a dataset."""
    return CompanionSettings(
        mask_folder=None if dataset.mask_path is None else resolve_path(dataset.mask_path),
        alpha_mask=dataset.alpha_mask,
        invert_mask=dataset.invert_mask,
        mask_min_value=dataset.mask_min_value,
        control_folders=tuple(resolve_path(folder) for folder in dataset.control_folders),
        control_color=dataset.control_transparent_color,
        aligned_controls=dataset.full_size_control_images,
        poi=dataset.poi,
    )


def dataset_name(index: int, dataset: DatasetConfig) -> str:
    """What stands for a dataset in its items' ids: its place in the config and its folder's name."""
    return f"{index}:{Path(dataset.folder_path).name}"


def num_workers(section: TrainingSection) -> int:
    """Threads that make batches ahead: what the dataset that wants the most says, as all share one stream."""
    return max((dataset.num_workers for dataset in section.datasets), default=1)


# -- model -----------------------------------------------------------------------------------------------


def model_path(model: ModelConfig) -> Path:
    """The local folder or file of a model that must be local. Raises ModelError."""
    found = resolve_model(model.name_or_path)
    if found is None:
        raise ModelError(Problem("model.not_found", f"no such folder or file: {model.name_or_path}",
                                 key="model.name_or_path"))  # fmt: skip
    return found


def vae_size_multiple(model: ModelConfig) -> int:
    """The same for training the autoencoder alone."""
    return read_vae_size_multiple(model_path(model))


def size_multiple(model: ModelConfig) -> int:
    """Sides of training pictures are multiples of this many pixels; needs no weights."""
    return read_size_multiple(resolve_model(model.name_or_path), find_architecture(model.arch))


def local_file(name: str, key: str) -> Path:
    """A file that the config names. Raises ConfigError naming the key."""
    path = resolve_path(name)
    if not path.is_file():
        raise ConfigError(Problem("config.no_file", f"no such file: {name}", key=key))
    return path


def load_model(
    model: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    zero_terminal_snr: bool = False,
    bypass_guidance_embedding: bool = False,
) -> StableDiffusion:
    """The base model of a config. Raises ModelError."""
    from toolkit.stable_diffusion_model import StableDiffusion

    # What only some architectures know; others refuse it with the config.
    special = {
        "zero_terminal_snr": zero_terminal_snr,
        "bypass_guidance_embedding": bypass_guidance_embedding,
        "extras_name_or_path": model.extras_name_or_path,
        "use_flux_cfg": model.use_flux_cfg,
    }
    return StableDiffusion.load(
        model.name_or_path,
        arch=model.arch,
        dtype=dtype,
        device=device,
        vae_path=model.vae_path,
        te_name_or_path=model.te_name_or_path,
        from_config=model.from_config,
        prediction_type=model.prediction_type,
        seed=seed,
        **{key: value for key, value in special.items() if value},
    )


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a config's canonical dtype name."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def training_root(section: FolderProcess) -> Path:
    """The folder of all runs; relative ones count from the working folder."""
    return Path(section.training_folder).expanduser()


# -- training --------------------------------------------------------------------------------------------


def seed(section: TrainingSection) -> int:
    """The run's seed. Left out it is 0, so that a run can always be repeated."""
    return section.training_seed if section.training_seed is not None else 0


def accelerator(section: TrainingSection) -> Accelerator:
    """Device and precision of a run; sets torch's thread count where the config does."""
    import torch
    from accelerate import PartialState

    from toolkit.accelerator import make_accelerator, pick_device

    if section.train.num_threads is not None:
        torch.set_num_threads(section.train.num_threads)
    device = pick_device(section.device)
    made = make_accelerator(device, torch_dtype(section.train.dtype))
    if PartialState().num_processes > 1:
        raise ConfigError("training on several processes at once is not supported yet; start one process")
    return made


def trainer(
    section: TrainingSection,
    groups: list[dict[str, Any]],
    parameters: dict[str, nn.Parameter],
    made: Accelerator,
    losses: Losses,
    *,
    order: EpochOrder,
) -> Trainer:
    """The loop over `parameters`, still without batches."""
    from toolkit.training.ema import ExponentialMovingAverage
    from toolkit.training.lr_schedules import make_schedule
    from toolkit.training.optimizers import make_optimizer
    from toolkit.training.rounding import RoundedWeights
    from toolkit.training.trainer import Trainer, TrainingState

    train, average = section.train, section.train.ema_config
    rounded = RoundedWeights(parameters) if in_bfloat16(section) else None
    micro_batches = accumulation(section, order)
    start = train.start_step or 0
    return Trainer(
        trainer_settings(section, micro_batches),
        losses=losses,
        parameters=parameters,
        optimizer=make_optimizer(
            train.optimizer,
            rounded.groups(groups) if rounded else groups,
            lr=train.lr,
            params=train.optimizer_params,
            named=rounded.stand_ins if rounded else parameters,
        ),
        schedule=make_schedule(train.lr_scheduler, train.lr_scheduler_params, lr=train.lr),
        batches=iter(()),
        accelerator=made,
        ema=ExponentialMovingAverage(
            parameters,
            average.ema_decay,
            feedback=average.use_feedback,
            multiplier=average.param_multiplier,
        )
        if average.use_ema
        else None,
        state=TrainingState(step=start, position=start * micro_batches),
        rounded=rounded,
    )


def trainer_settings(section: TrainingSection, micro_batches: int) -> TrainerSettings:
    """The plain numbers of the loop; a step has so many micro-batches."""
    from toolkit.training.trainer import TrainerSettings

    train = section.train
    return TrainerSettings(
        steps=train.steps,
        accumulation=micro_batches,
        max_grad_norm=train.max_grad_norm or None,
        seed=seed(section),
        skip_non_finite=train.on_non_finite == "skip",
    )


def accumulation(section: TrainingSection, order: EpochOrder) -> int:
    """Micro-batches of an optimizer step: as many as the section says, or a whole epoch of them."""
    wanted = section.train.gradient_accumulation
    return order.num_batches if wanted == WHOLE_EPOCH else wanted


def in_bfloat16(section: TrainingSection) -> bool:
    """Whether the weights that are trained are kept in bfloat16."""
    return isinstance(section, DiffusionProcess) and section.train.full_bf16


def embedding_section(section: DiffusionProcess) -> EmbeddingConfig | None:
    """The word that a run learns, if it learns one."""
    return section.embedding if isinstance(section, TrainProcess) else None


def stem_beside_embedding(name: str) -> str:
    """What the network's files of the run `name` are called when an embedding has files beside them."""
    return f"{name}_LoRA"


def file_stems(section: DiffusionProcess, name: str) -> tuple[str, ...]:
    """What the files that the run `name` saves are called, before their step."""
    embedding = embedding_section(section)
    if embedding is None:
        return (name,)
    return (embedding.trigger, *([stem_beside_embedding(name)] if section.network else []))


def resolution(section: DiffusionProcess) -> int:
    """The largest side in pixels of what is trained on."""
    if isinstance(section, SliderProcess):
        return max(side for size in section.slider.resolutions for side in size)
    return max(side for dataset in section.datasets for side in dataset.resolution)


def intervals(section: TrainingSection) -> dict[str, Any]:
    """How often to save, preview and log, as keywords of Outputs."""
    train = section.train
    return {
        "save_every": section.save.save_every,
        "sample_every": section.sample.sample_every,
        "keep": section.save.max_step_saves_to_keep,
        "log_every": section.logging.log_every,
        "sample_first": not train.skip_first_sample,
        "force_first_sample": train.force_first_sample,
    }


def identity(section: TrainingSection, order: EpochOrder, nature: dict[str, Any]) -> RunIdentity:
    """What a checkpoint remembers of its run, to notice that it is asked to go on with another.

    nature: what is known of the model once it is loaded.
    """
    from jobs.nature import known_nature
    from toolkit.training.run_state import RunIdentity

    return RunIdentity(
        nature=known_nature(section) | nature,
        items=order.fingerprint,
        num_items=order.num_items,
        batches_per_epoch=order.num_batches,
        batch_size=section.train.batch_size,
        accumulation=accumulation(section, order),
    )


def averaged(averages: Averages | None) -> AbstractContextManager[None]:
    """A context in which the model has its averaged weights, if there are any."""
    return averages.applied() if averages is not None else nullcontext()


def with_seed(request: SampleRequest) -> SampleRequest:
    """The request with a seed drawn now where it asks for a random one."""
    return replace(request, seed=secrets.randbelow(2**32)) if request.seed == RANDOM_SEED else request


def drawable(request: SampleRequest, model: ModelConfig) -> SampleRequest:
    """The request with its seed drawn, and sides of whole tokens where the model is a transformer."""
    request = with_seed(request)
    if find_architecture(model.arch).patch is None:
        return request
    unit = size_multiple(model)
    width, height = (max(unit, side // unit * unit) for side in (request.width, request.height))
    return replace(request, width=width, height=height)


def recipe(request: SampleRequest, model: ModelConfig, **more: Any) -> dict[str, Any]:
    """How a picture was made, for its metadata; of the model's path only the last part is told."""
    return asdict(request) | {"model": Path(model.name_or_path).name} | more
