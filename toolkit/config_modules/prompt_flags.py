"""Flags inside a prompt, such as `a fox --w 512 --seed 7`, that override its settings. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from toolkit.errors import ConfigError, Problem, did_you_mean

RANDOM_SEED = -1
SEEDS = 2**63  # of them; torch takes no more


def _seed(text: str) -> int:
    seed = int(text)
    if not RANDOM_SEED <= seed < SEEDS:
        raise ValueError
    return seed


# What a reader reads; str reads everything.
_KINDS: dict[Callable[[str], Any], str] = {
    int: "a whole number",
    float: "a number",
    _seed: f"a whole number from {RANDOM_SEED} to {SEEDS - 1}",
}
# Flag -> (the key of a sample item it sets, how to read its value).
FLAGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "n": ("neg", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", _seed),
    "seed": ("seed", _seed),
    "l": ("guidance_scale", float),
    "cfg": ("guidance_scale", float),
    "s": ("sample_steps", int),
    "steps": ("sample_steps", int),
    "m": ("network_multiplier", float),
    "network_multiplier": ("network_multiplier", float),
    "gr": ("guidance_rescale", float),
}
# ai-toolkit's flags for second text encoders, adapters, refiners and video.
FLAGS_NOT_YET = (
    "n2", "p2", "a", "ref", "ev", "extra_values", "frames", "num_frames", "fps", "ctrl_img", "ctrl_idx",
    "ctrl_img_1", "ctrl_img_2", "ctrl_img_3",
)  # fmt: skip

# A flag starts the prompt or follows a space, so that "well--known" and "a cat -- asleep" stay text.
_FLAG = re.compile(r"(?:^|\s)--(?P<name>[A-Za-z]\w*)(?=\s|$|=)=?")


def parse_prompt_flags(text: str) -> tuple[str, dict[str, Any]]:
    """Split a prompt into its words and the settings its flags give. Raises ConfigError for a bad flag.

    >>> parse_prompt_flags("a fox --w 512 --cfg 3.5 --n dark, blurry")
    ('a fox', {'width': 512, 'guidance_scale': 3.5, 'neg': 'dark, blurry'})
    """
    matches = list(_FLAG.finditer(text))
    prompt = text[: matches[0].start()] if matches else text
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    ends = [*(match.start() for match in matches[1:]), len(text)]
    for match, end in zip(matches, ends, strict=False):
        name = match["name"]
        raw = text[match.end() : end].strip()
        if name not in FLAGS:
            problems.append(Problem("config.prompt_flag", _unknown(name)))
            continue
        key, read = FLAGS[name]
        try:
            values[key] = read(raw)
        except ValueError:
            kind = _KINDS[read]
            problems.append(Problem("config.prompt_flag", f"prompt flag --{name} needs {kind}, got '{raw}'"))
    if problems:
        raise ConfigError(problems)
    return prompt.strip(), values


def _unknown(name: str) -> str:
    if name in FLAGS_NOT_YET:
        return f"prompt flag --{name} is not supported yet"
    guess = did_you_mean(name, FLAGS)
    known = ", ".join(f"--{flag}" for flag in FLAGS)
    return f"unknown prompt flag --{name}; " + (f"did you mean --{guess}?" if guess else f"known: {known}")
