"""Job files for tests: two that work, and what is needed to change and load them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from toolkit.config_modules.loading import LoadedJob, load_job
from toolkit.errors import ConfigError, Problem

LORA = """\
job: extension
config:
  name: my_lora
  process:
    - type: sd_trainer
      training_folder: output
      device: cuda:0
      trigger_word: zwx
      network:
        type: lora
        linear: 16
        linear_alpha: 16
      save:
        dtype: float16
        save_every: 250
        max_step_saves_to_keep: 4
      datasets:
        - folder_path: pictures
          caption_ext: txt
          caption_dropout_rate: 0.05
          shuffle_tokens: false
          cache_latents_to_disk: true
          resolution: [512, 768]
      train:
        batch_size: 1
        steps: 2000
        gradient_accumulation_steps: 1
        train_unet: true
        train_text_encoder: false
        gradient_checkpointing: true
        noise_scheduler: ddpm
        optimizer: adamw8bit
        lr: 1e-4
        ema_config:
          use_ema: true
          ema_decay: 0.99
        dtype: bf16
      model:
        name_or_path: some/model
        is_flux: false
        quantize: false
        low_vram: false
      sample:
        sampler: ddim
        sample_every: 250
        width: 512
        height: 512
        prompts:
          - "[trigger] in snow"
        neg: ""
        seed: 42
        walk_seed: true
        guidance_scale: 4
        sample_steps: 20
meta:
  name: "[name]"
  version: '1.0'
"""

GENERATE = """\
job: generate
config:
  name: pictures
  process:
    - type: to_folder
      output_folder: output/pictures
      model: {name_or_path: tiny-sd}
      generate: {prompts: [a fox]}
"""


def write(text: str, name: str = "job.yml") -> Path:
    """A file in the working folder."""
    path = Path(name)
    path.write_text(dedent(text), encoding="utf-8")
    return path


def load(text: str, *, file: str = "job.yml", name: str | None = None, **environment: str) -> LoadedJob:
    """The job of a text."""
    return load_job(write(text, file), name, environment=environment)


def problems_of(text: str, **options: str) -> list[Problem]:
    """What is wrong with a text, by line."""
    with pytest.raises(ConfigError) as caught:
        load(text, **options)
    return caught.value.problems


def changed(old: str, new: str, text: str = LORA) -> str:
    """A job with one thing changed."""
    assert old in text
    return text.replace(old, new)


def line_of(text: str, part: str) -> int:
    """The line that holds a part."""
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)
