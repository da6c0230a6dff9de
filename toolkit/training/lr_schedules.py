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


def constant(done: int, total: int, *, factor: float = 1.0) -> float:
    """The peak rate times `factor` until `total`, then the peak rate."""
    return factor if done < total else 1.0


def linear(done: int, total: int, *, start_factor: float = 1.0, end_factor: float = 0.0) -> float:
    """Straight from start_factor to end_factor."""
    return start_factor + (end_factor - start_factor) * min(done / max(total, 1), 1.0)


def cosine(done: int, total: int, *, end_factor: float = 0.0) -> float:
    """Half a cosine from 1 to end_factor (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5)."""
    progress = min(done / max(total, 1), 1.0)
    return end_factor + (1.0 - end_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def cosine_with_restarts(
    done: int, total: int, *, num_cycles: int = 3, T_0: int = 0, T_mult: int = 1, end_factor: float = 0.0
) -> float:
    """Cosines that each start at 1 (SGDR, arXiv:1608.03983): `num_cycles` of equal length,

    or with T_0 as many as there is time for, the first T_0 updates long, each T_mult times the one before.
    """
    if done >= total:
        return end_factor
    if T_0 == 0:
        return cosine(round(done * num_cycles % total * 1e6), round(total * 1e6), end_factor=end_factor)
    length, start = T_0, 0
    while done >= start + length:
        start, length = start + length, length * T_mult
    return cosine(done - start, length, end_factor=end_factor)


def polynomial(done: int, total: int, *, power: float = 1.0, end_factor: float = 0.0) -> float:
    """(1 - progress)^power down to end_factor."""
    progress = min(done / max(total, 1), 1.0)
    return end_factor + (1.0 - end_factor) * (1.0 - progress) ** power


def step(done: int, total: int, *, step_size: int, gamma: float = 0.1, end_factor: float = 0.0) -> float:
    """Multiply by gamma every step_size updates, not below end_factor."""
    return max(end_factor, gamma ** (done // step_size))


def rex(done: int, total: int, *, end_factor: float = 0.0) -> float:
    """(1 - p) / (1 - p / 2) at progress p: long near the peak, steep at the end (REX, arXiv:2107.04197)."""
    progress = min(done / max(total, 1), 1.0)
    return end_factor + (1.0 - end_factor) * (1.0 - progress) / (1.0 - progress / 2)


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "constant_with_warmup": constant,
    "linear": linear,
    "cosine": cosine,
    "cosine_with_restarts": cosine_with_restarts,
    "polynomial": polynomial,
    "step": step,
    "rex": rex,
}

# Parameters that every schedule has.
_WARMUP, _LENGTH, _LOWEST = "num_warmup_steps", "total_iters", "min_lr"
# Other spellings of parameters: of torch, of diffusers, and of ai-toolkit.
_ALIASES = {
    "warmup_steps": _WARMUP, "lr_warmup_steps": _WARMUP,
    "T_max": _LENGTH, "max_iterations": _LENGTH,
    "eta_min": _LOWEST, "lr_end": _LOWEST, "min_lr_ratio": "end_factor",
}  # fmt: skip

# Parameter -> its kind and the least it can be.
_VALUES: dict[str, tuple[type[int] | type[float], float]] = {
    _WARMUP: (int, 0),
    _LENGTH: (int, 1),
    _LOWEST: (float, 0),
    "num_cycles": (int, 1),
    "T_0": (int, 1),
    "T_mult": (int, 1),
    "step_size": (int, 1),
    "gamma": (float, 0),
    "power": (float, 0),
    "factor": (float, 0),
    "start_factor": (float, 0),
    "end_factor": (float, 0),
}


def make_schedule(
    name: str,
    params: Mapping[str, Any] | None = None,
    *,
    total: int | None = None,
    lr: float | None = None,
) -> Schedule:
    """The schedule `name`, with a linear warm-up of params["num_warmup_steps"] updates before it.

    The schedule itself spans the updates after the warm-up, or ends after params["total_iters"] updates
    (counted from the start) and stays where it ended. `constant_with_warmup` warms up over 1000 updates
    unless told otherwise. lr: the peak rate, which params["min_lr"] is a rate beside. With `total` its values
    are tried at the start and the end of so many updates. Raises ConfigError for an unknown name, an unknown
    parameter or a value that cannot be.
    """
    if name not in SCHEDULES:
        guess = did_you_mean(name, SCHEDULES)
        hint = f"did you mean '{guess}'?" if guess else f"known: {', '.join(SCHEDULES)}"
        problem = Problem(
            "config.unknown_name", f"unknown LR schedule '{name}'; {hint}", key="train.lr_scheduler"
        )
        raise ConfigError(problem)
    function = SCHEDULES[name]
    values = _read(name, function, params or {}, lr)
    warmup = int(values.pop(_WARMUP, 1000 if name == "constant_with_warmup" else 0))
    length = values.pop(_LENGTH, None)

    def schedule(done: int, total: int) -> float:
        if done < warmup:
            return (done + 1) / (warmup + 1)
        end = total if length is None else int(length)
        return function(done - warmup, max(end - warmup, 1), **values)

    for done in (0, 1, total) if total is not None else ():
        _try(schedule, done, total or 0)
    return schedule


def _read(
    name: str, function: Callable[..., float], params: Mapping[str, Any], lr: float | None
) -> dict[str, float]:
    """The parameters of a schedule by their own names, min_lr as an end_factor. Raises ConfigError."""
    keywords = {
        p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    known = [*keywords, _LENGTH, *([_LOWEST] if "end_factor" in keywords else []), _WARMUP]
    problems: list[Problem] = []
    values: dict[str, float] = {}
    for written, value in params.items():
        key = _own_name(written)
        if key not in known:
            message = f"the {name} schedule has no parameter '{written}'; it has {', '.join(known)}"
            problems.append(_problem("config.unknown_key", message, written))
            continue
        try:
            number = _value(key, value)
        except ValueError as error:
            problems.append(_problem("config.bad_value", str(error), written))
            continue
        if values.setdefault(key, number) != number:
            message = f"'{written}' and '{key}' mean the same and differ"
            problems.append(_problem("config.conflict", message, written))
    given = {_own_name(written) for written in params}
    problems += [
        _problem("config.missing_key", f"the {name} schedule needs '{key}'", key)
        for key, parameter in keywords.items()
        if parameter.default is parameter.empty and key not in given
    ]
    problems += _end(values, lr)
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.key or ""))
    return values


def _end(values: dict[str, float], lr: float | None) -> list[Problem]:
    """Turn the lowest rate into a factor on the peak rate; what is wrong with it."""
    lowest = values.pop(_LOWEST, None)
    if lowest is None or lr is None:
        return []
    if "end_factor" in values:
        message = "cannot be combined with end_factor: both say where the rate ends"
        return [_problem("config.conflict", message, _LOWEST)]
    if lowest > lr:
        return [_problem("config.bad_value", f"must be at most lr ({lr:g}), not {lowest:g}", _LOWEST)]
    values["end_factor"] = lowest / lr if lr else 0.0
    return []


def _problem(code: str, message: str, key: str) -> Problem:
    return Problem(code, message, key=f"train.lr_scheduler_params.{key}")


def _own_name(written: str) -> str:
    return _ALIASES.get(written, written)


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
