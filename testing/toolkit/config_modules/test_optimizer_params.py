"""The optimizers' own keywords, checked without them."""

from __future__ import annotations

import math

import pytest

from testing.config_helpers import changed, line_of, load, problems_of
from toolkit.config_modules.names import OPTIMIZERS
from toolkit.config_modules.optimizer_params import PARAMETERS, check_params
from toolkit.training.optimizers import _OWN_ARGUMENTS, DEFAULTS, _factory, settings_of

pytestmark = pytest.mark.usefixtures("folder")


def with_params(written: str, optimizer: str = "adamw") -> str:
    return changed("optimizer: adamw8bit", f"optimizer: {optimizer}\n        optimizer_params: {written}")


@pytest.mark.parametrize(
    ("written", "key", "message", "remedy"),
    [
        ("{foo: 1}", "foo", "adamw has no parameter 'foo'", "it has amsgrad, betas, capturable"),
        ("{weigth_decay: 1}", "weigth_decay", "adamw has no parameter", "did you mean 'weight_decay'?"),
        ("{lr: 1}", "lr", "adamw has no parameter 'lr'", "the rate is train.lr"),
        ("{betas: x}", "betas", "must be a list of 2 numbers in [0, 1), not 'x'", ""),
        ("{betas: [2, 3]}", "betas", "must be a list of 2 numbers in [0, 1), not [2, 3]", ""),
        ("{betas: [0.9, 0.9, 0.9]}", "betas", "must be a list of 2 numbers", ""),
        ("{weight_decay: .nan}", "weight_decay", "must be a finite number, not nan", ""),
        ("{weight_decay: '0.1'}", "weight_decay", "must be a number, not '0.1'", ""),
        ("{weight_decay: -1}", "weight_decay", "must be at least 0, not -1", ""),
        ("{weight_decay: null}", "weight_decay", "must be a number, not null", ""),
        ("{amsgrad: 1}", "amsgrad", "must be true or false, not 1", ""),
    ],
)
def test_a_wrong_keyword_is_told_with_its_line(written, key, message, remedy):
    text = with_params(written)
    (problem,) = problems_of(text)
    assert (problem.key, problem.line) == (f"train.optimizer_params.{key}", line_of(text, "optimizer_params"))
    assert problem.message.startswith(message)
    assert (problem.remedy or "").startswith(remedy)


@pytest.mark.parametrize(
    ("optimizer", "written"),
    [
        ("adamw", "{betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0, fused: null, amsgrad: true}"),
        ("adafactor", "{eps: [1e-30, 1e-3], beta1: null, decay_rate: -0.8}"),
        ("prodigy", "{growth_rate: .inf, d_coef: 2, slice_p: 11, beta3: null, safeguard_warmup: true}"),
        ("came", "{betas: [0.9, 0.999, 0.9999]}"),
        ("muon", "{ns_coeffs: original, ns_steps: 5, adamw_betas: [0.9, 0.95]}"),
        ("adamw8", "{optim_bits: 8, min_8bit_size: 4096}"),
    ],
)
def test_what_an_optimizer_takes_passes(optimizer, written):
    load(with_params(written, optimizer))


@pytest.mark.parametrize(
    ("optimizer", "params"),
    [
        ("adafactor", {"eps": 3}),
        ("tiger", {"beta": 1}),
        ("muon", {"ns_steps": 2.5}),
        ("prodigy", {"growth_rate": math.nan}),
        ("adafactor", {"relative_step": True}),
        ("adamw8bit", {"amsgrad": True}),
    ],
)
def test_kinds_differ_between_optimizers(optimizer, params):
    ((location, code, _, _),) = check_params(optimizer, params)
    assert (location, code) == (("train", "optimizer_params", *params), "config.bad_value")


@pytest.mark.parametrize(
    ("optimizer", "params", "key"),
    [
        ("sgd", {"nesterov": True}, "nesterov"),
        ("sgd", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov"),
        ("adamw", {"foreach": True, "fused": True}, "foreach"),
    ],
)
def test_keywords_that_exclude_each_other(optimizer, params, key):
    ((location, code, _, _),) = check_params(optimizer, params)
    assert (location, code) == (("train", "optimizer_params", key), "config.conflict")
    assert list(check_params("sgd", {"nesterov": True, "momentum": 0.9})) == []


def test_the_keywords_are_those_of_the_optimizers():
    assert set(PARAMETERS) == set(OPTIMIZERS.values())
    for name, known in PARAMETERS.items():
        assert known == settings_of(_factory(name)) - set(_OWN_ARGUMENTS), name


def test_the_usual_values_are_of_the_right_kinds():
    import inspect

    for name, known in PARAMETERS.items():
        signature = inspect.signature(_factory(name)).parameters
        usual = {key: signature[key].default for key in known} | DEFAULTS.get(name, {})
        assert list(check_params(name, usual)) == [], name
