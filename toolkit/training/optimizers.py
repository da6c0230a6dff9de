"""Optimizers by their field names. The table is data; nothing is imported before it is used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
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


_NEEDS_GPU = "bitsandbytes"  # its kernels, so that a step cannot be tried on the processor
_OWN_ARGUMENTS = ("params", "self", "lr")  # given by the trainer
_WRONG_VALUE = (TypeError, ValueError, IndexError, AttributeError, ArithmeticError, RuntimeError)


def make_optimizer(
    name: str, groups: Sequence[Mapping[str, Any]], *, lr: float, params: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """The optimizer `name` over parameter groups; `params` are its own keywords.

    groups: dicts with "params" and optionally "lr". Raises ConfigError as check_optimizer does.
    """
    check_optimizer(name, params)
    made: torch.optim.Optimizer = _factory(name)(
        [dict(group) for group in groups], lr=lr, **_keywords(name, params or {})
    )
    return made


def check_optimizer(name: str, params: Mapping[str, Any] | None = None) -> None:
    """Try the optimizer `name` with its keywords on a weight of its own; needs no model.

    Raises ConfigError for an unknown name or keyword, a value that does not work, or a package that is not
    installed.
    """
    given = dict(params or {})
    factory = _factory(name)
    known = [key for key in inspect.signature(factory).parameters if key not in _OWN_ARGUMENTS]
    problems = [
        Problem(
            "config.unknown_key",
            f"{name} has no parameter '{key}'",
            key=f"train.optimizer_params.{key}",
            remedy="the rate is train.lr" if key == "lr" else f"it has {', '.join(known)}",
        )
        for key in given
        if key not in known
    ]
    if problems:
        raise ConfigError(problems)
    whole = _failure(name, given)
    if whole is None:
        return
    alone = {key: reason for key, value in given.items() if (reason := _failure(name, {key: value}))}
    wrong = [_bad_value(name, f".{key}", f"{given[key]!r} does", reason) for key, reason in alone.items()]
    raise ConfigError(wrong or [_bad_value(name, "", f"{given} do", whole)])


def _factory(name: str) -> Callable[..., Any]:
    """The class of an optimizer. Raises ConfigError if its name is unknown or its package missing."""
    try:
        factory: Callable[..., Any] = OPTIMIZERS.resolve(name.lower())
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
    return factory


def _keywords(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given over what is usual."""
    usual = dict(DEFAULTS.get(name.lower(), {}))
    if given.get("foreach"):  # torch has either kernel
        usual.pop("fused", None)
    return usual | dict(given)


def _failure(name: str, given: Mapping[str, Any]) -> str | None:
    """Why the optimizer cannot take a step with these keywords, or None if it can."""
    factory = _factory(name)
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    try:
        optimizer = factory([{"params": [weight]}], lr=1e-3, **_keywords(name, given))
        if not factory.__module__.startswith(_NEEDS_GPU) and not given.get("capturable"):
            optimizer.step()
    except _WRONG_VALUE as error:
        return str(error) or type(error).__name__
    return None


def _bad_value(name: str, key: str, subject: str, reason: str) -> Problem:
    message = f"{subject} not work with {name}: {reason}"
    return Problem("config.bad_value", message, key=f"train.optimizer_params{key}")
