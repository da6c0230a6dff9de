import pytest
import torch

from toolkit.errors import ConfigError
from toolkit.training.optimizers import OPTIMIZERS, check_optimizer, make_optimizer
from toolkit.training.updates import GuardedOptimizer

RATES = {"sgd": 0.2, "adagrad": 0.5, "prodigy": 1.0}


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_converges_on_a_quadratic(name):
    parameter = torch.nn.Parameter(torch.full((4096,), 3.0))
    try:
        optimizer = make_optimizer(name, [{"params": [parameter]}], lr=RATES.get(name, 0.05))
    except ConfigError as error:
        assert "pip install" in str(error)
        return
    for _ in range(200):
        optimizer.zero_grad()
        (parameter**2).mean().backward()
        parameter.grad.mul_(4096)
        optimizer.step()
    assert parameter.detach().abs().max() < 0.5


def test_groups_keep_their_own_rate():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = make_optimizer("adamw", [{"params": [first]}, {"params": [second], "lr": 1e-5}], lr=1e-3)
    guarded = GuardedOptimizer(optimizer)
    for factor in (0.5, 0.1):
        guarded.set_lr(factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [1e-3 * factor, 1e-5 * factor]
        )


def test_unknown_names_and_keywords_are_named():
    with pytest.raises(ConfigError, match="did you mean 'adamw'"):
        make_optimizer("adamv", [{"params": [torch.nn.Parameter(torch.zeros(1))]}], lr=1e-3)
    with pytest.raises(ConfigError, match=r"optimizer_params.weigth_decay: adamw has no parameter"):
        parameter = torch.nn.Parameter(torch.zeros(1))
        make_optimizer("adamw", [{"params": [parameter]}], lr=1e-3, params={"weigth_decay": 0.1})


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adagrad", "adafactor"])
def test_a_non_finite_update_touches_neither_weights_nor_moments(name):
    def build():
        parameter = torch.nn.Parameter(torch.ones(3, 3))
        return parameter, GuardedOptimizer(make_optimizer(name, [{"params": [parameter]}], lr=0.1))

    (struck, guarded), (spared, reference) = build(), build()
    good = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    for gradient in (good, torch.full((3, 3), float("nan")), good):
        struck.grad = gradient.clone()
        guarded.step(torch.isfinite(gradient).all())
    for gradient in (good, good):
        spared.grad = gradient.clone()
        reference.step(torch.tensor(True))
    assert torch.equal(struck, spared)
    assert struck.grad is None


@pytest.mark.parametrize(
    ("name", "params", "key", "value"),
    [
        ("adamw", {"betas": 0.9}, ".betas", "0.9"),
        ("adamw", {"betas": [0.9]}, ".betas", "[0.9]"),
        ("adamw", {"weight_decay": "abc"}, ".weight_decay", "'abc'"),
        ("adamw", {"weight_decay": -1.0, "betas": [0.9, 0.99]}, ".weight_decay", "-1.0"),
        ("sgd", {"momentum": "x"}, ".momentum", "'x'"),
        ("sgd", {"nesterov": True}, ".nesterov", "True"),
        ("adafactor", {"eps": 3}, ".eps", "3"),
        ("adafactor", {"relative_step": True}, ".relative_step", "True"),
        ("adagrad", {"lr_decay": None}, ".lr_decay", "None"),
    ],
)
def test_wrong_values_are_named_before_a_model_is_loaded(name, params, key, value):
    with pytest.raises(ConfigError) as caught:
        check_optimizer(name, params)
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("config.bad_value", f"train.optimizer_params{key}")
    assert problem.message.startswith(f"{value} does not work with {name}")
    with pytest.raises(ConfigError, match="optimizer_params"):
        make_optimizer(name, [{"params": [torch.nn.Parameter(torch.zeros(1))]}], lr=0.1, params=params)


def test_values_that_are_wrong_only_together_are_told_as_one():
    both = {"momentum": 0.9, "dampening": 0.5, "nesterov": True}
    assert make_optimizer("sgd", [{"params": [torch.nn.Parameter(torch.zeros(1))]}], lr=0.1,
                          params=both | {"dampening": 0.0})  # fmt: skip
    with pytest.raises(ConfigError, match="optimizer_params.nesterov: True does not work"):
        check_optimizer("sgd", both)  # nesterov alone needs a momentum, so it is the one that is named
    with pytest.raises(ConfigError, match=r"optimizer_params: \{.*\} do not work with sgd"):
        check_optimizer("sgd", {"foreach": True, "fused": True})


def test_the_rate_is_no_parameter_of_the_optimizer():
    with pytest.raises(ConfigError, match="optimizer_params.lr: adamw has no parameter 'lr'"):
        check_optimizer("adamw", {"lr": 1e-3})


def test_what_excludes_the_fused_default_switches_it_off():
    parameter = torch.nn.Parameter(torch.zeros(1))
    assert make_optimizer("adamw", [{"params": [parameter]}], lr=0.1).defaults["fused"] is True
    optimizer = make_optimizer("adamw", [{"params": [parameter]}], lr=0.1, params={"foreach": True})
    assert not optimizer.defaults["fused"]


def test_checking_an_optimizer_draws_no_random_number():
    before = torch.get_rng_state()
    for name in OPTIMIZERS.names():
        try:
            check_optimizer(name, {})
        except ConfigError as error:
            assert error.problems[0].code == "config.missing_package"
    assert torch.equal(torch.get_rng_state(), before)
