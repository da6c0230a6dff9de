"""Draws are functions of (seed, content, number), spread evenly, and each level of noise is the right one."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch

from toolkit.diffusion.objectives import EpsilonPrediction, FlowMatching, VelocityPrediction
from toolkit.evaluation.draws import Design, level_with_std, noise_std
from toolkit.evaluation.draws_layout import draws_of_noises, noise_of, sign_of, van_der_corput

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SHAPE = (4, 4, 4)
SCHEDULER = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
OBJECTIVES = {
    "epsilon": EpsilonPrediction(SCHEDULER.alphas_cumprod),
    "velocity": VelocityPrediction(SCHEDULER.alphas_cumprod),
    "flow": FlowMatching(),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_draws_do_not_depend_on_what_was_drawn_before(objective):
    def drawn(order: list[int]) -> dict[int, tuple[float, torch.Tensor]]:
        design = Design(seed=3)
        return {
            draw: (float(design.t("a", draw, objective)), design.noise("a", draw, SHAPE)) for draw in order
        }

    first, second = drawn(list(range(8))), drawn([5, 2, 7])
    for draw, (t, noise) in second.items():
        assert t == first[draw][0]
        assert torch.equal(noise, first[draw][1])


@pytest.mark.parametrize("change", [{"seed": 4}, {"content": "b"}, {"draw": 1}])
def test_another_seed_image_or_number_draws_anew(change):
    usual = {"seed": 3, "content": "a", "draw": 0}
    drawn = []
    for key in (usual, usual | change):
        design = Design(seed=key["seed"])
        drawn.append(
            (
                float(design.t(key["content"], key["draw"], OBJECTIVES["flow"])),
                design.noise(key["content"], key["draw"], SHAPE),
            )
        )
    assert drawn[0][0] != drawn[1][0]
    assert not torch.equal(drawn[0][1], drawn[1][1])


def test_a_block_has_two_noises_and_their_negatives_each_at_a_level_of_its_own():
    design = Design(seed=0)
    for block in range(3):
        first, second, third, fourth = (4 * block + place for place in range(4))
        for one, other in ((first, third), (second, fourth)):
            apart = abs(design.t("a", one, OBJECTIVES["flow"]) - design.t("a", other, OBJECTIVES["flow"]))
            assert min(apart, 1 - apart) == pytest.approx(0.25, abs=1e-6)
            assert torch.equal(design.noise("a", one, SHAPE), -design.noise("a", other, SHAPE))
        assert not torch.equal(design.noise("a", first, SHAPE), design.noise("a", second, SHAPE))
    assert draws_of_noises(8) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert [sign_of(draw) for draw in range(4)] == [1, 1, -1, -1]
    assert [noise_of(draw) for draw in range(8)] == [0, 1, 0, 1, 2, 3, 2, 3]


def test_van_der_corput():
    assert [van_der_corput(i) for i in range(8)] == [0, 0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]


@pytest.mark.parametrize("num_levels", [2, 4, 8, 16])
def test_levels_of_an_image_are_stratified(num_levels):
    levels = [float(Design().t("a", draw, OBJECTIVES["flow"])) for draw in range(num_levels)]
    distinct = sorted(set(levels))
    assert len(distinct) == num_levels
    gaps = [b - a for a, b in zip(distinct, distinct[1:], strict=False)]
    assert max(gaps) == pytest.approx(1 / num_levels, abs=1e-6)
    assert min(gaps) == pytest.approx(1 / num_levels, abs=1e-6)


def test_levels_over_images_are_uniform_and_noise_is_normal():
    levels = torch.tensor([float(Design().t(f"{i}", 0, OBJECTIVES["flow"])) for i in range(2000)])
    assert 0 < levels.min() < levels.max() <= 1
    # The standard error of the mean of 2000 uniform numbers is 0.0065, of their variance 0.0017.
    assert float(levels.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(levels.var()) == pytest.approx(1 / 12, abs=0.007)
    noise = torch.stack([Design().noise(f"{i}", 0, (64,)) for i in range(500)])
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.var()) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize(
    ("timestep_type", "mean"), [("cubic_early", 0.75), ("cubic_late", 0.25), ("uniform", 0.5)]
)
def test_densities(timestep_type, mean):
    design = Design(timestep_type=timestep_type)
    levels = [float(design.t(f"{i}", draw, OBJECTIVES["flow"])) for i in range(50) for draw in range(32)]
    assert sum(levels) / len(levels) == pytest.approx(mean, abs=0.01)


def test_a_range_of_levels_is_kept():
    levels = [float(Design(t_range=(0.2, 0.5)).t(f"{i}", 0, OBJECTIVES["flow"])) for i in range(200)]
    assert 0.2 <= min(levels) < 0.22
    assert 0.48 < max(levels) <= 0.5


def test_levels_lie_on_the_table():
    for draw in range(16):
        step = float(Design().t("a", draw, OBJECTIVES["epsilon"])) * 1000
        assert step == pytest.approx(round(step), abs=1e-3)


@pytest.mark.parametrize("name", ["epsilon", "velocity"])
@pytest.mark.parametrize("std", [0.05, 0.3, 0.6, 0.9])
def test_a_standard_deviation_finds_its_step_of_a_table(name, std):
    """sigma = sqrt(1 - alphas_cumprod): 0.6 is step 270 of Stable Diffusion's schedule, not half of it."""
    sigmas = (1 - SCHEDULER.alphas_cumprod) ** 0.5
    wanted = int((sigmas - std).abs().argmin())
    t = level_with_std(OBJECTIVES[name], std)
    assert round(float(t) * 1000) - 1 == wanted
    assert float(noise_std(OBJECTIVES[name], t.reshape(1))) == pytest.approx(float(sigmas[wanted]), rel=1e-4)
    if std == 0.6:
        assert wanted == 270


@pytest.mark.parametrize("std", [0.05, 0.6, 1.0])
def test_a_standard_deviation_is_the_level_of_flow_matching(std):
    assert float(level_with_std(OBJECTIVES["flow"], std)) == pytest.approx(std)
    design = Design(fixed_noise_std=std)
    assert {float(design.t("a", draw, OBJECTIVES["flow"])) for draw in range(8)} == {float(torch.tensor(std))}


@pytest.mark.parametrize("name", ["epsilon", "flow"])
def test_the_noise_of_a_level_has_its_standard_deviation(name):
    """What add_noise mixes into a blank picture."""
    objective = OBJECTIVES[name]
    noise = torch.randn(1, 20000, generator=torch.Generator().manual_seed(0))
    mixed = objective.add_noise(torch.zeros_like(noise), noise, level_with_std(objective, 0.6).reshape(1))
    assert float(mixed.std()) == pytest.approx(0.6 * float(noise.std()), rel=2e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"t_range": (0.5, 0.5)},
        {"t_range": (-0.1, 1)},
        {"fixed_noise_std": 0.0},
        {"fixed_noise_std": 1.1},
        {"fixed_noise_std": math.nan},
        {"timestep_type": "cubist"},
    ],
)
def test_a_wrong_design_is_refused(wrong):
    with pytest.raises(ValueError, match="t_range|fixed_noise_std|timestep type"):
        Design(**wrong)
