"""Which architectures there are, as data: read by forms, checks and error messages. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from toolkit.errors import ModelError, Problem, did_you_mean
from toolkit.models.file_keys import FLUX_FILE, SD15_FILE, SDXL_FILE, FileLayout


@dataclass(frozen=True, slots=True)
class PromptReader:
    """A text encoder that bounds the length of prompts: the folders of its tokenizer and of itself.

    windows: how many windows of tokens are read, a longer prompt is refused; length: tokens of a window with its
    `marks`, where the model's own files do not say less, and unguided_length for models without a guidance
    embedding; counts_marks: whether its marks count when a user is told the length of a prompt.
    """

    tokenizer: str
    encoder: str
    windows: int = 1
    length: int = 77
    unguided_length: int | None = None
    marks: int = 2
    counts_marks: bool = False


@dataclass(frozen=True, slots=True)
class ArchitectureEntry:
    """One architecture. loader: "module:function" with the arguments of toolkit.models.sd15.loading.load.

    resolution: the side in pixels its base models were trained at; noise_scheduler: as train.noise_scheduler.
    size_multiple: what sides of pictures are multiples of, in pixels; patch: latents that a transformer's
    token has along a side, None for a UNet. embedding_keys: what a file of textual inversion calls the
    vectors of each text encoder, in their order; empty where none can be learned. own_keys: keys of a config
    that only such models read. distilled: guidance is an input of the network, so that pictures are drawn
    without a negative prompt. num_controls: how many control pictures of an item it sees, at most.
    prompt_readers: what bounds the length of a prompt, known without loading. single_file: how a model in one
    file is known.
    """

    name: str
    title: str
    loader: str | None = None
    aliases: tuple[str, ...] = ()
    noise_scheduler: str = "flowmatch"
    resolution: int = 1024
    size_multiple: int = 16
    patch: int | None = None
    embedding_keys: tuple[str, ...] = ()
    own_keys: tuple[str, ...] = ()
    distilled: bool = False
    num_controls: int = 0
    prompt_readers: tuple[PromptReader, ...] = ()
    single_file: FileLayout | None = None

    @property
    def supported(self) -> bool:
        """Whether a model of this architecture can be loaded today."""
        return self.loader is not None

    def load(self) -> Callable[..., Any]:
        """The loading function, imported now. Raises ModelError if the architecture is not supported yet."""
        if self.loader is None:
            ready = ", ".join(name for name, entry in ARCHITECTURES.items() if entry.supported)
            problem = f"{self.name} ({self.title}) is not supported yet"
            raise ModelError(Problem("model.arch", problem, key="model.arch", remedy=f"supported: {ready}"))
        module, _, attribute = self.loader.partition(":")
        return getattr(import_module(module), attribute)


# Stable Diffusion XL and those of its layout with a smaller UNet.
_sdxl = partial(
    ArchitectureEntry,
    loader="toolkit.models.sdxl.loading:load",
    noise_scheduler="ddpm",
    resolution=1024,
    size_multiple=32,
    embedding_keys=("clip_l", "clip_g"),
    prompt_readers=(
        PromptReader("tokenizer", "text_encoder", windows=3),
        PromptReader("tokenizer_2", "text_encoder_2", windows=3),
    ),
    single_file=SDXL_FILE,
)
# FLUX.1 and those of its layout.
_flux = partial(
    ArchitectureEntry,
    loader="toolkit.models.flux.loading:load",
    patch=2,
    own_keys=("model.extras_name_or_path", "model.use_flux_cfg", "train.bypass_guidance_embedding"),
    distilled=True,
    # CLIP only sums a prompt up; T5 reads it.
    prompt_readers=(
        PromptReader(
            "tokenizer_2", "text_encoder_2", length=512, unguided_length=256, marks=1, counts_marks=True
        ),
    ),
    single_file=FLUX_FILE,
)

_ENTRIES = [
    ArchitectureEntry(
        "sd15",
        "Stable Diffusion 1.x",
        "toolkit.models.sd15.loading:load",
        aliases=("sd1", "sd1.5"),
        noise_scheduler="ddpm",
        resolution=512,
        size_multiple=64,
        embedding_keys=("emb_params",),
        prompt_readers=(PromptReader("tokenizer", "text_encoder", windows=3),),
        single_file=SD15_FILE,
    ),
    ArchitectureEntry("sd2", "Stable Diffusion 2.x", noise_scheduler="ddpm", resolution=768),
    _sdxl("sdxl", "Stable Diffusion XL", aliases=("xl",)),
    _sdxl("ssd", "Segmind SSD-1B"),
    _sdxl("vega", "Segmind Vega"),
    ArchitectureEntry("sd3", "Stable Diffusion 3", aliases=("sd3.5",)),
    ArchitectureEntry("pixart", "PixArt-alpha", noise_scheduler="ddpm"),
    ArchitectureEntry("pixart_sigma", "PixArt-Sigma", noise_scheduler="ddpm"),
    ArchitectureEntry("auraflow", "AuraFlow"),
    _flux("flux", "FLUX.1", aliases=("flux1",)),
    _flux("flex1", "Flex.1"),
    ArchitectureEntry("flex2", "Flex.2"),
    ArchitectureEntry("flux_kontext", "FLUX.1 Kontext"),
    ArchitectureEntry("flux2", "FLUX.2"),
    ArchitectureEntry("lumina2", "Lumina Image 2"),
    ArchitectureEntry("chroma", "Chroma"),
    ArchitectureEntry("chroma_radiance", "Chroma Radiance"),
    ArchitectureEntry("hidream", "HiDream I1"),
    ArchitectureEntry("hidream_e1", "HiDream E1"),
    ArchitectureEntry("f-lite", "F Lite"),
    ArchitectureEntry("omnigen2", "OmniGen 2"),
    ArchitectureEntry("qwen_image", "Qwen-Image"),
    ArchitectureEntry("qwen_image_edit", "Qwen-Image-Edit"),
    ArchitectureEntry("qwen_image_edit_plus", "Qwen-Image-Edit Plus"),
    ArchitectureEntry("wan21", "Wan 2.1", aliases=("wan21:1b", "wan21:14b")),
    ArchitectureEntry("wan21_i2v", "Wan 2.1 image to video", aliases=("wan21_i2v:14b",)),
    ArchitectureEntry("wan22_5b", "Wan 2.2 5B"),
    ArchitectureEntry("wan22_14b", "Wan 2.2 14B", aliases=("wan22_14b:t2v",)),
    ArchitectureEntry("wan22_14b_i2v", "Wan 2.2 14B image to video"),
    ArchitectureEntry("zimage", "Z-Image", aliases=("zimage:turbo", "zimage:deturbo")),
    ArchitectureEntry("cogview4", "CogView 4"),
]

ARCHITECTURES: dict[str, ArchitectureEntry] = {entry.name: entry for entry in _ENTRIES}
_BY_ALIAS = {alias: entry for entry in _ENTRIES for alias in (entry.name, *entry.aliases)}


def find_architecture(name: str) -> ArchitectureEntry:
    """The entry of a name or alias; an `arch:tag` counts as its arch. Raises ModelError with a suggestion."""
    key = name.lower()
    entry = _BY_ALIAS.get(key) or _BY_ALIAS.get(key.partition(":")[0])
    if entry is not None:
        return entry
    guess = did_you_mean(name, _BY_ALIAS)
    hint = f"did you mean '{guess}'?" if guess else f"known: {', '.join(ARCHITECTURES)}"
    raise ModelError(Problem("model.arch", f"unknown architecture '{name}'; {hint}", key="model.arch"))


def pipeline_architecture(class_name: str) -> ArchitectureEntry | None:
    """The entry whose base models are saved as this pipeline class of diffusers, or None."""
    return ARCHITECTURES.get(_PIPELINES.get(class_name, ""))


def other_pipeline(found: str, title: str) -> tuple[str, str | None]:
    """(message, remedy) for a folder whose pipeline class `found` is not that of the architecture `title`."""
    entry = pipeline_architecture(found)
    return f"holds a {found}, not {title}", f"set model.arch: {entry.name}" if entry is not None else None


_PIPELINES = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart_sigma",
    "AuraFlowPipeline": "auraflow",
    "FluxPipeline": "flux",
    "FluxKontextPipeline": "flux_kontext",
    "Flux2Pipeline": "flux2",
    "Lumina2Pipeline": "lumina2",
    "ChromaPipeline": "chroma",
    "HiDreamImagePipeline": "hidream",
    "QwenImagePipeline": "qwen_image",
    "QwenImageEditPipeline": "qwen_image_edit",
    "QwenImageEditPlusPipeline": "qwen_image_edit_plus",
    "WanPipeline": "wan21",
    "WanImageToVideoPipeline": "wan21_i2v",
    "ZImagePipeline": "zimage",
    "CogView4Pipeline": "cogview4",
}
