"""Densities of noise levels: their ends, their shape, their bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.config_modules.names import TIMESTEP_TYPES
from toolkit.diffusion.objectives import EpsilonPrediction, FlowMatching
from toolkit.diffusion.timestep_sampling import BIASES, DENSITIES, make_sampler, resolution_shift
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
    assert set(TIMESTEP_TYPES) | {"uniform"} == set(DENSITIES.names())


@pytest.mark.parametrize("bounds", [(-1, 5), (6, 5), (5, 4)])
def test_an_empty_range_is_refused(bounds):
    with pytest.raises(ValueError, match="no step between"):
        make_sampler("uniform", objective=table(10), min_step=bounds[0], max_step=bounds[1])


def distance(t: torch.Tensor, cumulative) -> float:
    """Kolmogorov-Smirnov distance of draws from a cumulative distribution."""
    ordered = t.double().sort().values
    position = (torch.arange(len(t)) + 0.5) / len(t)
    return (cumulative(ordered) - position).abs().max().item()


BOUND = 1.95 / 4000**0.5  # passed with probability 0.001


def unshifted(t: torch.Tensor, a: float) -> torch.Tensor:
    return t / (a - (a - 1) * t)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_fixed_shift_is_that_of_sd3(shift):
    t = draw(make_sampler("shift", objective=FLOW, shift=shift), 4000)
    assert distance(t, lambda x: unshifted(x, shift)) < BOUND
    assert t.median().item() == pytest.approx(shift / (1 + shift), abs=0.03)


def test_the_shift_grows_with_the_picture_as_flux_samples():
    """The two points of FLUX.1's line, and diffusers' own function between them."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    assert resolution_shift(1024) == pytest.approx(1.8776, abs=1e-4)
    assert resolution_shift(4096) == pytest.approx(3.158, abs=1e-3)
    for tokens in (64, 256, 1000, 4096):
        mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
        assert resolution_shift(tokens) == pytest.approx(torch.tensor(mu).exp().item(), rel=1e-5)
    sampler = make_sampler("flux_shift", objective=FLOW)
    generator = torch.Generator().manual_seed(1)
    t = torch.stack([sampler(generator, 4096) for _ in range(4000)])
    assert distance(t, lambda x: unshifted(x, resolution_shift(4096))) < BOUND


def test_content_is_trained_at_high_and_style_at_low_noise():
    """ai-toolkit draws r^3 T, or (1 - r^3) T, as the index into steps that descend from noise."""
    content = draw(make_sampler("linear", objective=FLOW, bias="content"), 4000)
    style = draw(make_sampler("linear", objective=FLOW, bias="style"), 4000)
    assert distance(content, lambda x: 1 - (1 - x) ** (1 / 3)) < BOUND
    assert distance(style, lambda x: x ** (1 / 3)) < BOUND
    assert content.mean() > 0.7 > 0.3 > style.mean()


def test_a_bias_acts_on_the_quantiles_of_any_density():
    t = draw(make_sampler("sigmoid", objective=FLOW, bias="style"), 4000).double()
    assert distance(t, lambda x: torch.special.ndtr(torch.logit(x)) ** (1 / 3)) < BOUND


def test_one_step_is_pure_noise():
    assert (draw(make_sampler("one_step", objective=FLOW), 10) == 1).all()
    objective = table(10)
    assert (objective.timesteps(draw(make_sampler("one_step", objective=objective), 10)) == 9).all()


def test_the_log_normal_blend():
    """Three quarters 1 - LogNormal(0, 1/3) over its largest, a quarter even (ai-toolkit's recipe)."""
    t = draw(make_sampler("lognorm_blend", objective=FLOW), 4000)
    assert t.min() > 0 and t.max() <= 1
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(750, generator=generator, dtype=torch.float64)
    drawn = (0.333 * normal).exp()
    even = torch.rand(250, generator=generator, dtype=torch.float64)
    recipe = torch.cat([1 - drawn / drawn.max(), even])
    assert t.median().item() == pytest.approx(recipe.median().item(), abs=0.08)


@given(
    name=st.sampled_from(sorted(TIMESTEP_TYPES)),
    bias=st.sampled_from(sorted(BIASES)),
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 20_000),
    bounds=st.tuples(st.integers(0, 999), st.integers(0, 999)).map(sorted),
    flow=st.booleans(),
)
def test_every_draw_is_a_level_within_its_bounds(name, bias, seed, tokens, bounds, flow):
    objective = FLOW if flow else table(1000)
    low, high = bounds
    sampler = make_sampler(name, objective=objective, bias=bias, min_step=low, max_step=high)
    t = sampler(torch.Generator().manual_seed(seed), tokens)
    assert t.dtype == torch.float32
    assert (999 - high) / 1000 - 1e-6 <= t.item() <= (1000 - low) / 1000 + 1e-6
    assert t.item() > 0
    assert torch.equal(objective.snap(t[None]), t[None])
