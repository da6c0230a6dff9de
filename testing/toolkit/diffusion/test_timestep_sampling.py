"""Densities of noise levels: their ends, their shape, their bounds."""

from __future__ import annotations

import pytest
import torch

from toolkit.diffusion.objectives import EpsilonPrediction, FlowMatching
from toolkit.diffusion.timestep_sampling import DENSITIES, make_sampler
from toolkit.errors import ConfigError

FLOW = FlowMatching()


def table(length: int) -> EpsilonPrediction:
    return EpsilonPrediction(torch.linspace(0.99, 0.01, length))


def draw(sampler, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.stack([sampler(generator) for _ in range(count)])


@pytest.mark.parametrize("name", ["uniform", "linear"])
def test_every_entry_of_a_table_is_equally_likely(name):
    objective = table(5)
    indices = objective.timesteps(draw(make_sampler(name, objective=objective), 5000))
    counts = torch.bincount(indices, minlength=5)
    # 1000 expected each, standard deviation 28.
    assert (counts - 1000).abs().max() < 120


def test_draws_lie_on_the_grid_of_a_table():
    objective = table(7)
    t = draw(make_sampler("sigmoid", objective=objective), 200)
    assert t.dtype == torch.float32
    assert torch.equal(objective.snap(t), t)


def test_flow_draws_are_even_and_never_zero():
    t = draw(make_sampler("uniform", objective=FLOW), 4000)
    assert t.min() > 0
    assert t.max() <= 1
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed with probability 0.001.
    position = (torch.arange(4000) + 0.5) / 4000
    assert (t.sort().values - position).abs().max() < 1.95 / 4000**0.5


def test_sigmoid_is_logit_normal():
    t = draw(make_sampler("sigmoid", objective=FLOW), 4000).double()
    logits = torch.logit(t).sort().values
    expected = torch.special.ndtr(logits)
    position = (torch.arange(4000) + 0.5) / 4000
    assert (expected - position).abs().max() < 1.95 / 4000**0.5


@pytest.mark.parametrize(
    ("bounds", "lowest", "highest"), [((0, 9), 91, 100), ((90, 99), 1, 10), ((40, 59), 41, 60)]
)
def test_bounds_count_denoising_steps_from_pure_noise(bounds, lowest, highest):
    objective = table(100)
    sampler = make_sampler("uniform", objective=objective, min_step=bounds[0], max_step=bounds[1])
    t = draw(sampler, 500)
    assert t.min().item() == pytest.approx(lowest / 100)
    assert t.max().item() == pytest.approx(highest / 100)


def test_flow_bounds():
    t = draw(make_sampler("uniform", objective=FLOW, min_step=0, max_step=499), 500)
    assert 0.5 < t.min() < 0.52
    assert 0.98 < t.max() <= 1


def test_the_default_bounds_cover_tables_of_any_length():
    objective = table(3)
    assert set(objective.timesteps(draw(make_sampler("uniform", objective=objective), 100)).tolist()) == {
        0,
        1,
        2,
    }


def test_a_draw_depends_on_its_generator_alone():
    sampler = make_sampler("sigmoid", objective=FLOW)
    first, second = (sampler(torch.Generator().manual_seed(5)) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(first, second)
    assert not torch.equal(first, sampler(torch.Generator().manual_seed(6)))


def test_an_unknown_density_is_named():
    with pytest.raises(ConfigError, match="unknown timestep type 'sigmoyd'; did you mean 'sigmoid'"):
        make_sampler("sigmoyd", objective=FLOW)
    assert DENSITIES.names() == ["uniform", "linear", "sigmoid"]


@pytest.mark.parametrize("bounds", [(-1, 5), (6, 5), (5, 4)])
def test_an_empty_range_is_refused(bounds):
    with pytest.raises(ValueError, match="no step between"):
        make_sampler("uniform", objective=table(10), min_step=bounds[0], max_step=bounds[1])
