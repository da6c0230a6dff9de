"""Weights in bfloat16: rounded stochastically they learn as in float32, rounded to the nearest not at all."""

import json

import pytest
import torch

from toolkit.training import rounding
from toolkit.training.checkpoints import pack_optimizer, unpack
from toolkit.training.optimizers import make_optimizer
from toolkit.training.rounding import RoundedWeights, round_stochastically
from toolkit.training.updates import GuardedOptimizer

OPTIMIZERS = ["adamw", "sgd", "adafactor", "adamw8bit", "lion", "came", "muon", "prodigy"]


def bfloat16(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(shape, dtype=torch.bfloat16))


def guarded(name: str, parameters: dict[str, torch.nn.Parameter], lr: float) -> GuardedOptimizer:
    rounded = RoundedWeights(parameters)
    groups = rounded.groups([{"params": list(parameters.values())}])
    optimizer = make_optimizer(name, groups, lr=lr, named=rounded.stand_ins)
    return GuardedOptimizer(optimizer, rounded=rounded)


def test_a_value_goes_to_its_neighbours_with_the_chances_that_keep_the_mean():
    torch.manual_seed(0)
    low, high = 1.0, 1.0 + 2**-7  # bfloat16 has nothing between them
    for share in (0.0, 0.1, 0.5, 0.9):
        values = torch.full((100_000,), low + share * (high - low))
        for sign in (1, -1):
            rounded = round_stochastically(sign * values).float()
            assert set(rounded.unique().tolist()) <= {sign * low, sign * high}
            went_up = float((rounded.abs() == high).float().mean())
            assert went_up == pytest.approx(share, abs=0.01)


def test_what_bfloat16_can_hold_stays_as_it_is():
    values = torch.tensor([0.0, 1.0, -3.5, 2.0**-126, 1e-40, 3.3895e38]).bfloat16()
    for _ in range(20):
        assert torch.equal(round_stochastically(values.float()), values)


@pytest.mark.parametrize("name", ["adamw", "lion", "adamw8bit"])
def test_a_small_rate_moves_the_mean_as_float32_does_where_rounding_to_the_nearest_moves_nothing(name):
    """Weights of 1 lie 2^-8 apart in bfloat16: 400 times the update of 1e-5."""

    def moved(parameter, optimizer):
        for step in range(50):
            parameter.grad = torch.ones_like(parameter)
            torch.manual_seed(step)
            optimizer.step(torch.tensor(True))
        return float(1 - parameter.detach().double().mean())

    whole = torch.nn.Parameter(torch.ones(128, 128))
    expected = moved(whole, GuardedOptimizer(make_optimizer(name, [{"params": [whole]}], lr=1e-5)))
    assert expected == pytest.approx(50 * 1e-5, rel=0.05)
    kept = bfloat16(128, 128)
    found = moved(kept, guarded(name, {"w": kept}, 1e-5))
    assert found == pytest.approx(expected, rel=0.1)
    if name != "adamw8bit":  # bitsandbytes refuses mixed dtypes on some devices
        nearest = bfloat16(128, 128)
        assert moved(nearest, GuardedOptimizer(make_optimizer(name, [{"params": [nearest]}], lr=1e-5))) == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_refused_update_changes_nothing_and_going_on_is_exact(name):
    def run(weights, optimizer, steps, broken=()):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for weight in weights.values():
                gradient = torch.randn(weight.shape, generator=generator) * (1 + step)
                weight.grad = gradient.to(weight.dtype)
            if step in broken:
                next(iter(weights.values())).grad.fill_(float("inf"))
            torch.manual_seed(step)
            optimizer.step(torch.tensor(step not in broken))
            assert all(weight.grad is None for weight in weights.values())

    def begin():
        weights = {"a.weight": bfloat16(64, 64), "b.bias": bfloat16(64)}
        return weights, guarded(name, weights, 0.05)

    straight, optimizer = begin()
    run(straight, optimizer, range(6))
    stopped, optimizer = begin()
    run(stopped, optimizer, [0, 1, 7, 2], broken=(7,))
    tensors, tree = pack_optimizer(optimizer.optimizer)
    resumed, optimizer = begin()
    optimizer.load_state_dict(unpack(json.loads(json.dumps(tree)), tensors))
    for key, weight in resumed.items():
        weight.data.copy_(stopped[key])
    run(resumed, optimizer, range(3, 6))
    for key, weight in straight.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, resumed[key])
        # Prodigy's rate begins at 1e-6.
        assert name == "prodigy" or not torch.equal(weight, torch.ones_like(weight))


@pytest.mark.parametrize("name", ["adamw", "adafactor", "adamw8bit"])
def test_in_parts_or_at_once_the_result_is_the_same(name, monkeypatch):
    def run():
        weights = {"a": bfloat16(64, 64), "b": bfloat16(64, 64), "c": bfloat16(64)}
        optimizer = guarded(name, weights, 0.05)
        for step in range(3):
            for weight in weights.values():
                weight.grad = torch.full_like(weight, 1.0 + step)
            torch.manual_seed(step)
            optimizer.step(torch.tensor(True))
        return weights

    whole = run()
    monkeypatch.setattr(rounding, "CHUNK", 1)
    assert all(torch.equal(weight, whole[key]) for key, weight in run().items())


def test_between_steps_the_stand_ins_take_no_memory():
    weights = {"a": bfloat16(64, 64)}
    optimizer = guarded("adamw", weights, 0.05)
    (stand_in,) = optimizer.rounded.stand_ins.values()
    weights["a"].grad = torch.ones_like(weights["a"])
    optimizer.step(torch.tensor(True))
    assert stand_in.shape == (64, 64) and stand_in.untyped_storage().nbytes() == 4 and stand_in.grad is None
