"""What a slider learns, against closed forms and on a toy model of the real classes."""

from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testing.tiny_models import tiny_pipeline
from toolkit.diffusion.diffusion_loss import ItemLosses
from toolkit.models.sd15.model import SD15
from toolkit.models.shared.families import Components
from toolkit.networks.adapters import AdapterNetwork
from toolkit.networks.base import Network
from toolkit.networks.catalogue import NETWORKS, resolve_network
from toolkit.networks.lora import attach_lora
from toolkit.seeding import keyed_generator
from toolkit.training.slider_losses import (
    SlidePrompts,
    SlideRule,
    match_statistics,
    slide_target,
    slider_losses,
)

PROMPTS = SlidePrompts(["a cat"] * 2, ["a red cat"] * 2, ["a blue cat"] * 2)


def randn(*shape: int, key: str = "x") -> torch.Tensor:
    return torch.randn(shape, generator=keyed_generator("test", key, *shape))


@given(st.integers(1, 3), st.floats(0.1, 9), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_matched_values_have_each_items_statistics(batch, scale, shift):
    values, reference = randn(batch, 4, 5, 5, key="v") * 3 + 1, randn(batch, 4, 5, 5, key="r") * scale + shift
    matched = match_statistics(values, reference)
    for one, other, raw in zip(matched, reference, values, strict=True):
        assert one.mean().item() == pytest.approx(other.mean().item(), abs=1e-4)
        assert one.std().item() == pytest.approx(other.std().item(), rel=1e-4)
        # a positive affine map of the raw values: order and shape stay
        assert torch.corrcoef(torch.stack([one.flatten(), raw.flatten()]))[0, 1] == pytest.approx(1, abs=1e-4)


def test_targets_are_the_papers():
    base, positive, negative = (randn(2, 4, 3, 3, key=key) for key in ("b", "p", "n"))
    moved = slide_target(base, positive - negative, 3.0, normalised=False)
    assert torch.allclose(moved, base + 3 * (positive - negative))
    normed = slide_target(base, positive - negative, -3.0, normalised=True)
    by_hand = base - 3 * (positive - negative)
    by_hand = torch.stack([
        (x - x.mean()) / x.std() * b.std() + b.mean() for x, b in zip(by_hand, base, strict=True)
    ])  # fmt: skip
    assert torch.allclose(normed, by_hand, atol=1e-5)
    flat = torch.ones_like(base)
    assert torch.isfinite(match_statistics(flat, base)).all()


@pytest.fixture(scope="module", params=["epsilon", "v_prediction", "flow_prediction"])
def base(request) -> SD15:
    pipeline = tiny_pipeline()
    config = dict(pipeline.scheduler.config) | {"prediction_type": request.param}
    modules = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
    return SD15(Components(modules, {"tokenizer": pipeline.tokenizer}, config)).freeze()


@pytest.fixture
def slider(base) -> tuple[SD15, AdapterNetwork]:
    model = deepcopy(base)
    return model, attach_lora({"unet": model.unet}, rank=4, alpha=4, seed=1)


def noisy_of(model: SD15) -> tuple[torch.Tensor, torch.Tensor]:
    t = torch.tensor([0.4, 0.8])
    return model.objective.add_noise(randn(2, 4, 8, 8), randn(2, 4, 8, 8, key="noise"), t), t


def encoder_of(model: SD15):
    def encode(prompts: Sequence[str]):
        with torch.no_grad():
            return model.encode_prompts(list(prompts))

    return encode


def parts_of(model, network, prompts=PROMPTS, rule=None, mask=None) -> list[tuple[float, ItemLosses]]:
    """(strength of the network, part) of every part."""
    rule = rule or SlideRule(strength=2.0)
    noisy, t = noisy_of(model)
    made = slider_losses(
        model, network, noisy, t, prompts=prompts, encode=encoder_of(model), rule=rule, mask=mask
    )
    return [(network.multiplier, part) for part in made]


def predictions(model: SD15, *texts: str) -> list[torch.Tensor]:
    noisy, t = noisy_of(model)
    with torch.no_grad():
        return [model.predict(noisy, t, encoder_of(model)([text] * 2)) for text in texts]


def test_at_step_0_the_loss_is_the_bases_distance_to_the_targets(base, slider):
    model, network = slider
    network.multiplier = 0.7
    parts = parts_of(model, network)
    assert [strength for strength, _ in parts] == [1.0, -1.0]
    assert network.multiplier == 0.7
    _, positive, negative = predictions(base, "a cat", "a red cat", "a blue cat")
    expected = ((2 * (positive - negative)) ** 2).flatten(1).mean(1) / 2
    for _, part in parts:
        assert torch.allclose(part.per_item, expected, rtol=1e-4)
        assert part.per_item.requires_grad


def test_normalised_targets_are_those_of_slide_target(base, slider):
    model, network = slider
    parts = parts_of(model, network, rule=SlideRule(strength=2.0, normalised=True))
    own, positive, negative = predictions(base, "a cat", "a red cat", "a blue cat")
    for sign, (_, part) in zip((1, -1), parts, strict=True):
        target = slide_target(own, positive - negative, sign * 2.0, normalised=True)
        assert torch.allclose(part.per_item, ((own - target) ** 2).flatten(1).mean(1) / 2, rtol=1e-3)


def test_anchors_cost_nothing_at_first_and_hold_the_base_afterwards(base, slider):
    model, network = slider
    prompts = SlidePrompts(PROMPTS.target, PROMPTS.positive, PROMPTS.negative, ["a dog", "a square"])
    rule = SlideRule(strength=2.0, anchor_weight=6.0, anchor_multipliers=[0.5, 1.5])
    parts = parts_of(model, network, prompts, rule)
    assert [strength for strength, _ in parts] == [1.0, 0.5, 1.5, -1.0, -0.5, -1.5]
    assert [bool((part.per_item > 1e-9).all()) for _, part in parts] == [True, False, False] * 2
    with torch.no_grad():
        for parameter in network.parameters("unet"):
            parameter.normal_(std=0.2, generator=keyed_generator("test", "learned"))
    (dog,) = predictions(base, "a dog")
    _, held = parts_of(model, network, prompts, rule)[1]
    network.multiplier = 0.5
    (moved,) = predictions(model, "a dog")
    # one of three terms, shared by two signs and two anchors, weighted by 6
    expected = 6.0 / 3 / 4 * ((moved - dog) ** 2).flatten(1).mean(1)
    assert torch.allclose(held.per_item, expected, rtol=1e-4)


def test_one_direction_alone_and_another_strength(slider):
    model, network = slider
    rule = SlideRule(strength=2.0, multiplier=1.5, signs=(-1.0,))
    assert [strength for strength, _ in parts_of(model, network, rule=rule)] == [-1.5]


def test_a_mask_leaves_places_out(slider):
    model, network = slider
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :2] = 1.0
    (_, masked), _ = parts_of(model, network, mask=mask)
    (_, whole), _ = parts_of(model, network)
    assert masked.counts.tolist() == [4 * 2 * 8] * 2
    assert not torch.allclose(masked.per_item, whole.per_item)


def train(model: SD15, network: Network, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(network.parameters("unet"), lr=2e-2, weight_decay=0)
    seen = []
    noisy, t = noisy_of(model)
    for _ in range(steps):
        total = 0.0
        for part in slider_losses(
            model, network, noisy, t, prompts=PROMPTS, encode=encoder_of(model), rule=SlideRule(strength=2.0)
        ):
            loss = part.per_item.mean()
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(total)
    return seen


def test_it_slides_both_ways_and_at_0_it_is_the_base(base, slider):
    assert_slides(base, *slider, by=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(NETWORKS))
def test_every_type_of_network_can_be_a_slider(base, kind):
    model = deepcopy(base)
    network = resolve_network(kind)({"unet": model.unet}, rank=4, alpha=4, seed=1)
    assert_slides(base, model, network, by=0.1)


def assert_slides(base: SD15, model: SD15, network: Network, *, by: float) -> None:
    """Train the network for a few steps; it moves the prediction one way at +1, the other way at -1."""
    seen = train(model, network, 20)
    assert seen[-1] < (1 - by) * seen[0]
    own, positive, negative = predictions(base, "a cat", "a red cat", "a blue cat")
    wanted = (positive - negative).flatten()

    def shift(strength: float) -> float:
        """How far along the direction the prediction has moved, in differences of the two ends."""
        network.multiplier = strength
        (moved,) = predictions(model, "a cat")
        return float(((moved - own).flatten() @ wanted) / (wanted @ wanted))

    assert shift(1.0) > by
    assert shift(-1.0) < -by
    assert shift(0.0) == 0.0
