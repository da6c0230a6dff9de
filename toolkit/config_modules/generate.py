"""The `generate` section: which pictures a generation job writes."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Annotated, ClassVar

from pydantic import Field

from toolkit.config_modules.base import Float, Int, Section, Text
from toolkit.config_modules.prompt_flags import RANDOM_SEED, SEEDS
from toolkit.config_modules.sample import (
    SETTINGS,
    ImageFormat,
    Negative,
    Prompt,
    SampleRequest,
    SamplerName,
    Seed,
    Size,
    make_request,
)
from toolkit.config_modules.text_lists import list_or_file
from toolkit.seeding import keyed_random


class GenerateConfig(Section):
    """Pictures of a list of prompts."""

    NOT_YET: ClassVar = {"prompt_2": None, "neg_2": None, "compile": False}

    prompts: Annotated[list[Prompt], list_or_file("prompt")] = Field(
        min_length=1, description="Texts to draw, or the path of a text file with one on each line."
    )
    sampler: SamplerName = Field(
        "ddpm", description="Sampler by name; a flow-matching model takes flowmatch."
    )
    width: Size = Field(512, description="Pixels, rounded down to a multiple of 8 (of 16 for a transformer).")
    height: Size = Field(
        512, description="Pixels, rounded down to a multiple of 8 (of 16 for a transformer)."
    )
    size_list: list[Annotated[list[Size], Field(min_length=2, max_length=2)]] | None = Field(
        None, description="Sizes [width, height] in pixels, one picked at random for each picture."
    )
    neg: Negative = Field("", description="What to steer away from.")
    seed: Seed = Field(
        RANDOM_SEED,
        description="Seed of the starting noise; repeats count up, also a flag's; -1: a new one each.",
    )
    guidance_scale: Float = Field(7.0, ge=0, description="Strength of classifier-free guidance; 1 is none.")
    guidance_rescale: Float = Field(0.0, ge=0, le=1, description="Share of variance correction, in [0, 1].")
    sample_steps: Int = Field(20, ge=1, description="Denoising steps.")
    ext: ImageFormat = Field(
        "png", description="File format: png, jpg or webp; png carries its recipe as metadata."
    )
    prompt_file: bool = Field(False, description="Write each picture's prompt to a .txt beside it.")
    num_repeats: Int = Field(1, ge=1, description="Pictures of each prompt.")
    random_prompts: bool = Field(
        False, description="Draw max_images prompts, each joined from random ones of the list."
    )
    max_random_per_prompt: Int = Field(
        1, ge=1, description="With random_prompts: the most that are joined into one."
    )
    max_images: Int = Field(10000, ge=1, le=1_000_000, description="The most pictures that are written.")
    shuffle: bool = Field(False, description="Draw the prompts in random order.")
    lora_path: Text | None = Field(None, description="LoRA file applied to the model (null: none).")
    network_multiplier: Float = Field(1.0, description="Strength of the LoRA.")

    def requests(self, *, draw: int = 0) -> list[SampleRequest]:
        """Every picture to draw, in order. `draw` keys the random choices when seed is -1."""
        key = draw if self.seed == RANDOM_SEED else self.seed
        random = keyed_random("generate", key)
        prompts = list(self.prompts)
        if self.random_prompts:
            counts = [random.randint(1, self.max_random_per_prompt) for _ in range(self.max_images)]
            prompts = [", ".join(random.choice(prompts) for _ in range(count)) for count in counts]
        if self.shuffle:
            random.shuffle(prompts)
        pairs = ((prompt, repeat) for prompt in prompts for repeat in range(self.num_repeats))
        settings = {name: getattr(self, name) for name in SETTINGS}
        requests = []
        for prompt, repeat in islice(pairs, self.max_images):
            width, height = random.choice(self.size_list) if self.size_list else (self.width, self.height)
            request = make_request(prompt, settings | {"width": width, "height": height})
            if request.seed != RANDOM_SEED:  # also one from a flag: the same picture again is no use
                request = replace(request, seed=(request.seed + repeat) % SEEDS)
            requests.append(request)
        return requests
