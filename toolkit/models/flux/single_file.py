"""FLUX.1's transformer in one file, in the keys of its first publication or of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from toolkit.models.file_keys import FLUX_FILE, NO_SAFETENSORS, WHOLE_MODEL
from toolkit.models.flux.original_keys import from_original, names_of
from toolkit.models.shared.components import build_shapes, read_json
from toolkit.models.shared.hub import refuse
from toolkit.models.shared.single_files import check_keys
from toolkit.models.shared.weightless import is_weightless
from toolkit.paths import ASSETS_ROOT

FLUX_CONFIG = ASSETS_ROOT / "flux_config"
_NAMES_IN_MESSAGE = 3


def load_transformer_file(path: Path, *, dtype: torch.dtype, config_dir: Path | None = None) -> Any:
    """The FluxTransformer2DModel of a .safetensors file. Raises ModelError.

    config_dir: a diffusers folder with the config of its shape (None: that of FLUX.1); how many blocks there
    are and whether guidance is embedded, the file itself says.
    """
    from diffusers import FluxTransformer2DModel

    keys = _checked_keys(path)
    prefix = WHOLE_MODEL if any(key.startswith(WHOLE_MODEL) for key in keys) else ""
    names = {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
    layouts = {"transformer_blocks": "single_transformer_blocks", "double_blocks": "single_blocks"}
    double = next((each for each in layouts if any(name.startswith(f"{each}.0.") for name in names)), None)
    if double is None:
        refuse(str(path), FLUX_FILE.lacking)
    config = read_json((config_dir or FLUX_CONFIG) / "transformer" / "config.json", str(path)) | {
        "num_layers": _count(names, double),
        "num_single_layers": _count(names, layouts[double]),
        "guidance_embeds": any("guidance" in name for name in names),
    }
    if is_weightless():
        return build_shapes(FluxTransformer2DModel, config, dtype=dtype, name=str(path))
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(config)
    with safe_open(path, framework="pt") as file:

        def read(name: str) -> Tensor:
            return file.get_tensor(f"{prefix}{name}").to(dtype)  # type: ignore[no-any-return]

        weights = _read_weights(transformer, names, read, path, original=double == "double_blocks")
    transformer.load_state_dict(weights, assign=True)
    return transformer


def _checked_keys(path: Path) -> set[str]:
    """The keys of a file that may hold a FLUX.1 transformer. Raises ModelError for others."""
    keys = check_keys(path, FLUX_FILE)
    if keys is None:
        refuse(str(path), NO_SAFETENSORS[0], remedy=NO_SAFETENSORS[1])
    return keys


def _count(names: set[str], blocks: str) -> int:
    """How many blocks of a name there are."""
    return len({name.split(".")[1] for name in names if name.startswith(f"{blocks}.")})


def _read_weights(
    transformer: Any, names: set[str], read: Callable[[str], Tensor], path: Path, *, original: bool
) -> dict[str, Tensor]:
    """The transformer's weights by their names in diffusers. Raises ModelError if any is missing or unlike."""
    shapes = {name: value.shape for name, value in transformer.state_dict().items()}
    missing = sorted((set(names_of(transformer)) if original else set(shapes)) - names)
    if missing:
        shown = ", ".join(missing[:_NAMES_IN_MESSAGE])
        refuse(str(path), f"lacks {len(missing)} weights of a FLUX.1 transformer, first {shown}")
    if original:
        try:
            return from_original(transformer, read)
        except ValueError as error:
            refuse(str(path), f"cannot be loaded as FLUX.1: {error}")
    weights = {name: read(name) for name in shapes}
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            message = f"{name} is {tuple(weights[name].shape)} where {tuple(shape)} is needed"
            refuse(str(path), f"cannot be loaded as FLUX.1: {message}")
    return weights
