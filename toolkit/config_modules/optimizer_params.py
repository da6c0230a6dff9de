"""The keywords of every optimizer, and checks of what is given for them. Torch-free.

Equal to the signatures of the optimizers (a test compares them); those import torch, which a check must not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.config_modules.base import Location
from toolkit.config_modules.explain import shown
from toolkit.errors import did_you_mean

Finding = tuple[Location, str, str, str | None]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TORCH = "weight_decay maximize foreach differentiable"
_PYTORCH_OPTIMIZER = "weight_decay maximize foreach"
_DECOUPLED = f"{_PYTORCH_OPTIMIZER} weight_decouple"
_FIXED = f"{_DECOUPLED} fixed_decay"
_RECTIFIED = f"betas eps n_sma_threshold degenerated_to_sgd {_FIXED}"
_AVERAGED = f"eps r weight_lr_power {_PYTORCH_OPTIMIZER}"
_8BIT = "weight_decay args min_8bit_size"
_PAGED_ADAM = f"betas eps amsgrad optim_bits {_8BIT}"
_ADEMAMIX_8BIT = "betas alpha t_alpha t_beta3 eps weight_decay min_8bit_size"
PARAMETERS = {
    name: _names(text)
    for name, text in {
        "adamw": f"betas eps amsgrad capturable fused {_TORCH}",
        "adam": f"betas eps amsgrad capturable fused decoupled_weight_decay {_TORCH}",
        "sgd": f"momentum dampening nesterov fused {_TORCH}",
        "adagrad": f"lr_decay initial_accumulator_value eps fused {_TORCH}",
        "rmsprop": f"alpha eps momentum centered capturable {_TORCH}",
        "adafactor": "eps clip_threshold decay_rate beta1 weight_decay scale_parameter relative_step "
        "warmup_init",
        "lion": f"betas {_FIXED}",
        "tiger": f"beta {_FIXED}",
        "came": f"betas clip_threshold ams_bound eps1 eps2 {_FIXED}",
        "muon": "momentum nesterov ns_steps ns_coeffs ns_method ns_reset_steps use_adjusted_lr adamw_betas "
        f"adamw_wd adamw_eps {_DECOUPLED}",
        "ademamix": f"betas alpha t_alpha_beta3 eps {_FIXED}",
        "adopt": f"betas clip_lambda eps {_FIXED}",
        "stableadamw": f"betas kahan_sum eps {_DECOUPLED}",
        "ranger": "betas alpha k n_sma_threshold degenerated_to_sgd use_gc gc_conv_only eps " + _FIXED,
        "adan": f"betas max_grad_norm eps {_DECOUPLED}",
        "lamb": f"rectify grad_averaging max_grad_norm adam pre_norm {_RECTIFIED}",
        "adabelief": f"rectify ams_bound {_RECTIFIED}",
        "soap": "betas shampoo_beta weight_decay precondition_frequency max_precondition_dim merge_dims "
        "precondition_1d correct_bias normalize_gradient data_format eps maximize",
        "adamwschedulefree": f"betas warmup_steps decoupling_c ams_bound {_AVERAGED}",
        "sgdschedulefree": f"momentum warmup_steps {_AVERAGED}",
        "radamschedulefree": f"betas silent_sgd_phase {_AVERAGED}",
        "prodigy": "betas beta3 eps weight_decay decouple use_bias_correction safeguard_warmup d0 d_coef "
        "growth_rate fsdp_in_use slice_p",
        "dadaptadam": f"betas d0 growth_rate bias_correction eps {_FIXED}",
        "dadaptlion": f"betas d0 {_FIXED}",
        "dadaptadan": f"betas d0 growth_rate eps {_DECOUPLED}",
        "dadaptsgd": f"momentum d0 growth_rate {_FIXED}",
        "dadaptadagrad": f"momentum d0 growth_rate eps {_FIXED}",
        "adamw8bit": f"is_paged {_PAGED_ADAM}",
        "adam8bit": f"is_paged {_PAGED_ADAM}",
        "lion8bit": f"betas is_paged {_8BIT}",
        "ademamix8bit": f"is_paged {_ADEMAMIX_8BIT}",
        "adagrad8bit": f"lr_decay initial_accumulator_value eps optim_bits {_8BIT}",
        "rmsprop8bit": f"alpha eps momentum centered {_8BIT}",
        "sgd8bit": f"momentum dampening nesterov {_8BIT}",
        "pagedadamw": _PAGED_ADAM,
        "pagedadamw8bit": _PAGED_ADAM,
        "pagedlion8bit": f"betas {_8BIT}",
        "pagedademamix8bit": _ADEMAMIX_8BIT,
    }.items()
}
_OWN_ARGUMENTS = ("params", "self", "lr", "adamw_lr")  # given by the trainer
_BETAS = ("betas", "adamw_betas")
_THREE_BETAS = ("came", "ademamix", "adan", "dadaptadan", "ademamix8bit", "pagedademamix8bit")
_FLAGS = _names(
    "amsgrad maximize foreach capturable differentiable fused decoupled_weight_decay nesterov centered "
    "scale_parameter relative_step warmup_init weight_decouple fixed_decay ams_bound use_adjusted_lr "
    "kahan_sum degenerated_to_sgd use_gc gc_conv_only rectify grad_averaging adam pre_norm merge_dims "
    "precondition_1d correct_bias normalize_gradient silent_sgd_phase decouple use_bias_correction "
    "safeguard_warmup fsdp_in_use bias_correction is_paged"
)
_WHOLE = _names(
    "ns_steps k n_sma_threshold precondition_frequency max_precondition_dim warmup_steps slice_p optim_bits "
    "min_8bit_size"
)
_NOT_NEGATIVE = _WHOLE | _names(
    "weight_decay eps eps1 eps2 momentum lr_decay initial_accumulator_value clip_threshold max_grad_norm "
    "adamw_wd adamw_eps d0 d_coef growth_rate"
)
_BELOW_1 = ("beta", "beta1")
_MAY_BE_NULL = _names("foreach fused beta1 beta3 t_alpha t_alpha_beta3 t_beta3 shampoo_beta args")
# Neither numbers nor switches: what they may be only the optimizer itself can tell.
_OTHERS = ("args", "clip_lambda", "ns_coeffs", "ns_method", "ns_reset_steps", "data_format")
# Switches that an optimizer refuses to have on, whatever stands beside them.
_REFUSED = {
    "adafactor": ("relative_step", "warmup_init"),
    "adamw8bit": ("amsgrad",),
    "adam8bit": ("amsgrad",),
} | dict.fromkeys(("adamw", "adam", "sgd", "adagrad"), ("differentiable",))


def check_params(name: str, given: Mapping[str, Any]) -> Iterator[Finding]:
    """Keywords that an optimizer does not have, and values of the wrong kind or out of range."""
    known = PARAMETERS[name]
    for key, value in given.items():
        place = ("train", "optimizer_params", key)
        if key in known:
            wrong = _wrong(name, key, value)
            if wrong is not None:
                yield place, "config.bad_value", f"{wrong}, not {shown(value)}", None
            continue
        guess = did_you_mean(key, known)
        remedy = f"did you mean '{guess}'?" if guess else f"it has {', '.join(sorted(known))}"
        if key in _OWN_ARGUMENTS:
            remedy = "the rate is train.lr"
        yield place, "config.unknown_key", f"{name} has no parameter '{key}'", remedy
    yield from _check_together(name, given)


def _check_together(name: str, given: Mapping[str, Any]) -> Iterator[Finding]:
    """Keywords that exclude each other."""
    place = ("train", "optimizer_params")
    plain = not given.get("momentum") or given.get("dampening")
    if name == "sgd" and given.get("nesterov") is True and plain:
        message = "needs a momentum above 0, and no dampening"
        yield (*place, "nesterov"), "config.conflict", message, "add momentum: 0.9"
    if given.get("foreach") is True and given.get("fused") is True:
        yield (*place, "foreach"), "config.conflict", "cannot be combined with fused: true", "leave one out"


def _wrong(name: str, key: str, value: Any) -> str | None:
    """What a value must be, if it is not."""
    if key in _OTHERS or (value is None and key in _MAY_BE_NULL):
        return None
    if value is True and key in _REFUSED.get(name, ()):
        return f"must be false with {name}"
    if key in _FLAGS:
        return None if isinstance(value, bool) else "must be true or false"
    if key in _BETAS or (name, key) == ("adafactor", "eps"):
        below_1 = key in _BETAS
        count = 3 if name in _THREE_BETAS else 2
        fits = isinstance(value, list | tuple) and len(value) == count and all(map(_is_number, value))
        if fits and all(each >= 0 and (each < 1 or not below_1) for each in value):
            return None
        return f"must be a list of {count} numbers {'in [0, 1)' if below_1 else 'of at least 0'}"
    return _wrong_number(key, value)


def _wrong_number(key: str, value: Any) -> str | None:
    if not (_is_number(value) or (key == "growth_rate" and value == math.inf)):
        return "must be a finite number" if isinstance(value, float) else "must be a number"
    if key in _WHOLE and not isinstance(value, int):
        return "must be a whole number"
    if key in _BELOW_1 and not 0 <= value < 1:
        return "must be in [0, 1)"
    return "must be at least 0" if key in _NOT_NEGATIVE and value < 0 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
