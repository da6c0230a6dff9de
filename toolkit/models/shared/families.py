"""Loading a model: from a diffusers folder, a hub id or a single file, by a table of what its parts are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit.models.catalogue import other_pipeline
from toolkit.models.shared.components import (
    build_component,
    load_component,
    quiet_loading,
    read_json,
    weight_files,
)
from toolkit.models.shared.hub import (
    MODEL_KEY,
    download_folder,
    download_index,
    download_pipeline,
    find_model,
    refuse,
)
from toolkit.models.shared.initialisation import init_autoencoder
from toolkit.models.shared.weightless import is_weightless
from toolkit.seeding import keyed_generator, keyed_seed

VAE_KEY = "model.vae_path"
TE_KEY = "model.te_name_or_path"


@dataclass
class Components:
    """The parts of a model by the names of diffusers' pipeline, and its scheduler's config."""

    modules: dict[str, Any]
    tokenizers: dict[str, Any]
    scheduler_config: dict[str, Any]


@dataclass(frozen=True)
class Family:
    """What the models of an architecture are made of.

    title: what a person calls it; pipeline: its class in diffusers; modules and tokenizers: component ->
    "library:Class"; vae_config: a folder with the config of its usual autoencoder, for files without one.
    """

    title: str
    pipeline: str
    modules: Mapping[str, str]
    tokenizers: Mapping[str, str]
    vae_config: Path

    @property
    def text_parts(self) -> list[str]:
        """The components that read prompts."""
        return [name for name in self.modules if name.startswith("text_encoder")]


def find_class(name: str) -> Any:
    """The class that "library:Class" names."""
    library, _, attribute = name.partition(":")
    return getattr(import_module(library), attribute)


def load_components(
    path: str | os.PathLike[str],
    family: Family,
    *,
    dtype: torch.dtype,
    read_file: Callable[[Path], Components],
    from_config: bool = False,
    seed: int = 0,
    vae_path: str | None = None,
    te_name_or_path: str | None = None,
) -> Components:
    """The parts of a model, on the CPU. Raises ModelError with what to do.

    path: a diffusers folder, a hub id, or a file, which read_file reads. from_config: parts whose folder
    holds no weights are built at random from `seed`. vae_path, te_name_or_path: parts from elsewhere.
    """
    name = os.fspath(path)
    with quiet_loading():
        # Imported in the quiet: transformers warns that torchvision is missing, which nothing here needs.
        find_class(f"diffusers:{family.pipeline}")
        local = find_model(name)
        if from_config and (local is None or local.is_file()):
            refuse(name, "from_config needs a local folder with config files", key="model.from_config")
        if local is not None and local.is_file():
            components = read_file(local)
        else:
            folder = local or fetch_folder(name, family)
            components = load_folder(folder, name, family, dtype=dtype, seed=seed if from_config else None)
            if te_name_or_path is not None:
                replace_text_parts(components, te_name_or_path, family, dtype=dtype)
        if vae_path is not None:
            components.modules["vae"] = load_vae(vae_path, family, dtype=dtype)
    return components


def fetch_folder(name: str, family: Family, *, key: str = MODEL_KEY, without: Sequence[str] = ()) -> Path:
    """The cached folder of a hub id, less some components; what it is comes first. Raises ModelError."""
    check_class(download_index(name, key=key), name, family)
    return download_pipeline(name, key=key, without=without)


def load_folder(
    folder: Path, name: str, family: Family, *, dtype: torch.dtype, seed: int | None = None
) -> Components:
    """The components of a diffusers folder; with a seed, those without weights are built from configs."""
    check_class(folder, name, family, required=seed is None)
    modules = {}
    for part, class_name in family.modules.items():
        cls = find_class(class_name)
        config = read_json(folder / part / "config.json", name)
        if seed is not None and not is_weightless() and not weight_files(folder / part):
            modules[part] = nn.Module.to(_build(part, cls, config, name, seed=seed), dtype)
        else:
            modules[part] = load_component(cls, folder / part, dtype=dtype, name=name)
    tokenizers = {
        part: load_tokenizer(folder / part, name, find_class(class_name))
        for part, class_name in family.tokenizers.items()
    }
    return Components(modules, tokenizers, read_scheduler(folder, name))


def read_scheduler(folder: Path, name: str) -> dict[str, Any]:
    """The scheduler's config in a diffusers folder, without what tells where it was saved."""
    config = read_json(folder / "scheduler" / "scheduler_config.json", name)
    return {key: value for key, value in config.items() if not key.startswith("_")}


def check_class(folder: Path, name: str, family: Family, *, required: bool = True) -> None:
    """Refuse a folder that is no diffusers model, or one of another architecture."""
    index = folder / "model_index.json"
    if not index.is_file():
        if required:
            refuse(
                name, f"is not a diffusers folder: {index} is missing", remedy="or name a .safetensors file"
            )
        return
    found = read_json(index, name).get("_class_name", family.pipeline)
    if found == family.pipeline:
        return
    message, remedy = other_pipeline(found, family.title)
    refuse(name, message, remedy=remedy)


def _build(part: str, cls: type[Any], config: dict[str, Any], name: str, *, seed: int) -> Any:
    """One component with random weights; equal seeds give equal weights, whatever else is built."""
    try:
        module = build_component(cls, config, keyed_seed("init", seed, part))
    except (TypeError, ValueError) as error:
        refuse(name, f"{part}/config.json cannot be built: {error}")
    if part == "vae":
        init_autoencoder(module, keyed_generator("init", seed, part))
    return module


def load_tokenizer(folder: Path, name: str, cls: Any, **options: Any) -> Any:
    """A tokenizer from a folder; options replace what its files say. Raises ModelError."""
    if not folder.is_dir():
        refuse(name, f"is not a complete diffusers folder: {folder} is missing")
    try:
        return cls.from_pretrained(str(folder), local_files_only=True, **options)
    except (OSError, ValueError) as error:
        refuse(name, f"{folder} cannot be loaded: {error}")


def load_vae(name: str, family: Family, *, dtype: torch.dtype) -> Any:
    """Another autoencoder: a file, a folder (its own or a pipeline's), or a hub id. Raises ModelError."""
    from diffusers import AutoencoderKL

    from toolkit.models.shared.single_files import load_autoencoder_file

    local = find_model(name, key=VAE_KEY)
    if local is not None and local.is_file():
        return load_autoencoder_file(local, family.vae_config, dtype=dtype)
    if local is None:
        local = download_folder(name, ["config.json", "*.safetensors", "*.bin", "vae/*"], key=VAE_KEY)
    folder = local / "vae" if (local / "vae" / "config.json").is_file() else local
    return load_component(AutoencoderKL, folder, dtype=dtype, name=name, key=VAE_KEY)


def replace_text_parts(components: Components, name: str, family: Family, *, dtype: torch.dtype) -> None:
    """Put the text encoders and tokenizers of another place into the components. Raises ModelError."""
    modules, tokenizers = load_text_parts(name, family, dtype=dtype)
    components.modules |= modules
    components.tokenizers |= tokenizers


def load_text_parts(
    name: str, family: Family, *, dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Text encoders and tokenizers of a folder or hub id: a pipeline's, or one encoder's own folder.

    Raises ModelError, also for one encoder alone where the family has several.
    """
    root = find_model(name, key=TE_KEY)
    if root is None:
        patterns = [
            "tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "*.model",
            "config.json", "*.safetensors", "text_encoder*/*", "tokenizer*/*",
        ]  # fmt: skip
        root = download_folder(name, patterns, key=TE_KEY)
    whole = (root / family.text_parts[0]).is_dir()
    if not whole and len(family.text_parts) > 1:
        wanted = ", ".join(family.text_parts)
        refuse(name, f"must be a folder with {wanted} and their tokenizers", key=TE_KEY)
    modules = {
        part: load_component(
            find_class(family.modules[part]),
            root / part if whole else root,
            dtype=dtype,
            name=name,
            key=TE_KEY,
        )
        for part in family.text_parts
    }
    tokenizers = {
        part: load_tokenizer(root / part if (root / part).is_dir() else root, name, find_class(class_name))
        for part, class_name in family.tokenizers.items()
    }
    return modules, tokenizers
