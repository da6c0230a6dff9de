"""Optimizers by their field names. The table is data; nothing is imported before it is used."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn

from toolkit.errors import ConfigError, Problem
from toolkit.registry import Registry

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw": "torch.optim:AdamW",
        "adam": "torch.optim:Adam",
        "sgd": "torch.optim:SGD",
        "adagrad": "torch.optim:Adagrad",
        "rmsprop": "torch.optim:RMSprop",
        "adafactor": "transformers.optimization:Adafactor",
        "lion": "pytorch_optimizer:Lion",
        "tiger": "pytorch_optimizer:Tiger",
        "came": "pytorch_optimizer:CAME",
        "muon": "pytorch_optimizer:Muon",
        "ademamix": "pytorch_optimizer:AdEMAMix",
        "adopt": "pytorch_optimizer:ADOPT",
        "stableadamw": "pytorch_optimizer:StableAdamW",
        "ranger": "pytorch_optimizer:Ranger",
        "adan": "pytorch_optimizer:Adan",
        "lamb": "pytorch_optimizer:Lamb",
        "adabelief": "pytorch_optimizer:AdaBelief",
        "soap": "pytorch_optimizer:SOAP",
        "adamwschedulefree": "pytorch_optimizer:ScheduleFreeAdamW",
        "sgdschedulefree": "pytorch_optimizer:ScheduleFreeSGD",
        "radamschedulefree": "pytorch_optimizer:ScheduleFreeRAdam",
        "prodigy": "prodigyopt:Prodigy",
        "dadaptadam": "pytorch_optimizer:DAdaptAdam",
        "dadaptlion": "pytorch_optimizer:DAdaptLion",
        "dadaptadan": "pytorch_optimizer:DAdaptAdan",
        "dadaptsgd": "pytorch_optimizer:DAdaptSGD",
        "dadaptadagrad": "pytorch_optimizer:DAdaptAdaGrad",
        "adamw8bit": "bitsandbytes.optim:AdamW8bit",
        "adam8bit": "bitsandbytes.optim:Adam8bit",
        "lion8bit": "bitsandbytes.optim:Lion8bit",
        "ademamix8bit": "bitsandbytes.optim:AdEMAMix8bit",
        "adagrad8bit": "bitsandbytes.optim:Adagrad8bit",
        "rmsprop8bit": "bitsandbytes.optim:RMSprop8bit",
        "sgd8bit": "bitsandbytes.optim:SGD8bit",
        "pagedadamw": "bitsandbytes.optim:PagedAdamW",
        "pagedadamw8bit": "bitsandbytes.optim:PagedAdamW8bit",
        "pagedlion8bit": "bitsandbytes.optim:PagedLion8bit",
        "pagedademamix8bit": "bitsandbytes.optim:PagedAdEMAMix8bit",
    },
)

# What a config may leave out. ai-toolkit's eps is 1e-6; fused AdamW runs at a quarter of the loop's cost.
DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {"eps": 1e-6, "fused": True},
    "adam": {"eps": 1e-6, "fused": True},
    "adamw8bit": {"eps": 1e-6},
    "adam8bit": {"eps": 1e-6},
    "sgd": {"fused": True},
    "sgd8bit": {"momentum": 0.9},  # there is no kernel without
    "adafactor": {"relative_step": False, "scale_parameter": False, "warmup_init": False},
    # Moonlight's scale (arXiv:2502.16982): matrices move as far as AdamW would move them at the same rate.
    "muon": {"use_adjusted_lr": True},
    # Else pytorch-optimizer climbs the gradient for five steps, where RAdam has no second moment yet.
    "ranger": {"degenerated_to_sgd": True},
}
PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "prodigyopt": "prodigyopt",
    "pytorch_optimizer": "pytorch-optimizer",
}

# A weight that bitsandbytes keeps in 8 bits (from 4096 elements on) and in paged memory (from 100,000 on).
TRIAL_SHAPE = (320, 320)
_OWN_ARGUMENTS = ("params", "self", "lr", "adamw_lr")  # given by the trainer
_WRONG_VALUE = (TypeError, ValueError, IndexError, AttributeError, ArithmeticError, RuntimeError)


def make_optimizer(
    name: str,
    groups: Sequence[Mapping[str, Any]],
    *,
    lr: float,
    params: Mapping[str, Any] | None = None,
    named: Mapping[str, nn.Parameter] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer `name` over parameter groups; `params` are its own keywords.

    groups: dicts with "params" and optionally "lr". named: the names of the parameters, by which Muon tells
    matrices from tables of vectors. Raises ConfigError as check_optimizer does.
    """
    devices = [parameter.device for group in groups for parameter in group["params"]]
    check_optimizer(name, params, device=devices[0] if devices else "cpu")
    return _build(name, groups, lr=lr, given=params or {}, named=named or {})


def check_optimizer(
    name: str, params: Mapping[str, Any] | None = None, *, device: torch.device | str = "cpu"
) -> None:
    """Try the optimizer `name` with its keywords on a weight of its own on a device; needs no model.

    Raises ConfigError for an unknown name or keyword, a value that does not work, a package that is not
    installed, or a device that the optimizer has no kernels for.
    """
    given = dict(params or {})
    known = settings_of(_factory(name)) - set(_OWN_ARGUMENTS)
    problems = [
        Problem(
            "config.unknown_key",
            f"{name} has no parameter '{key}'",
            key=f"train.optimizer_params.{key}",
            remedy="the rate is train.lr" if key in _OWN_ARGUMENTS else f"it has {', '.join(sorted(known))}",
        )
        for key in given
        if key not in known
    ]
    if problems:
        raise ConfigError(problems)
    whole = _failure(name, given, device)
    if whole is None:
        return
    usual = _failure(name, {}, device)
    if usual is not None:
        raise ConfigError(_cannot_run(name, device, usual))
    alone = {key: reason for key, value in given.items() if (reason := _failure(name, {key: value}, device))}
    wrong = [_bad_value(name, f".{key}", f"{given[key]!r} does", reason) for key, reason in alone.items()]
    raise ConfigError(wrong or [_bad_value(name, "", f"{given} do", whole)])


def settings_of(factory: Callable[..., Any]) -> set[str]:
    """The names of an optimizer's keywords; those swallowed by a **kwargs are not among them."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name for p in inspect.signature(factory).parameters.values() if p.kind not in kinds}


def split_for_muon(
    groups: Sequence[Mapping[str, Any]], named: Mapping[str, nn.Parameter]
) -> list[dict[str, Any]]:
    """Every group in two: matrices, which Muon makes orthogonal, and the rest, which AdamW takes.

    Matrices are weights of two dimensions (arXiv:2502.16982), LoRA's among them, but no tables of vectors:
    those whose name holds "embed". Convolutions, biases and norms go to AdamW. Empty halves are left out.
    """
    tables = {id(parameter) for name, parameter in named.items() if "embed" in name.lower()}
    halves = []
    for group in groups:
        matrices = [p for p in group["params"] if p.ndim == 2 and id(p) not in tables]
        chosen = {id(parameter) for parameter in matrices}
        rest = [p for p in group["params"] if id(p) not in chosen]
        halves += [
            {**group, "params": matrices, "use_muon": True},
            {**group, "params": rest, "use_muon": False},
        ]
    return [half for half in halves if half["params"]]


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


def _build(
    name: str,
    groups: Sequence[Mapping[str, Any]],
    *,
    lr: float,
    given: Mapping[str, Any],
    named: Mapping[str, nn.Parameter],
) -> torch.optim.Optimizer:
    # Each group names its rate: Muon gives groups without one two different rates.
    own = [{"lr": lr, **group} for group in groups]
    if name.lower() == "muon":
        own = split_for_muon(own, named)
    with redirect_stdout(io.StringIO()):  # Prodigy prints what it was given
        made: torch.optim.Optimizer = _factory(name)(own, lr=lr, **_keywords(name, given))
    return made


def _keywords(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given over what is usual."""
    usual = dict(DEFAULTS.get(name.lower(), {}))
    if given.get("foreach"):  # torch has either kernel
        usual.pop("fused", None)
    return usual | dict(given)


def _failure(name: str, given: Mapping[str, Any], device: torch.device | str) -> str | None:
    """Why the optimizer cannot take a step with these keywords, or None if it can."""
    weight = nn.Parameter(torch.zeros(TRIAL_SHAPE, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        optimizer = _build(name, [{"params": [weight]}], lr=1e-3, given=given, named={})
        if not given.get("capturable"):
            optimizer.step()
    except _WRONG_VALUE as error:
        return str(error) or type(error).__name__
    return None


def _cannot_run(name: str, device: torch.device | str, reason: str) -> Problem:
    message = f"{name} does not run on {device}: {reason}"
    remedy = "use optimizer: adamw, or another device"
    return Problem("config.optimizer_device", message, key="train.optimizer", remedy=remedy)


def _bad_value(name: str, key: str, subject: str, reason: str) -> Problem:
    message = f"{subject} not work with {name}: {reason}"
    return Problem("config.bad_value", message, key=f"train.optimizer_params{key}")
