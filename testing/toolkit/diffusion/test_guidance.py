"""Guidance and corrections against their definitions and diffusers."""

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from toolkit.diffusion.guidance import guidance_target, guided, match_channels, match_norm


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_guidance_moves_away_from_the_negative_by_each_items_own_scale():
    prediction, negative = draw(3, 4, 8, 8), draw(3, 4, 8, 8, seed=1)
    result = guided(prediction, negative, torch.tensor([0.0, 1.0, 7.5]))
    torch.testing.assert_close(result[0], negative[0])
    torch.testing.assert_close(result[1], prediction[1])
    torch.testing.assert_close(result[2], negative[2] + 7.5 * (prediction[2] - negative[2]))


@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers(rescale):
    prediction, negative = draw(2, 4, 8, 8), draw(2, 4, 8, 8, seed=1)
    plain = guided(prediction, negative, torch.full((2,), 5.0))
    expected = rescale_noise_cfg(plain, prediction, guidance_rescale=rescale)
    torch.testing.assert_close(guided(prediction, negative, torch.full((2,), 5.0), rescale=rescale), expected)


def test_both_predictions_of_a_guided_one_get_a_gradient():
    prediction, negative = (draw(1, 4, 8, 8, seed=s).requires_grad_() for s in (0, 1))
    guided(prediction, negative, torch.tensor([3.0])).sum().backward()
    assert prediction.grad.unique().tolist() == [3.0] and negative.grad.unique().tolist() == [-2.0]


def test_a_model_that_learned_the_guided_target_draws_what_guidance_drew():
    """target = c: what is learned is u + s (c - u), classifier-free guidance itself."""
    conditional, unconditional = draw(2, 4, 8, 8), draw(2, 4, 8, 8, seed=1)
    scale = torch.tensor([1.0, 3.0])
    found = guidance_target(conditional, unconditional, scale)
    torch.testing.assert_close(found, guided(conditional, unconditional, scale))


def test_zero_star_takes_the_multiple_of_u_nearest_to_the_target():
    """Least squares: what is left of the target is orthogonal to u."""
    target, unconditional = draw(2, 4, 8, 8), draw(2, 4, 8, 8, seed=1) + 1
    starred = guidance_target(
        target, unconditional, torch.zeros(2), zero_star=True
    )  # scale 0 leaves it alone
    for item in range(2):
        u, y = unconditional[item].flatten(), target[item].flatten()
        share = torch.linalg.lstsq(u[:, None], y[:, None]).solution[0, 0]
        torch.testing.assert_close(starred[item], share * unconditional[item])
        assert abs(float((y - starred[item].flatten()) @ u)) < 1e-3


def test_a_prediction_takes_the_norm_of_its_target():
    prediction, target = draw(3, 4, 8, 8), 5 * draw(3, 4, 8, 8, seed=1)
    found = match_norm(prediction, target)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), target.flatten(1).norm(dim=1))
    torch.testing.assert_close(
        torch.cosine_similarity(found.flatten(1), prediction.flatten(1)), torch.ones(3)
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_channels_take_a_share_of_the_bases_statistics(share):
    prediction = (3 * draw(2, 4, 8, 8) + 1).requires_grad_()
    base = draw(2, 4, 8, 8, seed=1) - 2
    found = match_channels(prediction, base, share)
    for statistic in (torch.mean, torch.std):
        own, wanted = statistic(prediction, dim=(2, 3)), statistic(base, dim=(2, 3))
        torch.testing.assert_close(statistic(found, dim=(2, 3)), own + share * (wanted - own))
    found.sum().backward()
    assert (prediction.grad > 0).all()  # ai-toolkit cuts the gradient here, and nothing is learned
