"""The models that GPU benchmarks make have the sizes that were published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from testing.benchmarks.full_size import _makers
from toolkit.paths import ASSETS_ROOT

# Parameters by part, as the model cards and papers give them, in millions.
PUBLISHED = {
    ("sd15", "unet"): 860, ("sd15", "vae"): 84, ("sd15", "text_encoder"): 123,
    ("sdxl", "unet"): 2567, ("sdxl", "text_encoder_2"): 695,
    ("flux", "transformer"): 11901, ("flux", "text_encoder_2"): 4762,
}  # fmt: skip


@pytest.mark.parametrize(("arch", "part"), PUBLISHED, ids="-".join)
def test_a_part_has_the_published_size(arch: str, part: str) -> None:
    path: Path = ASSETS_ROOT / f"{arch}_config" / part / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    with torch.device("meta"):
        module = _makers(arch)[part](config)
    millions = sum(weight.numel() for weight in module.parameters()) / 1e6
    assert millions == pytest.approx(PUBLISHED[arch, part], rel=0.01)
