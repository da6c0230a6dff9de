"""Models of transformers that put pictures into words: BLIP, Florence-2, LLaVA, Qwen-VL and their like."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from toolkit.errors import ConfigError, ModelError, Problem
from toolkit.paths import resolve_model

MODEL_KEY = "model"
# What a model that can follow instructions is asked where the user asks nothing.
INSTRUCTION = (
    "Describe this picture in one paragraph for someone who has to draw it: the subject first, then its "
    "surroundings, the light, the colours and the style. State only what is visible."
)
_WHERE = "give a folder of transformers, or a hub id such as OWNER/NAME"
_ASK = "ask otherwise; docs/captioning.md tells what each kind of model takes"
FLORENCE_TASK = "<MORE_DETAILED_CAPTION>"


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said about a picture; cut: it was stopped before it came to an end."""

    text: str
    cut: bool


class Captioner:
    """A model, its processor, and how this kind of model is asked."""

    def __init__(
        self, model: Any, processor: Any, *, prompt: str | None, max_new_tokens: int = 160, num_beams: int = 1
    ) -> None:
        self.model = model
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.num_beams = num_beams
        self._is_chat = bool(getattr(processor, "chat_template", None))
        has_tasks = FLORENCE_TASK in getattr(processor, "task_prompts_without_inputs", {})
        usual = INSTRUCTION if self._is_chat else FLORENCE_TASK if has_tasks else None
        self.prompt = prompt or usual
        self._was_asked = bool(prompt)

    @torch.no_grad()
    def caption(self, images: Sequence[Image.Image]) -> list[Said]:
        """What the model says about each picture (8-bit RGB), by greedy or beam search: equal every time."""
        try:
            inputs = self._inputs(list(images)).to(self.model.device, self.model.dtype)
            length = self._length(inputs.get("input_ids"))
            ids: Tensor = self.model.generate(
                **inputs, max_new_tokens=length, num_beams=self.num_beams,
                do_sample=False, temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
        except ValueError as error:
            if not self._was_asked:
                raise
            reason = f"the model does not take it: {' '.join(str(error).split())}"
            raise ConfigError(Problem("caption.argument", reason, key="prompt", remedy=_ASK)) from error
        ids = _without_prompt(ids, inputs.get("input_ids"))
        texts = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [Said(text, self._is_cut(row, length)) for text, row in zip(texts, ids, strict=True)]

    def _length(self, prompt: Tensor | None) -> int:
        """The most tokens of an answer: those asked for, or as many as the model has places for."""
        config = self.model.config
        places = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
        if not isinstance(places, int):
            return self.max_new_tokens
        taken = 1 if prompt is None or config.is_encoder_decoder else 1 + prompt.shape[1]
        if taken >= places:
            reason = f"{taken} tokens, and the model has places for {places}"
            raise ConfigError(Problem("caption.argument", reason, key="prompt", remedy="shorten it"))
        return min(self.max_new_tokens, places - taken)

    def _inputs(self, images: list[Image.Image]) -> Any:
        """The processor's batch for pictures and prompt."""
        texts: dict[str, Any] = {}
        if self._is_chat:
            content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            texts = {"text": [text] * len(images), "padding": True}
        elif self.prompt is not None:
            texts = {"text": [self.prompt] * len(images), "padding": True}
        return self.processor(images=images, return_tensors="pt", **texts)

    def _is_cut(self, ids: Tensor, length: int) -> bool:
        """Whether an output (L,) came to the limit of its length before its own end."""
        config = self.model.generation_config
        ends = {config.pad_token_id, self.processor.tokenizer.pad_token_id}
        eos = config.eos_token_id
        ends |= set(eos) if isinstance(eos, list | tuple) else {eos}
        forced = getattr(config, "forced_eos_token_id", None) is not None  # some are made to end there
        return len(ids) >= length and (forced or int(ids[-1]) not in ends)


def _without_prompt(ids: Tensor, prompt: Tensor | None) -> Tensor:
    """Outputs (B, L) without the prompts (B, P) that models of one stack repeat in front of them.

    BLIP's prompt, which its caption continues, is not repeated token by token, and stays.
    """
    if prompt is None or ids.shape[1] < prompt.shape[1]:
        return ids
    start = ids[:, : prompt.shape[1]]
    return ids[:, prompt.shape[1] :] if torch.equal(start, prompt.to(ids.device)) else ids


def load_captioner(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    prompt: str | None = None,
    max_new_tokens: int = 160,
    num_beams: int = 1,
) -> Captioner:
    """The model of a folder or hub id. Raises ModelError if there is none, or it cannot describe pictures."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    local = resolve_model(name)
    place = name if local is None else str(local)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        # False rather than nothing: else it asks at the keyboard whether to run a model's own code.
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        _require_kind(name, config)
        processor = _load_processor(place, config)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            place, config=config, dtype=dtype, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _refused(name, " ".join(str(error).split()), remedy=None if local else _WHERE) from error
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "right" if config.is_encoder_decoder else "left"
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Captioner(
        model.requires_grad_(False).eval().to(device), processor,
        prompt=prompt, max_new_tokens=max_new_tokens, num_beams=num_beams,
    )  # fmt: skip


def _load_processor(place: str, config: Any) -> Any:
    """The processor of a model without its part for videos, which needs torchvision and reads no pictures."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    if type(config) not in PROCESSOR_MAPPING:
        raise ValueError(f"transformers has no processor for models of type {config.model_type}")
    kind: Any = PROCESSOR_MAPPING[type(config)]
    parts = [part for part in kind.get_attributes() if "video" not in part]
    pictures_only = type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: parts)})
    processor: Any = pictures_only.from_pretrained(place, trust_remote_code=False)  # type: ignore[attr-defined]
    return processor


def _require_kind(name: str, config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        message = f"a model of type {config.model_type} does not put pictures into words"
        raise _refused(name, message, remedy="take BLIP, Florence-2, Qwen-VL or another image-to-text model")


def _refused(name: str, reason: str, remedy: str | None) -> ModelError:
    return ModelError(Problem("model.load", f"'{name}': {reason}", key=MODEL_KEY, remedy=remedy))
