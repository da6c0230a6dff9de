"""`type: to_folder`: draws pictures of prompts into a folder, each with its recipe in its metadata."""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from jobs import build
from jobs.without_folder import Watched, watched
from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.process import GenerateProcess
from toolkit.config_modules.sample import SampleRequest
from toolkit.errors import ConfigError, JobStopped, Problem
from toolkit.runs import atomic
from toolkit.runs.images import save_image


def run(loaded: LoadedJob, section: GenerateProcess) -> None:
    """Draw every picture of the section. Raises JobStopped if interrupted; finished pictures stay."""
    wanted = section.generate
    drawn = wanted.requests(draw=secrets.randbelow(2**32))
    requests = [build.drawable(request, section.model) for request in drawn]
    if not requests:
        raise ConfigError(
            Problem("config.no_prompts", "there is nothing to draw: no prompts", key="generate.prompts")
        )
    lora = build.local_file(wanted.lora_path, "generate.lora_path") if wanted.lora_path else None
    folder = _writable(Path(section.output_folder).expanduser())
    with watched(loaded, total_steps=len(requests)) as watch:
        watch.status.phase("loading", "Loading model")
        _draw(section, requests, lora, folder, watch)
    sys.stdout.write(f"{len(requests)} pictures in {folder}\n")


def _draw(
    section: GenerateProcess, requests: Sequence[SampleRequest], lora: Path | None, folder: Path,
    watch: Watched,
) -> None:  # fmt: skip
    from tqdm import tqdm

    from toolkit.accelerator import pick_device
    from toolkit.model_utils import AppliedLora, apply_lora
    from toolkit.training.out_of_memory import telling
    from toolkit.training.previews import preview_context, render

    wanted, total = section.generate, len(requests)
    device = pick_device(section.device)
    usual = "float16" if device.type == "cuda" else "float32"
    dtype = build.torch_dtype(section.dtype or section.model.dtype or usual)
    sd = build.load_model(section.model, dtype=dtype, device=device)
    if lora is not None:
        matched = apply_lora(sd, lora)  # how strongly, each picture says for itself
        sys.stdout.write(f"LoRA {lora.name}: {matched} modules\n")
    with ExitStack() as stack:
        stack.enter_context(watch.stop.install())
        stack.enter_context(preview_context(sd.architecture))
        stack.enter_context(telling("drawing", ("a smaller width and height", "dtype: bf16")))
        pictures = render(sd.architecture, requests, network=AppliedLora(sd) if lora is not None else None)
        watch.status.phase("sampling", f"Generating images - 0/{total}")
        watch.status.tick(0)
        bar = stack.enter_context(tqdm(requests, desc="Generating images", unit="image"))
        for index, request in enumerate(bar):
            if watch.stop:
                raise JobStopped(f"stopped after {index} of {total} pictures, written to {folder}")
            picture = next(pictures)
            path = folder / f"{int(time.time() * 1000)}_{index}.{wanted.ext}"
            save_image(picture, path, build.recipe(request, section.model, lora=lora.name if lora else None))
            if wanted.prompt_file:
                atomic.write_text(path.with_suffix(".txt"), request.prompt, durable=False)
            watch.pictures.show(path)
            watch.status.tick(index + 1, info=f"Generating images - {index + 1}/{total}")


def _writable(folder: Path) -> Path:
    """The folder, made if need be and tried, before a model is loaded for nothing. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        problem = Problem(
            "config.output_folder", f"cannot write to {folder}: {error.strerror}", key="output_folder"
        )
        raise ConfigError(problem) from error
    return folder
