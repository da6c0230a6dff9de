"""The `sample` section: which previews are drawn, and how often."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from toolkit.config_modules.base import Float, Int, Section, Text, one_of
from toolkit.config_modules.names import SAMPLERS, SAMPLERS_NOT_YET
from toolkit.config_modules.prompt_flags import RANDOM_SEED, SEEDS, parse_prompt_flags
from toolkit.errors import ConfigError

SIZE_STEP = 8  # pixels; every latent space of this family has sides in eighths
_NO_VIDEO = "only counts with num_frames above 1"

SamplerName = Annotated[str, *one_of("sampler", tuple(SAMPLERS), SAMPLERS_NOT_YET)]
ImageFormat = Annotated[
    Literal["jpg", "png", "webp"],
    *one_of("image format", {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp",
                             ".jpg": "jpg", ".png": "png",
                             ".webp": "webp"}),
]  # fmt: skip


def round_size(pixels: int) -> int:
    """Pixels rounded down to a multiple of 8, at least 8."""
    return max(SIZE_STEP, pixels // SIZE_STEP * SIZE_STEP)


def _flags_are_valid(prompt: str) -> str:
    try:
        parse_prompt_flags(prompt)
    except ConfigError as error:
        text = "; ".join(problem.message for problem in error.problems)
        raise PydanticCustomError("prompt_flag", "{text}", {"text": text}) from None
    return prompt


def _no_is_empty(value: Any) -> Any:
    return "" if value is False else value


Size = Annotated[Int, Field(ge=1), AfterValidator(round_size)]
Seed = Annotated[Int, Field(ge=RANDOM_SEED, lt=SEEDS)]
Strength = Annotated[Float, Field(ge=0)]
Prompt = Annotated[Text, AfterValidator(_flags_are_valid)]
Negative = Annotated[Text, BeforeValidator(_no_is_empty)]  # ai-toolkit's default is `neg: false`


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One picture to draw, nothing left open: sizes in pixels; seed -1 means a new one at each drawing."""

    prompt: str
    neg: str
    width: int
    height: int
    seed: int
    guidance_scale: float
    guidance_rescale: float
    sample_steps: int
    sampler: str
    network_multiplier: float


SETTINGS = tuple(each.name for each in fields(SampleRequest) if each.name != "prompt")


def place_trigger(prompt: str, trigger_word: str | None) -> str:
    """`[trigger]` in a sample prompt becomes the trigger word; it is not added where it is absent."""
    return prompt.replace("[trigger]", trigger_word or "").strip()


class SampleItem(Section):
    """One preview; what it leaves out comes from the `sample` section."""

    NOT_YET: ClassVar = {
        "num_frames": 1, "ctrl_img": None, "ctrl_img_1": None, "ctrl_img_2": None, "ctrl_img_3": None,
        "do_cfg_norm": False,
    }  # fmt: skip
    IDLE: ClassVar = {"fps": (16, _NO_VIDEO), "ctrl_idx": (0, "only counts with ctrl_img")}

    prompt: Prompt = Field(
        description="Text to draw; flags such as `--w 512 --seed 7` override the settings."
    )
    width: Size | None = Field(
        None, description="Pixels, rounded down to a multiple of 8 (of 16 for a transformer)."
    )
    height: Size | None = Field(
        None, description="Pixels, rounded down to a multiple of 8 (of 16 for a transformer)."
    )
    neg: Negative | None = Field(None, description="What to steer away from.")
    seed: Seed | None = Field(None, description="Seed of the starting noise; -1 draws a new one each time.")
    guidance_scale: Float | None = Field(
        None, ge=0, description="Strength of classifier-free guidance; 1 is none."
    )
    guidance_rescale: Float | None = Field(
        None, ge=0, le=1, description="Share of variance correction, in [0, 1]."
    )
    sample_steps: Int | None = Field(None, ge=1, description="Denoising steps.")
    sampler: SamplerName | None = Field(None, description="Sampler by name.")
    network_multiplier: Float | None = Field(
        None, description="Strength of the trained network; 0 is without it."
    )


class SampleConfig(Section):
    """Previews drawn while training, by diffusers' own pipeline."""

    NOT_YET: ClassVar = {
        "sample_start_step": 0, "num_frames": 1, "extra_values": None, "do_cfg_norm": False, "ctrl_img": None,
    }  # fmt: skip
    IDLE: ClassVar = {
        "fps": (16, _NO_VIDEO),
        "adapter_conditioning_scale": (1.0, "only counts with an adapter"),
        "refiner_start_at": (0.5, "the supported models have no refiner"),
    }  # fmt: skip
    NULL_MEANS: ClassVar = {"sample_every": 0}

    sampler: SamplerName = Field(
        "ddpm", description="Sampler by name; a flow-matching model takes flowmatch."
    )
    sample_every: Int = Field(
        100, ge=0, description="Steps between previews; 0 or null draws none while training."
    )
    width: Size = Field(512, description="Pixels, rounded down to a multiple of 8 (of 16 for a transformer).")
    height: Size = Field(
        512, description="Pixels, rounded down to a multiple of 8 (of 16 for a transformer)."
    )
    neg: Negative = Field("", description="What to steer away from.")
    seed: Seed = Field(0, description="Seed of the starting noise; -1 draws a new one each time.")
    walk_seed: bool = Field(False, description="The i-th preview uses seed + i.")
    guidance_scale: Float = Field(7.0, ge=0, description="Strength of classifier-free guidance; 1 is none.")
    guidance_rescale: Float = Field(0.0, ge=0, le=1, description="Share of variance correction, in [0, 1].")
    sample_steps: Int = Field(20, ge=1, description="Denoising steps.")
    network_multiplier: Float = Field(1.0, description="Strength of the trained network; 0 is without it.")
    format: ImageFormat = Field("jpg", description="File format of the previews: jpg, png or webp.")
    prompts: list[Prompt] = Field([], description="Texts to draw; the short form of samples.")
    samples: list[SampleItem] = Field([], description="Previews with settings of their own.")
    keeper_sheet: bool = Field(
        False,
        description="At the end, draw every save that is kept at several strengths: keeper_sheet.png.",
    )
    keeper_strengths: list[Strength] = Field(
        [0.6, 0.8, 1.0], min_length=1, description="Strengths of the network on that sheet."
    )

    def requests(self, trigger_word: str | None = None) -> list[SampleRequest]:
        """Every preview with its flags, its item's and the section's settings resolved, in order."""
        items = [*self.samples, *(SampleItem(prompt=prompt) for prompt in self.prompts)]
        return [self._request(item, index, trigger_word) for index, item in enumerate(items)]

    def _request(self, item: SampleItem, index: int, trigger_word: str | None) -> SampleRequest:
        walks = self.walk_seed and self.seed != RANDOM_SEED
        seed = (self.seed + index) % SEEDS if walks else self.seed
        values = {name: getattr(self, name) for name in SETTINGS} | {"seed": seed}
        values |= {name: value for name in SETTINGS if (value := getattr(item, name)) is not None}
        return make_request(item.prompt, values, trigger_word)


def make_request(prompt: str, values: dict[str, Any], trigger_word: str | None = None) -> SampleRequest:
    """A request from a prompt with flags and the settings that the flags override."""
    text, flags = parse_prompt_flags(prompt)
    values = values | flags
    values["width"], values["height"] = round_size(values["width"]), round_size(values["height"])
    values["neg"] = place_trigger(values["neg"], trigger_word)
    return SampleRequest(prompt=place_trigger(text, trigger_word), **values)
