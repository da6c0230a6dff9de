"""What a captioning is asked for. Torch-free."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.paths import resolve_path
from toolkit.runs import atomic

RECORD = "captions.jsonl"


@dataclass(frozen=True)
class CaptionRequest:
    """All that a captioning is asked for; `python -m tools.caption_dataset --help` says what each means."""

    dataset_paths: Sequence[str]
    model: str
    out_dir: Path
    caption_ext: str = ".txt"
    recaption: bool = False
    prompt: str | None = None
    prefix: str = ""
    suffix: str = ""
    strip_intro: bool = True
    max_new_tokens: int = 160
    num_beams: int = 1
    resolution: int = 1024
    batch_size: int = 1
    max_samples: int | None = None
    dry_run: bool = False
    device: str | None = None
    dtype: str | None = None

    @property
    def record_path(self) -> Path:
        """The list of what was written, and of what stood there before."""
        return self.out_dir / RECORD

    @property
    def fingerprint(self) -> str:
        """The same for two requests that would write the same captions in the same folders."""
        told = [
            self.model, self.caption_ext, self.recaption, self.prompt, self.prefix, self.suffix,
            self.strip_intro, self.max_new_tokens, self.num_beams, self.resolution,
            sorted(os.path.realpath(resolve_path(path)) for path in self.dataset_paths),
        ]  # fmt: skip
        return hashlib.sha256(atomic.to_json(told).encode()).hexdigest()[:16]
