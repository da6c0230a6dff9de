"""What a checkpoint says that it belongs to, held against a config."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.runs.lineage import ForeignCheckpointError, differences, foreign_checkpoint, require_same

LORA = {
    "optimizer": "adamw", "adapter": "LoRA with alpha 2", "embedding": None, "network.conv": None,
    "network.linear": 4, "objective": "epsilon", "base model": "21b6",
}  # fmt: skip
VAE = {"optimizer": "adamw", "trained part": "autoencoder"}
WHOLE = {**LORA, "adapter": None, "base model": None}
WORD = {**LORA, "adapter": None, "embedding": "4 vectors"}


def checkpoint(root: Path, step: int, nature: dict[str, Any]) -> Path:
    folder = root / f"step_{step:09d}"
    folder.mkdir(parents=True)
    state = json.dumps({"step": step, "identity": {"nature": nature}}).encode()
    (folder / "state.json").write_bytes(state)
    files = {"state.json": hashlib.sha256(state).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    return folder


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        (LORA, LORA, []),
        (WHOLE, WHOLE, []),
        (VAE, VAE, []),
        (LORA, VAE, ["was made by training a network (LoRA), this config trains an autoencoder"]),
        (VAE, WHOLE, ["was made by training an autoencoder, this config trains the whole model"]),
        (WHOLE, LORA, ["was made by training the whole model, this config trains a network (LoRA)"]),
        (WHOLE, WORD, ["was made by training the whole model, this config trains an embedding"]),
        (
            LORA,
            {**LORA, "embedding": "4 vectors"},
            ["was made by training a network (LoRA), this config trains a network (LoRA) and an embedding"],
        ),
        (
            WORD,
            {**WORD, "embedding": "2 vectors"},
            ["was made with embedding.tokens 4, this config has 2"],
        ),
        (
            LORA,
            {**LORA, "base model": "77aa"},
            ["was made on another base model (hash 21b6, this config's has 77aa)"],
        ),
        (
            LORA,
            {**LORA, "optimizer": "lion", "network.linear": 8, "adapter": "LoHa with alpha 8"},
            [
                "was made with optimizer adamw, this config has lion",
                "was made with network.linear 4, this config has 8",
                "was made with network.type lora, this config has loha",
                "was made with network.linear_alpha 2, this config has 8",
            ],
        ),
    ],
)
def test_what_differs_is_said_in_the_words_of_a_config(before, now, lines):
    assert differences(before, now) == lines


def test_what_a_checkpoint_of_an_earlier_version_does_not_tell_does_not_count():
    old = {key: value for key, value in LORA.items() if "." not in key}
    assert differences(old, LORA) == []
    known = {key: value for key, value in LORA.items() if key not in ("objective", "base model")}
    assert differences(LORA, known) == []


def test_the_newest_checkpoint_that_tells_is_asked(tmp_path):
    assert foreign_checkpoint(tmp_path, LORA) == []
    checkpoint(tmp_path, 1, WHOLE)
    checkpoint(tmp_path, 2, LORA)
    damaged = checkpoint(tmp_path, 3, WHOLE)
    (damaged / "state.json").write_text("{}")
    for content in ("[]", "{", '{"files": {}}'):
        (checkpoint(tmp_path, 4 + len(content), WHOLE) / "manifest.json").write_text(content)
    require_same(tmp_path, LORA)
    with pytest.raises(ForeignCheckpointError) as refusal:
        require_same(tmp_path, {**LORA, "optimizer": "lion"})
    (problem,) = refusal.value.problems
    assert problem.code == "run.foreign_checkpoint" and problem.file == str(tmp_path / "step_000000002")
    assert refusal.value.exit_code == 1
