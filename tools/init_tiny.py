"""Write the configs, the tokenizer and the scheduler of the embedded model, without weights.

    python -m tools.init_tiny [--out toolkit/assets/tiny_sd]

The files depend on nothing but this file and the captions of tools/draw_shapes.py. With them a job that says
`model: {name_or_path: tiny-sd, from_config: true}` builds the model from random weights.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from toolkit.paths import EMBEDDED_MODELS
from tools.draw_shapes import BACKGROUNDS, COLOURS, POSITIONS, RADII, SHAPES, captions

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 24
TEXT_WIDTH = 96
LATENT_CHANNELS = 4
SAMPLE_SIZE = 32  # pixels
# Words beyond the drawings' captions with a token of their own, so that prompts of fine-tunes stay short.
# Any other word is spelled in smaller pieces, down to bytes.
OTHER_WORDS = """
a an the this that one two three four five six seven eight nine ten of in on at by with without and or to
from for under over near behind between inside top bottom left right middle centre center side front back
is are photo picture image drawing painting sketch icon logo emoji sticker cartoon illustration style art
design render simple flat glossy shiny matte soft hard round sharp bright dark light pale deep plain
empty full big tiny huge small medium large long short tall wide thin thick new old happy sad angry
smiling laughing crying sleeping surprised winking cute funny cool hot cold face head eye eyes mouth nose
ear ears hand hands hair hat smile tears sunglasses heart star moon sun sky cloud rain snow water fire
earth stone wood metal gold silver glass plastic paper cloth tree leaf flower grass rose mountain sea
river beach island forest field road house building door window room bed chair table lamp book pen box
bag cup bottle plate bowl clock phone computer camera car bus train boat ship plane bike rocket ball game
music guitar drum king queen man woman boy girl baby person people friend cat dog mouse rabbit fox bear
panda koala tiger lion cow pig frog monkey horse sheep goat bird chicken duck owl fish whale shark
octopus snail bee ant butterfly snake turtle dragon robot ghost alien apple pear orange lemon banana
grapes cherry strawberry peach melon tomato carrot corn bread cheese egg meat pizza burger cake cookie
candy coffee tea milk juice rainbow cyan magenta lime violet gray grey beige turquoise background shape
colour color outline border line dot stripe pattern texture shadow glow 2d 3d
"""


def _byte_characters() -> list[str]:
    """The 256 printable stand-ins for bytes of GPT-2's and CLIP's tokenizers, in their order of ids."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def caption_words() -> list[str]:
    """Every word of the drawings' captions, sorted."""
    texts = {
        text
        for shape in SHAPES
        for colour in COLOURS
        for background in BACKGROUNDS
        for size in RADII
        for position in POSITIONS
        for text in captions(shape, colour, background, size, position)
    }
    return sorted({word for text in texts for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text)})


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges of byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) until every word is one token."""
    spelled = [(*word[:-1], f"{word[-1]}</w>") for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in spelled for pair in zip(word, word[1:], strict=False))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(word, best) for word in spelled]


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    joined: list[str] = []
    for piece in word:
        # Leftmost first, as the tokenizer does: a piece made by this merge is not merged again.
        if joined and (joined[-1], piece) == pair:
            joined[-1] = "".join(pair)
        else:
            joined.append(piece)
    return tuple(joined)


def tokenizer_files() -> tuple[dict[str, int], list[str]]:
    """vocab.json and the lines of merges.txt.

    As CLIP's: bytes, bytes at a word's end, merges, specials.
    """
    characters = _byte_characters()
    merges = learn_merges([*caption_words(), *OTHER_WORDS.split()])
    joined = dict.fromkeys("".join(pair) for pair in merges)
    tokens = [*characters, *(f"{character}</w>" for character in characters), *joined, BOS, EOS]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return vocabulary, ["#version: 0.2", *(" ".join(pair) for pair in merges)]


def configs(vocabulary: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The JSON files of the folder by their path."""
    ends = {"bos_token_id": vocabulary[BOS], "eos_token_id": vocabulary[EOS], "pad_token_id": vocabulary[EOS]}
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.1",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "DDIMScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "prediction_type": "v_prediction",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": len(vocabulary),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 4 * TEXT_WIDTH,
            "projection_dim": TEXT_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_LENGTH,
            "hidden_act": "quick_gelu",
            **ends,
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": SAMPLE_SIZE // 4,
            "in_channels": LATENT_CHANNELS,
            "out_channels": LATENT_CHANNELS,
            "block_out_channels": [64, 128, 128],
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 16,
            "attention_head_dim": 4,
            "cross_attention_dim": TEXT_WIDTH,
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL",
            "sample_size": SAMPLE_SIZE,
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": LATENT_CHANNELS,
            "block_out_channels": [16, 32, 64],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "mid_block_add_attention": False,
            "scaling_factor": 1.0,
        },
    }


def write_tiny(out: Path) -> Path:
    """Write the folder's files, leaving weights that lie there alone; returns the folder."""
    from transformers import CLIPTokenizer

    vocabulary, merges = tokenizer_files()
    for name, values in configs(vocabulary).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    pairs = [tuple(line.split(" ")) for line in merges[1:]]
    tokenizer = CLIPTokenizer(vocabulary, pairs, model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(out / "tokenizer")
    # Older versions of transformers, and other programs, read these two.
    (out / "tokenizer" / "vocab.json").write_text(
        json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (out / "tokenizer" / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    for path in out.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return out


def main(argv: list[str] | None = None) -> int:
    """Write the embedded model's files except its weights."""
    parser = argparse.ArgumentParser(prog="python -m tools.init_tiny", description=__doc__)
    parser.add_argument("--out", type=Path, default=EMBEDDED_MODELS["tiny-sd"], help="folder to write into")
    options = parser.parse_args(argv)
    sys.stdout.write(f"{write_tiny(options.out)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
