"""A tiny Stable Diffusion 1.x on disk, and fresh copies of it to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from testing.tiny_models import build_tiny_sd15
from toolkit.models.sd15.model import SD15


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("models") / "sd15")


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture
def draw() -> Callable[[SD15], Tensor]:
    """draw(model): a picture (32, 32, 3) in [0, 1] of a fixed prompt and seed."""

    def draw_one(model: SD15) -> Tensor:
        pipeline = model.pipeline()
        pipeline.set_progress_bar_config(disable=True)
        return draw_with(pipeline)

    return draw_one


def draw_with(pipeline: object) -> Tensor:
    """A picture (32, 32, 3) in [0, 1] of a fixed prompt and seed, from a pipeline."""
    picture = pipeline(  # type: ignore[operator]
        "a red circle",
        height=32,
        width=32,
        num_inference_steps=3,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    )
    return torch.from_numpy(picture.images[0])
