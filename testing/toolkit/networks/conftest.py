"""Fresh pipelines of a tiny Stable Diffusion 1.x, and LoRAs with something learned."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from diffusers import StableDiffusionPipeline

from testing.tiny_models import tiny_pipeline
from toolkit.networks.adapters import AdapterNetwork
from toolkit.networks.lora import attach_lora
from toolkit.seeding import keyed_generator

RANK, ALPHA = 4, 3.0  # alpha / rank = 0.75: a loader that forgets it is seen


@pytest.fixture(scope="session")
def sd15_pipeline() -> StableDiffusionPipeline:
    return tiny_pipeline()


@pytest.fixture
def new_pipeline(sd15_pipeline: StableDiffusionPipeline) -> Callable[[], StableDiffusionPipeline]:
    def copy() -> StableDiffusionPipeline:
        pipeline = StableDiffusionPipeline(
            **deepcopy(sd15_pipeline.components), requires_safety_checker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return copy


@pytest.fixture
def attach() -> Callable[..., AdapterNetwork]:
    """attach(pipeline, components, learned=True): a LoRA whose `up` is as if trained, or zero."""

    def attach_to(
        pipeline: StableDiffusionPipeline,
        components: tuple[str, ...] = ("unet", "text_encoder"),
        *,
        learned: bool = True,
        **options: object,
    ) -> AdapterNetwork:
        settings: dict[str, object] = {"rank": RANK, "alpha": ALPHA, "seed": 7, **options}
        network = attach_lora({name: getattr(pipeline, name) for name in components}, **settings)  # type: ignore[arg-type]
        if learned:
            with torch.no_grad():
                for name, parameter in network.named_parameters().items():
                    if "lora_B" in name:
                        parameter.normal_(std=0.3, generator=keyed_generator("learned", name))
        return network

    return attach_to
