"""Learning-rate schedules as pure functions: (updates done, updates in all) -> factor on the peak rate.

Having no state, a schedule needs nothing from a checkpoint: a resumed run asks for the same numbers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from toolkit.errors import ConfigError, Problem, did_you_mean

Schedule = Callable[[int, int], float]


def constant(done: int, total: int) -> float:
    """Always the peak rate."""
    return 1.0


def linear(done: int, total: int, *, end_factor: float = 0.0) -> float:
    """Straight from 1 to end_factor."""
    return 1.0 + (end_factor - 1.0) * min(done / max(total, 1), 1.0)


def cosine(done: int, total: int, *, end_factor: float = 0.0) -> float:
    """Half a cosine from 1 to end_factor (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5)."""
    progress = min(done / max(total, 1), 1.0)
    return end_factor + (1.0 - end_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def cosine_with_restarts(done: int, total: int, *, num_cycles: int = 3, end_factor: float = 0.0) -> float:
    """`num_cycles` cosines of equal length, each starting at 1 (SGDR, arXiv:1608.03983)."""
    if done >= total:
        return end_factor
    return cosine(round(done * num_cycles % total * 1e6), round(total * 1e6), end_factor=end_factor)


def polynomial(done: int, total: int, *, power: float = 1.0, end_factor: float = 0.0) -> float:
    """(1 - progress)^power down to end_factor."""
    progress = min(done / max(total, 1), 1.0)
    return end_factor + (1.0 - end_factor) * (1.0 - progress) ** power


def step(done: int, total: int, *, step_size: int, gamma: float = 0.1) -> float:
    """Multiply by gamma every step_size updates."""
    return gamma ** (done // step_size)


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "constant_with_warmup": constant,
    "linear": linear,
    "cosine": cosine,
    "cosine_with_restarts": cosine_with_restarts,
    "polynomial": polynomial,
    "step": step,
}

# Said by ai-toolkit configs and derived here from train.steps.
_IMPLIED = {"total_iters", "T_max", "T_0"}


# Parameter -> its kind and the least it can be.
_VALUES: dict[str, tuple[type[int] | type[float], float]] = {
    "num_warmup_steps": (int, 0),
    "num_cycles": (int, 1),
    "step_size": (int, 1),
    "gamma": (float, 0),
    "power": (float, 0),
    "end_factor": (float, 0),
}


def make_schedule(
    name: str, params: Mapping[str, Any] | None = None, *, total: int | None = None
) -> Schedule:
    """The schedule `name`, with a linear warm-up of params["num_warmup_steps"] updates before it.

    The schedule itself spans the updates after the warm-up. `constant_with_warmup` warms up over 1000
    updates unless told otherwise. With `total` its values are tried at the start and the end of so many
    updates. Raises ConfigError for an unknown name, an unknown parameter or a value that cannot be.
    """
    if name not in SCHEDULES:
        guess = did_you_mean(name, SCHEDULES)
        hint = f"did you mean '{guess}'?" if guess else f"known: {', '.join(SCHEDULES)}"
        problem = Problem(
            "config.unknown_name", f"unknown LR schedule '{name}'; {hint}", key="train.lr_scheduler"
        )
        raise ConfigError(problem)
    params = {key: value for key, value in (params or {}).items() if key not in _IMPLIED}
    function = SCHEDULES[name]
    keywords = {
        p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    problems = [
        Problem(
            "config.unknown_key",
            f"the {name} schedule has no parameter '{key}'; it has {known_keys(keywords)}",
            key=f"train.lr_scheduler_params.{key}",
        )
        for key in params
        if key not in keywords and key != "num_warmup_steps"
    ] + [
        Problem(
            "config.missing_key", f"the {name} schedule needs '{key}'", key=f"train.lr_scheduler_params.{key}"
        )
        for key, parameter in keywords.items()
        if parameter.default is parameter.empty and key not in params
    ]
    values: dict[str, float] = {}
    for key in params.keys() & {"num_warmup_steps", *keywords}:
        try:
            values[key] = _value(key, params[key])
        except ValueError as error:
            location = f"train.lr_scheduler_params.{key}"
            problems.append(Problem("config.bad_value", str(error), key=location))
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.key or ""))
    warmup = values.pop("num_warmup_steps", 1000 if name == "constant_with_warmup" else 0)

    def schedule(done: int, total: int) -> float:
        if done < warmup:
            return (done + 1) / (warmup + 1)
        return function(done - warmup, max(total - warmup, 1), **values)

    for done in (0, 1, total) if total is not None else ():
        _try(schedule, done, total or 0)
    return schedule


def _value(key: str, value: Any) -> float:
    """A parameter's value as a number of its kind; text may stand for one. Raises ValueError."""
    kind, least = _VALUES[key]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError(f"must be a {'whole ' if kind is int else ''}number, not {value!r}")
    if number < least:
        raise ValueError(f"must be at least {least}, not {value!r}")
    return kind(number)


def _try(schedule: Schedule, done: int, total: int) -> None:
    """Ask for a factor. Raises ConfigError if there is none."""
    try:
        factor = schedule(done, total)
    except OverflowError:
        factor = math.inf
    if not math.isfinite(factor):
        message = f"the schedule has no finite rate at step {done}"
        raise ConfigError(Problem("config.bad_value", message, key="train.lr_scheduler_params"))


def known_keys(keywords: Mapping[str, Any]) -> str:
    """The parameters of a schedule as an enumeration; the warm-up belongs to all of them."""
    return ", ".join([*keywords, "num_warmup_steps"])
