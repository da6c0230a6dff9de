"""Optimizers by their field names. The table is data; nothing is imported before it is used."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from toolkit.errors import ConfigError, Problem
from toolkit.registry import Registry

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw": "torch.optim:AdamW",
        "adam": "torch.optim:Adam",
        "sgd": "torch.optim:SGD",
        "adagrad": "torch.optim:Adagrad",
        "adafactor": "transformers.optimization:Adafactor",
        "adamw8bit": "bitsandbytes.optim:AdamW8bit",
        "adam8bit": "bitsandbytes.optim:Adam8bit",
        "lion8bit": "bitsandbytes.optim:Lion8bit",
        "prodigy": "prodigyopt:Prodigy",
    },
)

# What a config may leave out. ai-toolkit's eps is 1e-6; fused AdamW runs at a quarter of the loop's cost.
DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {"eps": 1e-6, "fused": True},
    "adam": {"eps": 1e-6, "fused": True},
    "adamw8bit": {"eps": 1e-6},
    "adam8bit": {"eps": 1e-6},
    "sgd": {"fused": True},
    "adafactor": {"relative_step": False, "scale_parameter": False, "warmup_init": False},
}
PACKAGES = {"bitsandbytes": "bitsandbytes", "prodigyopt": "prodigyopt"}


def make_optimizer(
    name: str, groups: Sequence[Mapping[str, Any]], *, lr: float, params: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """The optimizer `name` over parameter groups; `params` are its own keywords.

    groups: dicts with "params" and optionally "lr". Raises ConfigError for an unknown name or keyword, or
    a package that is not installed.
    """
    try:
        factory = OPTIMIZERS.resolve(name.lower())
    except ModuleNotFoundError as error:
        package = PACKAGES.get(str(error.name), str(error.name))
        raise ConfigError(
            Problem(
                "config.missing_package",
                f"optimizer '{name}' needs the package {package}",
                key="train.optimizer",
                remedy=f"pip install {package}, or use optimizer: adamw",
            )
        ) from error
    keywords = DEFAULTS.get(name.lower(), {}) | dict(params or {})
    known = inspect.signature(factory).parameters
    problems = [
        Problem(
            "config.unknown_key",
            f"{name} has no parameter '{key}'",
            key=f"train.optimizer_params.{key}",
            remedy=f"it has {', '.join(k for k in known if k not in ('params', 'self', 'lr'))}",
        )
        for key in keywords
        if key not in known
    ]
    if problems:
        raise ConfigError(problems)
    return factory([dict(group) for group in groups], lr=lr, **keywords)
