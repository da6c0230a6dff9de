"""The parts of a diffusers folder: load one with its weights, build one from its config, hash one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from torch import nn

from toolkit.data.tensor_store import make_key, tensors_hash
from toolkit.models.shared.hub import MODEL_KEY, refuse
from toolkit.models.shared.weightless import fill_with_shapes, is_weightless

_WEIGHTS = ("*.safetensors", "*.bin")
_hashes: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the libraries' progress bars, which would tear ours, and their warnings; put both back after.

    What matters in those warnings (missing weights, no network) we raise as errors of our own.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [diffusers_logging, transformers_logging]
    before = [(library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, (bar, verbosity) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()


def weight_files(folder: Path) -> list[Path]:
    """The weight files of one component's folder."""
    return sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON file of the model `name`. Raises ModelError if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        refuse(name, f"is not a complete diffusers folder: {path} is missing")
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        refuse(name, f"{path} cannot be read: {error}")


def load_component(
    cls: type[Any], folder: Path, *, dtype: torch.dtype, name: str, key: str = MODEL_KEY
) -> Any:
    """A component of class `cls` with the weights in its folder, on the CPU.

    name is what the user calls the model, in the setting `key`. Raises ModelError if weights are missing, damaged, or of another
    shape than the config says; a library's silent random weights would train into noise.
    """
    if is_weightless():
        return build_shapes(cls, read_json(folder / "config.json", name), dtype=dtype, name=name)
    files = weight_files(folder)
    if not files:
        remedy = "to start from random weights set model.from_config: true"
        offered = (folder / "config.json").exists() and key == MODEL_KEY
        refuse(name, f"no weights in {folder}", remedy=remedy if offered else None, key=key)
    variant = "fp16" if all(".fp16" in path.name for path in files) else None
    options = {"variant": variant, "output_loading_info": True, "local_files_only": True}
    try:
        component, info = cls.from_pretrained(str(folder), torch_dtype=dtype, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        refuse(name, f"{folder} cannot be loaded: {error}", key=key)
    missing = sorted(info["missing_keys"]) or sorted(str(entry) for entry in info["mismatched_keys"])
    if missing:
        refuse(name, f"{folder} lacks {len(missing)} weights of its config, first {missing[0]}", key=key)
    return component


def build_component(cls: type[Any], config: dict[str, Any], seed: int) -> nn.Module:
    """A component of class `cls` with random weights, float32: equal config and seed give equal weights."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        if hasattr(cls, "config_class") and cls.config_class is not None:
            return cls(cls.config_class.from_dict(config))
        return cls.from_config(config)
    finally:
        torch.default_generator.set_state(state)


def build_shapes(cls: type[Any], config: dict[str, Any], *, dtype: torch.dtype, name: str) -> nn.Module:
    """A component of class `cls` in eval mode without values. Raises ModelError for a config it cannot be."""
    try:
        with torch.device("meta"):
            module = build_component(cls, config, seed=0)
    except (TypeError, ValueError) as error:
        refuse(name, f"the config of its {cls.__name__} cannot be built: {error}")
    return fill_with_shapes(module, dtype).eval()


def component_hash(module: nn.Module) -> str:
    """sha256 of a module's weights (names, dtypes, values) and config: what caches of its outputs depend on.

    Computed again only after a weight was written to or replaced. Of its config alone where it has no values.
    """
    if is_weightless():
        return make_key(_config_text(module))
    state = module.state_dict()
    fingerprint = tuple((name, value.data_ptr(), value._version) for name, value in state.items())
    known = _hashes.get(module)
    if known is None or known[0] != fingerprint:
        known = _hashes[module] = (fingerprint, make_key(tensors_hash(state), _config_text(module)))
    return known[1]


def _config_text(module: nn.Module) -> str:
    """A module's config without the entries that tell where and with what it was saved."""
    config = getattr(module, "config", {})
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    volatile = {"transformers_version", "torch_dtype", "dtype"}
    kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in volatile}
    return json.dumps(kept, sort_keys=True, default=str)


def cast_copy(module: Any, dtype: torch.dtype) -> Any:
    """A copy for saving: same class and config, weights on the CPU in dtype; the module stays as it is."""
    weights = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
        for name, value in module.state_dict().items()
    }
    with torch.device("meta"):
        config = module.config
        copy = type(module)(config) if hasattr(config, "to_dict") else type(module).from_config(config)
    copy.load_state_dict(weights, assign=True)
    # Where the weights once came from is nobody else's business.
    if hasattr(copy, "register_to_config"):
        copy.register_to_config(_name_or_path="")
    return copy
