import math

import pytest
import torch
from diffusers.optimization import get_scheduler

from toolkit.errors import ConfigError
from toolkit.training.lr_schedules import SCHEDULES, make_schedule


def diffusers_factors(name: str, total: int, warmup: int, **keywords) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total, **keywords)
    factors = []
    for _ in range(total):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_without_warmup_the_factors_are_those_of_diffusers(name):
    ours = [make_schedule(name)(done, 50) for done in range(50)]
    assert ours == pytest.approx(diffusers_factors(name, 50, 0), abs=1e-12)


def test_restarts_and_polynomial_equal_diffusers():
    restarts = make_schedule("cosine_with_restarts", {"num_cycles": 4})
    expected = diffusers_factors("cosine_with_restarts", 48, 0, num_cycles=4)
    assert [restarts(done, 48) for done in range(48)] == pytest.approx(expected, abs=1e-6)
    polynomial = make_schedule("polynomial", {"power": 2.0, "end_factor": 1e-7})
    expected = diffusers_factors("polynomial", 48, 0, power=2.0)
    assert [polynomial(done, 48) for done in range(48)] == pytest.approx(expected, abs=1e-6)


def test_rex_is_that_of_its_paper():
    """(1 - p) / (1/2 + 1/2 (1 - p)) (arXiv:2107.04197, section 3.3)."""
    rex = make_schedule("rex")
    for done in (0, 1, 25, 50, 75, 99, 100, 200):
        p = min(done / 100, 1)
        assert rex(done, 100) == pytest.approx((1 - p) / (0.5 + 0.5 * (1 - p)))
    assert [rex(done, 100) for done in (0, 50, 100)] == pytest.approx([1, 2 / 3, 0])
    assert make_schedule("rex", {"num_warmup_steps": 10})(60, 110) == pytest.approx(2 / 3)


@pytest.mark.parametrize("key", ["T_0", "T_mult"])
def test_growing_cycles_are_those_of_torch(key):
    params = {"T_0": 6, "T_mult": 2 if key == "T_mult" else 1, "eta_min": 0.1}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, **params)
    ours = make_schedule("cosine_with_restarts", params, lr=1.0)
    for done in range(50):
        assert ours(done, 60) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_the_lowest_rate_is_given_as_a_rate_or_as_a_share():
    """torch's CosineAnnealingLR takes eta_min as a rate."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=5e-4)
    schedule = make_schedule("cosine", {"T_max": 40, "eta_min": 5e-4}, lr=2e-3)
    for done in range(40):
        assert 2e-3 * schedule(done, 90) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    for params in ({"min_lr": 5e-4}, {"lr_end": 5e-4}, {"end_factor": 0.25}, {"min_lr_ratio": 0.25}):
        for name in ("linear", "cosine", "cosine_with_restarts", "polynomial", "rex"):
            assert make_schedule(name, params, lr=2e-3)(90, 90) == pytest.approx(0.25), name
    falling = make_schedule("step", {"step_size": 1, "gamma": 0.5, "min_lr": 5e-4}, lr=2e-3)
    assert [falling(done, 9) for done in (0, 1, 2, 3, 8)] == [1, 0.5, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("key", ["total_iters", "T_max", "max_iterations"])
def test_a_schedule_can_end_before_the_run(key):
    linear = make_schedule("linear", {key: 40, "num_warmup_steps": 10, "end_factor": 0.1})
    assert [linear(done, 100) for done in (10, 25, 40, 99)] == pytest.approx([1, 0.55, 0.1, 0.1])
    held = make_schedule("constant", {key: 40, "factor": 0.5})
    assert [held(done, 100) for done in (0, 39, 40)] == [0.5, 0.5, 1.0]


def test_a_line_can_begin_anywhere():
    """torch's LinearLR, whose own factors ai-toolkit passes on."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    params = {"start_factor": 0.25, "end_factor": 0.75, "total_iters": 8}
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, **params)
    ours = make_schedule("linear", params)
    for done in range(12):
        assert ours(done, 20) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("params", "key", "said"),
    [
        ({"min_lr": 1e-2}, "min_lr", "must be at most lr (0.001), not 0.01"),
        ({"min_lr": 1e-5, "end_factor": 0.1}, "min_lr", "cannot be combined with end_factor"),
        ({"T_max": 5, "total_iters": 6}, "total_iters", "mean the same and differ"),
        ({"lr_warmup_steps": -1}, "lr_warmup_steps", "must be at least 0"),
    ],
)
def test_what_cannot_be_of_a_schedule_is_told(params, key, said):
    with pytest.raises(ConfigError) as caught:
        make_schedule("cosine", params, lr=1e-3)
    (problem,) = caught.value.problems
    assert problem.key == f"train.lr_scheduler_params.{key}" and said in problem.message


def test_step_decays_every_step_size():
    schedule = make_schedule("step", {"step_size": 10, "gamma": 0.5})
    assert [schedule(done, 40) for done in (0, 9, 10, 25, 39)] == [1.0, 1.0, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "step"])
def test_warmup_climbs_to_the_peak_and_the_schedule_spans_the_rest(name):
    schedule = make_schedule(name, {"num_warmup_steps": 9})
    climb = [schedule(done, 109) for done in range(9)]
    assert climb == pytest.approx([(k + 1) / 10 for k in range(9)])
    assert schedule(9, 109) == pytest.approx(1.0)
    plain = make_schedule(name, {"num_warmup_steps": 0})
    assert schedule(9 + 60, 109) == pytest.approx(plain(60, 100))


def test_end_factor_is_reached_at_the_end_and_kept():
    for name in ("linear", "cosine", "polynomial"):
        schedule = make_schedule(name, {"end_factor": 0.1})
        assert schedule(100, 100) == pytest.approx(0.1)
        assert schedule(500, 100) == pytest.approx(0.1)
    assert math.isclose(make_schedule("cosine")(50, 100), 0.5)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        make_schedule("cosin")
    with pytest.raises(ConfigError, match="no parameter 'gama'"):
        make_schedule("step", {"gama": 0.5, "step_size": 3})
    with pytest.raises(ConfigError, match="needs 'step_size'"):
        make_schedule("step", {})


def test_keys_that_ai_toolkit_derives_are_accepted():
    assert make_schedule("linear", {"total_iters": 10})(5, 10) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "params", "key", "said"),
    [
        ("constant", {"num_warmup_steps": "x"}, "num_warmup_steps", "must be a whole number, not 'x'"),
        ("cosine", {"num_warmup_steps": -1}, "num_warmup_steps", "must be at least 0, not -1"),
        ("cosine", {"num_warmup_steps": None}, "num_warmup_steps", "must be a whole number, not None"),
        ("step", {"step_size": 0}, "step_size", "must be at least 1, not 0"),
        ("step", {"step_size": 2.5}, "step_size", "must be a whole number, not 2.5"),
        ("step", {"step_size": True}, "step_size", "must be a whole number, not True"),
        ("step", {"step_size": 5, "gamma": [0.1]}, "gamma", "must be a number"),
        ("cosine_with_restarts", {"num_cycles": "x"}, "num_cycles", "must be a whole number, not 'x'"),
        ("cosine_with_restarts", {"num_cycles": 0}, "num_cycles", "must be at least 1, not 0"),
        ("polynomial", {"power": -1}, "power", "must be at least 0, not -1"),
        ("linear", {"end_factor": -0.5}, "end_factor", "must be at least 0, not -0.5"),
        ("linear", {"end_factor": float("inf")}, "end_factor", "must be a number, not inf"),
    ],
)
def test_wrong_values_are_named(name, params, key, said):
    with pytest.raises(ConfigError) as caught:
        make_schedule(name, params)
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("config.bad_value", f"train.lr_scheduler_params.{key}")
    assert said in problem.message


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        make_schedule("step", {"step_size": 0, "gamma": "x", "num_warmup_steps": "y"})
    assert len(caught.value.problems) == 3


def test_numbers_may_be_text():
    schedule = make_schedule("step", {"step_size": "10", "gamma": "5e-1", "num_warmup_steps": 2.0})
    assert schedule(0, 42) == pytest.approx(1 / 3)
    assert [schedule(done, 42) for done in (2, 12, 22)] == [1.0, 0.5, 0.25]


def test_a_schedule_that_leaves_the_numbers_is_refused_for_its_run():
    make_schedule("step", {"step_size": 1, "gamma": 10.0})
    with pytest.raises(ConfigError, match="no finite rate at step 1000") as caught:
        make_schedule("step", {"step_size": 1, "gamma": 10.0}, total=1000)
    assert caught.value.problems[0].key == "train.lr_scheduler_params"
