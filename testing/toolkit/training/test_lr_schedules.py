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
