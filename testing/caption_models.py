"""Image-to-text models of transformers at toy size with random weights, saved as a hub would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = [
    "a", "an", "the", "of", "in", "one", "red", "blue", "green", "circle", "square", "star", "picture",
    "shows", "describe", "this", "sentence", "light", ".", ",",
]  # fmt: skip
_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
STD = 0.2  # larger than usual, so that pictures make a difference
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


def _tokenizer(special: list[str], **named: Any) -> Any:
    """A tokenizer of whole words; special: the tokens before them, the second the unknown one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=special[1], **named)


def _save(model: Any, processor: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=STD)
    head = (getattr(model, "text_decoder", None) or model).get_output_embeddings()
    vocabulary = processor.tokenizer.get_vocab()
    special = [index for token, index in vocabulary.items() if token not in WORDS]
    with torch.no_grad():
        head.weight[special] = 0  # they are never said
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_blip(folder: Path) -> Path:
    """BLIP: a caption of its own, or one that goes on from a prompt."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = _tokenizer(
        special, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", bos_token="[CLS]", eos_token="[SEP]"
    )
    config = BlipConfig(
        text_config=_TEXT | {
            "vocab_size": len(tokenizer), "encoder_hidden_size": 32, "projection_dim": 32,
            "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
            "sep_token_id": 3,
        },
        vision_config=_TEXT | {"image_size": 32, "patch_size": 8},
        projection_dim=32, image_text_hidden_size=32,
    )  # fmt: skip
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    return _save(BlipForConditionalGeneration(config), BlipProcessor(images, tokenizer), folder)


def save_qwen(folder: Path) -> Path:
    """Qwen2-VL: a chat. Its processor has a part for videos too, which is left out on disk."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    marks = [
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    tokenizer = _tokenizer(
        ["<pad>", "<unk>", *marks], pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=marks
    )
    text = _TEXT | {
        "vocab_size": len(tokenizer), "num_key_value_heads": 2, "max_position_embeddings": 512,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]},
        "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=6, video_token_id=7, vision_start_token_id=4, vision_end_token_id=5,
    )  # fmt: skip
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 16)
    parts = classmethod(lambda _: ["image_processor", "tokenizer"])
    kind: Any = type("Qwen2VLProcessor", (Qwen2VLProcessor,), {"get_attributes": parts})
    return _save(Qwen2VLForConditionalGeneration(config), kind(images, tokenizer, chat_template=CHAT), folder)


def save_florence(folder: Path) -> Path:
    """Florence-2: tasks such as <CAPTION>."""
    from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _tokenizer(
        ["<s>", "<unk>", "<pad>", "</s>"], pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    text = {
        "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 32, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": 512, "bos_token_id": 0, "pad_token_id": 2, "eos_token_id": 3,
        "decoder_start_token_id": 3, "forced_eos_token_id": 3,
    }  # fmt: skip
    vision = {
        "depths": [1] * 4, "embed_dim": [16, 16, 16, 32], "num_heads": [2] * 4, "num_groups": [2] * 4,
        "projection_dim": 32, "window_size": 4, "max_position_embeddings": 16, "max_temporal_embeddings": 4,
    }  # fmt: skip
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=tokenizer.image_token_id)
    size = {"height": 64, "width": 64}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    images.image_seq_length = 5
    processor = Florence2Processor(images, tokenizer, num_additional_image_tokens=1)
    return _save(Florence2ForConditionalGeneration(config), processor, folder)
