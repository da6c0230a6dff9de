"""The epoch of a text slider: what is moved, at which size, in place of the pictures of a dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path

import torch

from jobs.diffusion_data import Stream, TrainingData
from jobs.sliders import with_trigger
from toolkit.config_modules.process import SliderProcess
from toolkit.data.items import Batch, Bucket, MediaItem, Placement
from toolkit.data.order import EpochOrder
from toolkit.data.prefetch import prefetch
from toolkit.diffusion.objectives import Objective
from toolkit.diffusion.partial_denoising import noise_levels
from toolkit.errors import ConfigError, Problem
from toolkit.models.base import LatentSpec
from toolkit.paths import resolve_path
from toolkit.seeding import keyed_generator, keyed_random


@dataclass(frozen=True, slots=True)
class Slide:
    """One thing to learn: a class, its two ends, and the strength at which the positive one is learned."""

    target: str
    positive: str
    negative: str
    multiplier: float
    weight: float


def read_slides(section: SliderProcess) -> list[Slide]:
    """Every target in every order of its parts with every phrase of the prompt file. Raises ConfigError."""
    slides = []
    for target, phrase in product(section.slider.targets, _phrases(section)):
        for ends in target.ends():
            positive, negative = ends if target.multiplier > 0 else ends[::-1]
            texts = [
                with_trigger(section, f"{prompt} {phrase}".strip())
                for prompt in (target.target_class, positive, negative)
            ]
            slides.append(Slide(texts[0], texts[1], texts[2], abs(target.multiplier), target.weight))
    return slides


def _phrases(section: SliderProcess) -> list[str]:
    """The lines of the prompt file; without one, nothing is added."""
    if section.slider.prompt_file is None:
        return [""]
    path = resolve_path(section.slider.prompt_file)
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        problem = "there is no phrase in it"
        raise ConfigError(Problem("config.no_prompts", problem, file=str(path), key="slider.prompt_file"))
    return [line for line in lines if line]


def make_items(
    section: SliderProcess, slides: list[Slide], size_multiple: int
) -> dict[str, tuple[MediaItem, Slide]]:
    """An epoch by id: every slide at every size, drawn with the slider both ways, batch_size times.

    network_weight is the strength at which the path to the noisy latents is run, so that batches share it.
    Raises ConfigError for a size that the model cannot draw.
    """
    items = {}
    sizes = [_bucket(size, size_multiple) for size in section.slider.resolutions]
    repeats = range(section.train.batch_size)
    for (index, slide), bucket, sign, repeat in product(enumerate(slides), sizes, (1.0, -1.0), repeats):
        told = [slide.target, slide.positive, slide.negative, slide.multiplier, bucket.width, bucket.height]
        key = hashlib.sha256(json.dumps([*told, index, sign, repeat]).encode()).hexdigest()
        item = MediaItem(
            id=key, path=Path(f"slider target {index}: {slide.target}"), sha256=key, caption=slide.target,
            dataset="slider", bucket=bucket, placement=Placement(bucket.width, bucket.height, 0, 0),
            loss_multiplier=slide.weight, network_weight=sign * slide.multiplier,
        )  # fmt: skip
        items[key] = (item, slide)
    return items


def _bucket(size: tuple[int, int], multiple: int) -> Bucket:
    if any(side % multiple for side in size):
        message = f"{size[0]} x {size[1]} px: this model draws in multiples of {multiple} px"
        raise ConfigError(Problem("config.bad_value", message, key="slider.resolutions"))
    return Bucket(*size)


def make_data(
    section: SliderProcess, items: list[MediaItem], spec: LatentSpec, objective: Objective, seed: int
) -> TrainingData:
    """Batches of keyed noise, each item with the level to which it is to be denoised before its loss."""
    order = EpochOrder(items, section.train.batch_size, seed)
    levels = noise_levels(objective, section.slider.max_denoising_steps)

    def make(indices: tuple[int, ...], epoch: int) -> Batch:
        chosen = tuple(items[index] for index in indices)
        shape = spec.shape(chosen[0].bucket.height, chosen[0].bucket.width)
        noise = [
            torch.randn(shape, generator=keyed_generator("slider_noise", seed, epoch, item.id))
            for item in chosen
        ]
        steps = [keyed_random("slider_steps", seed, epoch, item.id).randrange(len(levels)) for item in chosen]
        return Batch(
            items=chosen,
            captions=tuple(item.caption for item in chosen),
            weights=torch.tensor([item.loss_multiplier for item in chosen]),
            noise=torch.stack(noise),
            t=levels[steps],
        )

    def batches(position: int) -> Iterator[Batch]:
        first, offset = divmod(position, order.num_batches)
        for epoch in count(first):
            for indices in order.batches(epoch)[offset:]:
                yield make(indices, epoch)
            offset = 0

    def stream(position: int) -> Stream:
        made: Generator[Batch, None, None] = prefetch(batches(position))  # type: ignore[assignment]
        return made

    return TrainingData(order, stream)
