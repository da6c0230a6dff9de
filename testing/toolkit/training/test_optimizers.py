"""Every optimizer of the table: that it learns, resumes to the bit, and refuses what is not finite."""

import json
from contextlib import nullcontext

import pytest
import torch

from toolkit.config_modules.names import RATE_FREE, SCHEDULE_FREE
from toolkit.errors import ConfigError
from toolkit.training.checkpoints import pack_optimizer, unpack
from toolkit.training.optimizers import OPTIMIZERS, check_optimizer, make_optimizer, split_for_muon
from toolkit.training.schedule_free import schedule_free_average
from toolkit.training.updates import GuardedOptimizer

SHAPES = [(64, 64), (64,), (4, 4, 3, 3), (4, 96)]  # the first is large enough for 8 bits
RATES = {
    "sgd": 0.2, "adagrad": 0.5, "adagrad8bit": 0.5, "came": 0.01, "ranger": 0.2, "soap": 0.5,
    "sgdschedulefree": 0.5, "radamschedulefree": 1.0, "adamwschedulefree": 0.5, "rmsprop8bit": 0.01,
}  # fmt: skip
# bitsandbytes says that it keeps paged states unpaged on a CPU.
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
NEEDS_A_GPU = "pagedademamix8bit"
NAMES = [name for name in OPTIMIZERS if name != NEEDS_A_GPU]
every_optimizer = pytest.mark.parametrize("name", NAMES)


def rate(name: str) -> float:
    return 1.0 if name in RATE_FREE else RATES.get(name, 0.05)


def weights() -> list[torch.nn.Parameter]:
    """Equal on every call."""
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def guarded(name: str, parameters: list[torch.nn.Parameter], **options) -> GuardedOptimizer:
    return GuardedOptimizer(make_optimizer(name, [{"params": parameters}], lr=rate(name), **options))


def pull(parameters: list[torch.nn.Parameter], step: int) -> None:
    """Gradients of step number `step`: towards 0, with noise."""
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.grad = 0.3 * parameter.detach() + 0.1 * noise


@every_optimizer
def test_converges_on_a_quadratic(name):
    parameter = weights()[0]
    optimizer = make_optimizer(name, [{"params": [parameter]}], lr=rate(name))
    begin = float(parameter.detach().norm())
    curvature = 1 + torch.arange(64) / 32
    for _ in range(200):
        parameter.grad = curvature * parameter.detach()
        optimizer.step()
    average = schedule_free_average(optimizer, [parameter])
    with average.applied() if average else nullcontext():
        assert float(parameter.detach().norm()) < 0.2 * begin


@every_optimizer
def test_going_on_from_a_saved_state_ends_in_the_same_bits(name):
    """Through the checkpoint's own form, JSON included; after a look at averaged weights, where there are."""
    straight = weights()
    optimizer = guarded(name, straight)
    for step in range(8):
        pull(straight, step)
        optimizer.step(torch.tensor(True))

    stopped = weights()
    optimizer = guarded(name, stopped)
    for step in range(4):
        pull(stopped, step)
        optimizer.step(torch.tensor(True))
    average = schedule_free_average(optimizer.optimizer, stopped)
    if average is not None:
        with average.applied():
            pass
    tensors, tree = pack_optimizer(optimizer.optimizer)
    tree = json.loads(json.dumps(tree))

    resumed = weights()
    optimizer = guarded(name, resumed)
    for parameter, value in zip(resumed, stopped, strict=True):
        parameter.data.copy_(value)
    optimizer.load_state_dict(unpack(tree, tensors))
    for step in range(4, 8):
        pull(resumed, step)
        optimizer.step(torch.tensor(True))
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(resumed, weights(), strict=True))


@every_optimizer
def test_a_non_finite_update_touches_neither_weights_nor_state(name):
    (struck, optimizer), (spared, reference) = [
        (parameters, guarded(name, parameters)) for parameters in (weights(), weights())
    ]
    for step in (0, 1, 2):
        pull(struck, step)
        if step == 1:
            struck[1].grad.fill_(float("nan"))
        optimizer.step(torch.tensor(step != 1))
        assert all(parameter.grad is None for parameter in struck)
    for step in (0, 2):
        pull(spared, step)
        reference.step(torch.tensor(True))
    assert all(torch.equal(a, b) for a, b in zip(struck, spared, strict=True))


@pytest.mark.parametrize(
    ("name", "setting", "before", "now"),
    [
        ("prodigy", "d_coef", 1.0, 2.0),
        ("lion", "weight_decay", 0.0, 0.1),
        ("adamwschedulefree", "betas", (0.9, 0.999), (0.95, 0.99)),
        ("muon", "momentum", 0.95, 0.9),
    ],
)
def test_a_resumed_run_takes_its_settings_from_the_config_and_the_rest_from_the_state(
    name, setting, before, now
):
    parameters = weights()
    old = guarded(name, parameters, params={setting: before})
    for step in range(3):
        pull(parameters, step)
        old.step(torch.tensor(True))
    tensors, tree = pack_optimizer(old.optimizer)
    new = guarded(name, weights(), params={setting: now})
    new.load_state_dict(unpack(tree, tensors))
    group, was = new.optimizer.param_groups[0], old.optimizer.param_groups[0]
    assert group[setting] == now
    state = {"d", "k", "step", "weight_sum", "train_mode"} & group.keys()
    assert state and all(group[key] == was[key] for key in state)


@pytest.mark.parametrize("name", RATE_FREE)
def test_the_rate_that_is_found_is_told(name):
    parameters = weights()
    optimizer = guarded(name, parameters)
    rates = []
    for step in range(30):
        pull(parameters, step)
        optimizer.step(torch.tensor(True))
        rates.append(float(optimizer.adapted_rate()))
    assert rates[0] <= 1e-5 < rates[-1] < 100  # it begins at 1e-6 and finds something to do
    assert guarded("adamw", weights()).adapted_rate() is None


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_a_look_at_the_average_leaves_the_weights_as_they_are(name):
    """And shows the mean of the fast sequence z: with a constant rate a plain one."""
    parameters = weights()
    optimizer = guarded(name, parameters, params={"weight_decay": 0.0})
    average = schedule_free_average(optimizer.optimizer, parameters)
    fast = []
    for step in range(12):
        pull(parameters, step)
        optimizer.step(torch.tensor(True))
        fast.append(optimizer.optimizer.state[parameters[0]]["z"].clone())
        before = [parameter.detach().clone() for parameter in parameters]
        with average.applied():
            seen = parameters[0].detach().clone()
        assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
        assert all(group["train_mode"] for group in optimizer.optimizer.param_groups)
    assert not torch.allclose(seen, parameters[0], atol=1e-4)
    if name != "radamschedulefree":  # that one leaves its first steps out of the mean
        torch.testing.assert_close(seen, torch.stack(fast).mean(0), rtol=1e-3, atol=1e-4)
    assert schedule_free_average(guarded("adamw", weights()).optimizer, weights()) is None


def test_ranger_goes_down_from_the_first_step():
    """pytorch-optimizer's default goes up while RAdam has no second moment: five steps."""
    parameter = weights()[0]
    optimizer = guarded("ranger", [parameter])
    for _ in range(5):
        before = float(parameter.detach().norm())
        parameter.grad = parameter.detach().clone()
        optimizer.step(torch.tensor(True))
        assert float(parameter.detach().norm()) < before


def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adamw():
    named = dict(
        zip(["attn.lora_A", "norm.bias", "conv.weight", "token_embedding.weight"], weights(), strict=True)
    )
    groups = [{"params": list(named.values()), "lr": 0.1}]
    halves = split_for_muon(groups, named)
    assert [(half["use_muon"], len(half["params"])) for half in halves] == [(True, 1), (False, 3)]
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimizer = make_optimizer("muon", groups, lr=0.1, named=named)
    pull(list(named.values()), 0)
    optimizer.step()
    moved = before["attn.lora_A"] - named["attn.lora_A"].detach()
    singular = torch.linalg.svdvals(moved) / (0.1 * 0.2 * 8)  # Moonlight's 0.2 sqrt(64) times the rate
    # Five Newton-Schulz steps bring all but the smallest singular values near 1.
    assert 0.6 < singular.median() < 1.3 and singular.max() < 1.4
    first = before["token_embedding.weight"] - named["token_embedding.weight"].detach()
    torch.testing.assert_close(
        first.abs(), torch.full_like(first, 0.1), rtol=1e-3, atol=0
    )  # Adam's first step


def test_states_of_8_bits_are_of_8_bits():
    parameters = weights()
    optimizer = guarded("adamw8bit", parameters)
    pull(parameters, 0)
    optimizer.step(torch.tensor(True))
    states = [optimizer.optimizer.state[parameter]["state1"].dtype for parameter in parameters]
    assert states == [torch.uint8, torch.float32, torch.float32, torch.float32]  # small ones stay precise


def test_what_a_device_lacks_is_told_before_a_model_is_loaded():
    """The memory that a GPU pages out is not there on a CPU; the others of that kind do without."""
    with pytest.raises(ConfigError, match="train.optimizer: pagedademamix8bit does not run on cpu") as caught:
        check_optimizer(NEEDS_A_GPU, {"weight_decay": 0.1})
    assert "use optimizer: adamw" in caught.value.problems[0].remedy


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
    for name in NAMES:
        check_optimizer(name, {})
    assert torch.equal(torch.get_rng_state(), before)
