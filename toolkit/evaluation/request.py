"""What an evaluation is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from toolkit.evaluation.evaluate import Settings
from toolkit.evaluation.report import report_name


@dataclass(frozen=True)
class EvalRequest:
    """All that an evaluation is asked for; `python -m tools.eval_dataset --help` says what each means."""

    dataset_paths: Sequence[str]
    model: str
    out_dir: Path
    job_name: str = "dataset_eval"
    step: int = 0
    arch: str = "sd15"
    vae_path: str | None = None
    lora: str | None = None
    lora_multiplier: float = 1.0
    against_base: bool = False
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    settings: Settings = field(default_factory=Settings)
    resolution: int | None = None
    sample_fraction: float = 1.0
    max_samples: int | None = None
    caption_ext: str = ".txt"
    default_caption: str | None = None
    trigger_word: str | None = None
    rate: float = 0.1
    edits: bool = False
    suggest: bool = False
    relative_loss: bool = True
    debug_noise: bool = False
    debug_captions: bool = False
    log_conditioning: bool = False
    html: bool = False

    @property
    def report_path(self) -> Path:
        """Where the report goes."""
        return self.out_dir / report_name(self.job_name, self.step)

    @property
    def page_path(self) -> Path:
        """Where the page goes, if one is asked for."""
        return self.report_path.with_suffix(".html")
