"""Models in one file, in the key layout of their first publication: what all architectures share."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from toolkit.models.file_keys import CLIP_REPO, CLIP_TOKENIZER_FILES, FileLayout
from toolkit.models.shared.components import build_shapes, read_json
from toolkit.models.shared.families import TE_KEY, VAE_KEY, Family, find_class, load_tokenizer
from toolkit.models.shared.hub import MODEL_KEY, download_folder, refuse
from toolkit.models.shared.weightless import is_weightless

# What diffusers' reader of single files raises for a file that is damaged or of another shape.
READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError, SafetensorError, pickle.UnpicklingError)


def read_keys(path: Path) -> set[str] | None:
    """The names of a .safetensors file's tensors; None for another format. Raises ModelError if damaged."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        refuse(str(path), f"is not a readable .safetensors file: {error}")


def check_keys(path: Path, layout: FileLayout) -> set[str] | None:
    """The keys of a .safetensors file; None for another format, which cannot be told before it is read.

    Refuses a file that is damaged or holds something else, before gigabytes are read.
    """
    keys = read_keys(path)
    wrong = None if keys is None else layout.wrong(keys)
    if wrong is not None:
        refuse(str(path), wrong[0], remedy=wrong[1])
    return keys


def check_complete(module: nn.Module, path: Path, name: str) -> None:
    """Refuse a component of which the file held only a part."""
    missing = [key for key, value in module.state_dict().items() if value.is_meta]
    if missing:
        refuse(str(path), f"lacks {len(missing)} weights of its {name}, first {missing[0]}")


def load_pipeline_file(
    path: Path, family: Family, config: Path, given: Mapping[str, Any], *, dtype: torch.dtype
) -> dict[str, Any]:
    """The networks in a file that holds a whole model of the family, by their component.

    config: a folder with diffusers' configs of their shape. given: components that the file does not hold.
    Raises ModelError.
    """
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    if is_weightless():
        return {
            name: given.get(name) or _shapes(cls, config / name, dtype)
            for name, cls in family.modules.items()
        }
    pipeline_class = find_class(f"diffusers:{family.pipeline}")
    try:
        pipeline = pipeline_class.from_single_file(
            str(path), config=str(config), torch_dtype=dtype, local_files_only=True, **given
        )
    except SingleFileComponentError as error:
        remedy = f"name a text encoder with {TE_KEY}" if "CLIPTextModel" in str(error) else None
        refuse(str(path), f"is not complete: {str(error).splitlines()[0]}", remedy=remedy)
    except NotImplementedError:
        # The weights that the file lacks stayed empty, and could not be moved.
        refuse(str(path), f"lacks some of the weights of {family.title}")
    except READ_ERRORS as error:
        refuse(str(path), f"cannot be loaded as {family.title}: {error}")
    modules = {name: getattr(pipeline, name) for name in family.modules}
    for name, module in modules.items():
        check_complete(module, path, name)
    return modules


def load_autoencoder_file(path: Path, config: Path, *, dtype: torch.dtype) -> Any:
    """The autoencoder in a file, in original or diffusers' keys; config: a folder with `vae/config.json`.

    Raises ModelError.
    """
    from diffusers import AutoencoderKL

    if is_weightless():
        return _shapes("diffusers:AutoencoderKL", config / "vae", dtype)
    try:
        vae = AutoencoderKL.from_single_file(
            str(path), config=str(config), subfolder="vae", torch_dtype=dtype, local_files_only=True
        )
    except READ_ERRORS as error:
        refuse(str(path), f"cannot be loaded as an autoencoder: {error}", key=VAE_KEY)
    check_complete(vae, path, "vae")
    return vae


def _shapes(class_name: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A component by the config in a folder, without values."""
    config = read_json(folder / "config.json", str(folder))
    return build_shapes(find_class(class_name), config, dtype=dtype, name=str(folder))


def find_clip_tokenizers(path: Path, config: Path, tokenizers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """CLIP tokenizers for a file: from a folder of that name in `config` or beside the file, else the hub's.

    tokenizers: component -> options that make it of CLIP's own. Raises ModelError.
    """
    cls = find_class("transformers:CLIPTokenizer")
    found = {}
    for part, options in tokenizers.items():
        folders = [root / part for root in (config, path.parent) if (root / part).is_dir()]
        if folders:
            found[part] = load_tokenizer(folders[0], str(path), cls)
        else:
            folder = download_folder(CLIP_REPO, list(CLIP_TOKENIZER_FILES), key=MODEL_KEY)
            found[part] = load_tokenizer(folder, CLIP_REPO, cls, **options)
    return found
