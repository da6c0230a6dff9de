"""FLUX.1 from a diffusers folder, a hub id, or its transformer in one file with the rest from elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import ModelError, Problem
from toolkit.models.flux.model import Flux
from toolkit.models.file_keys import without_rest
from toolkit.models.flux.single_file import FLUX_CONFIG, load_transformer_file
from toolkit.models.shared.components import load_component, quiet_loading
from toolkit.models.shared.families import (
    Components,
    Family,
    fetch_folder,
    find_class,
    load_components,
    load_folder,
    load_text_parts,
    load_vae,
    read_scheduler,
)
from toolkit.models.shared.hub import MODEL_KEY, download_folder, find_model, refuse

FAMILY = Family(
    title="FLUX.1",
    pipeline="FluxPipeline",
    modules={
        "transformer": "diffusers:FluxTransformer2DModel",
        "vae": "diffusers:AutoencoderKL",
        "text_encoder": "transformers:CLIPTextModel",
        "text_encoder_2": "transformers:T5EncoderModel",
    },
    # T5's own, or whatever kind the folder names.
    tokenizers={"tokenizer": "transformers:CLIPTokenizer", "tokenizer_2": "transformers:AutoTokenizer"},
    vae_config=FLUX_CONFIG,
)
EXTRAS_KEY = "model.extras_name_or_path"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """Where a model without its own has the parts beside the transformer from: folders, files or hub ids."""

    extras: str | None = None
    vae: str | None = None
    text: str | None = None


def load(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    vae_path: str | None = None,
    from_config: bool = False,
    seed: int = 0,
    prediction_type: str | None = None,
    config_dir: Path | None = None,
    te_name_or_path: str | None = None,
    extras_name_or_path: str | None = None,
    bypass_guidance_embedding: bool = False,
    use_flux_cfg: bool = False,
) -> Flux:
    """A frozen model in eval mode. Raises ModelError with what to do.

    path: a diffusers folder, a hub id, or a .safetensors file of the transformer; for a file config_dir may
    hold configs of another shape than FLUX.1's. extras_name_or_path: a folder or hub id that everything
    beside the transformer comes from; vae_path and te_name_or_path (both text encoders and tokenizers) go
    before it. from_config, seed: as for other models. The last two: see toolkit.models.flux.model.Flux.
    """
    if prediction_type not in (None, "flow"):
        message = f"FLUX.1 predicts flow, not {prediction_type}"
        refuse(os.fspath(path), message, key="model.prediction_type", remedy="leave it out")
    rest = Rest(extras=extras_name_or_path, vae=vae_path, text=te_name_or_path)
    name = os.fspath(path)
    local = find_model(name)
    is_file = local is not None and local.is_file()
    if rest.extras is not None and not is_file:
        components = _load_transformer_of(name, rest, dtype=dtype, from_config=from_config)
    else:
        components = load_components(
            path,
            FAMILY,
            dtype=dtype,
            read_file=partial(_load_file, rest=rest, dtype=dtype, config_dir=config_dir),
            from_config=from_config,
            seed=seed,
            vae_path=None if is_file else vae_path,  # a file's comes with the rest
            te_name_or_path=te_name_or_path,
        )
    try:
        model = Flux(components, bypass_guidance_embedding=bypass_guidance_embedding, use_cfg=use_flux_cfg)
    except ValueError as error:
        raise ModelError(Problem("model.load", f"'{os.fspath(path)}': {error}", key=MODEL_KEY)) from error
    return model.freeze().to(device)


def _load_file(path: Path, *, rest: Rest, dtype: torch.dtype, config_dir: Path | None) -> Components:
    """The transformer in a file, and the rest."""
    _check_rest(str(path), rest)
    transformer = load_transformer_file(path, dtype=dtype, config_dir=config_dir)
    return _joined(transformer, rest, dtype=dtype, config_dir=config_dir)


def _load_transformer_of(name: str, rest: Rest, *, dtype: torch.dtype, from_config: bool) -> Components:
    """The transformer of a folder or hub id, which may hold nothing else, and the rest."""
    if from_config:
        refuse(name, f"from_config cannot be combined with {EXTRAS_KEY}", key="model.from_config")
    with quiet_loading():
        cls = find_class(FAMILY.modules["transformer"])
        root = find_model(name) or download_folder(
            name, ["config.json", "diffusion_pytorch_model*", "transformer/*"], key=MODEL_KEY
        )
        folder = root / "transformer" if (root / "transformer").is_dir() else root
        if not (folder / "config.json").is_file():
            refuse(name, f"holds no transformer: {folder / 'config.json'} is missing")
        transformer = load_component(cls, folder, dtype=dtype, name=name)
        return _joined(transformer, rest, dtype=dtype)


def _check_rest(name: str, rest: Rest) -> None:
    """Refuse, before anything is read, a transformer whose other parts nobody named."""
    wrong = without_rest(extras=rest.extras, vae=rest.vae, text=rest.text)
    if wrong is not None:
        refuse(name, wrong[0], remedy=wrong[1])


def _joined(
    transformer: Any, rest: Rest, *, dtype: torch.dtype, config_dir: Path | None = None
) -> Components:
    """A model of this transformer and the parts from elsewhere, each read from one place only."""
    wanted = set(FAMILY.modules) - {"transformer"}
    if rest.vae is not None:
        wanted -= {"vae"}
    if rest.text is not None:
        wanted -= set(FAMILY.text_parts)
    if rest.extras is not None:
        components = _load_extras(rest.extras, wanted, dtype=dtype)
    else:
        components = Components({}, {}, _own_scheduler(transformer, config_dir))
    if rest.vae is not None:
        family = replace(FAMILY, vae_config=config_dir or FLUX_CONFIG)
        components.modules["vae"] = load_vae(rest.vae, family, dtype=dtype)
    if rest.text is not None:
        modules, tokenizers = load_text_parts(rest.text, FAMILY, dtype=dtype)
        components.modules |= modules
        components.tokenizers |= tokenizers
    components.modules["transformer"] = transformer
    return components


def _load_extras(name: str, wanted: set[str], *, dtype: torch.dtype) -> Components:
    """These parts, their tokenizers and the scheduler of a FLUX.1 folder or hub id."""
    with_text = "text_encoder" in wanted
    family = replace(
        FAMILY,
        modules={part: cls for part, cls in FAMILY.modules.items() if part in wanted},
        tokenizers=FAMILY.tokenizers if with_text else {},
    )
    root = find_model(name, key=EXTRAS_KEY)
    if root is None:
        without = [part for part in FAMILY.modules if part not in wanted]
        root = fetch_folder(name, FAMILY, key=EXTRAS_KEY, without=without)
    if not root.is_dir():
        refuse(name, "is a file; a diffusers folder or a hub id is needed", key=EXTRAS_KEY)
    return load_folder(root, name, family, dtype=dtype)


def _own_scheduler(transformer: Any, config_dir: Path | None) -> dict[str, Any]:
    """How a model without a folder is sampled: shifted by the size of the picture, unless it is schnell."""
    scheduler = read_scheduler(config_dir or FLUX_CONFIG, FAMILY.title)
    if transformer.config.guidance_embeds:
        return scheduler
    return scheduler | {"use_dynamic_shifting": False, "shift": 1.0}
