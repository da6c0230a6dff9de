"""The loss program on a real tiny model with a LoRA: each term against its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import GeneratorType

import pytest
import torch

from jobs.guide import Guide
from jobs.losses import LossProgram, Preservation, extra_prompts
from testing.config_helpers import LORA, load
from testing.tiny_models import build_tiny_sd15
from toolkit.data.buckets import place
from toolkit.data.items import Batch, Bucket, MediaItem
from toolkit.diffusion.criteria import mse
from toolkit.diffusion.diffusion_loss import Multipliers
from toolkit.diffusion.guidance import guidance_target, guided, match_channels, match_norm
from toolkit.models.sd15.loading import load as load_sd15
from toolkit.models.sd15.model import SD15
from toolkit.networks.adapters import AdapterNetwork
from toolkit.networks.lora import attach_lora
from toolkit.seeding import keyed_generator

CAPTIONS = ("zwx in a park", "a photo of zwx", "a box")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SD15:
    return load_sd15(build_tiny_sd15(Path(tmp_path_factory.mktemp("program")) / "sd15"))


@pytest.fixture(scope="module")
def network(model: SD15) -> AdapterNetwork:
    """A LoRA that has learned something: what it adds is not nothing."""
    made = attach_lora({"unet": model.denoisers["unet"]}, rank=2, alpha=2.0, seed=1)
    with torch.no_grad():
        for name, parameter in made.named_parameters().items():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=keyed_generator("learned", name))
    return made


@pytest.fixture
def batch(model: SD15) -> Batch:
    generator = torch.Generator().manual_seed(1)
    shape = (3, *model.latent_spec.shape(32, 32))
    bucket = Bucket(32, 32)
    where = place(32, 32, bucket)
    items = tuple(
        MediaItem(id=str(i), path=Path(f"{i}.png"), sha256="", caption=text, dataset="d", bucket=bucket,
                  placement=where)
        for i, text in enumerate(CAPTIONS)
    )  # fmt: skip
    return Batch(
        items=items,
        captions=CAPTIONS,
        weights=torch.ones(3),
        noise=torch.randn(shape, generator=generator),
        t=torch.tensor([0.2, 0.5, 0.9]),
        latents=torch.randn(shape, generator=generator),
    )


@pytest.fixture
def program(model: SD15, network: AdapterNetwork) -> Callable[..., LossProgram]:
    def make(**options: object) -> LossProgram:
        plain = LossProgram(
            model=model,
            device=torch.device("cpu"),
            network=network,
            condition=lambda captions: model.encode_prompts(list(captions)),
            criterion=mse,
            weighting=None,
            multipliers=Multipliers(),
        )
        return replace(plain, **options)  # type: ignore[arg-type]

    return make


def parts(losses: object) -> list[torch.Tensor]:
    """The per-item losses of each part."""
    if isinstance(losses, GeneratorType):
        return [part.per_item.detach() for part in losses]
    return [losses.per_item.detach()]  # type: ignore[attr-defined]


def predictions(model: SD15, network: AdapterNetwork, batch: Batch, captions, strength: float):
    """(noisy prediction at a strength of the network, target) in float32, made by hand."""
    noisy = model.objective.add_noise(batch.latents, batch.noise, batch.t)
    before, network.multiplier = network.multiplier, strength
    with torch.no_grad():
        prediction = model.predict(noisy, batch.t, model.encode_prompts(list(captions)))
    network.multiplier = before
    return prediction, batch.noise


def mean(errors: torch.Tensor) -> torch.Tensor:
    return errors.flatten(1).mean(1)


def test_without_terms_it_is_the_plain_loss_in_one_piece(model, network, batch, program):
    prediction, target = predictions(model, network, batch, CAPTIONS, 1.0)
    [found] = parts(program()(batch))
    torch.testing.assert_close(found, mean((prediction - target) ** 2))


def test_preservation_holds_reworded_prompts_to_the_base(model, network, batch, program):
    term = Preservation(lambda caption: caption.replace("zwx", "dog"), 0.5)
    plain, held = parts(program(preservations=[term])(batch))
    torch.testing.assert_close(plain, parts(program()(batch))[0])
    reworded = ["dog in a park", "a photo of dog", "a box"]
    now, _ = predictions(model, network, batch, reworded, 1.0)
    base, _ = predictions(model, network, batch, reworded, 0.0)
    torch.testing.assert_close(held, 0.5 * mean((now - base) ** 2))
    assert (held > 1e-6).all()


def test_preservation_costs_nothing_while_the_network_does_nothing(network, batch, program):
    network.multiplier = 0.0
    try:
        _, held = parts(program(preservations=[Preservation(lambda caption: "", 1.0)])(batch))
    finally:
        network.multiplier = 1.0
    assert held.abs().max() == 0


def test_the_base_of_a_preservation_gets_no_gradient(network, batch, program):
    generator = program(preservations=[Preservation(lambda caption: "", 1.0)])(batch)
    for part in generator:
        part.per_item.sum().backward()
    weights = network.parameters("unet")
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights)
    for weight in weights:
        weight.grad = None


def test_a_masked_prior_holds_what_each_items_own_mask_leaves_out(model, network, batch, program):
    """ai-toolkit takes the first item's mask for all of a batch."""
    mask = torch.zeros(3, 1, 8, 8)
    mask[0, :, :4], mask[1, :, 4:], mask[2] = 1.0, 1.0, 1.0
    [found] = parts(program(mask_prior=0.5)(replace(batch, mask=mask)))
    now, target = predictions(model, network, batch, CAPTIONS, 1.0)
    base, _ = predictions(model, network, batch, CAPTIONS, 0.0)
    errors, drift = (now - target) ** 2, (now - base) ** 2
    expected = torch.stack(
        [
            errors[0, :, :4].mean() + 0.5 * drift[0, :, 4:].mean(),
            errors[1, :, 4:].mean() + 0.5 * drift[1, :, :4].mean(),
            errors[2].mean(),
        ]
    )
    torch.testing.assert_close(found, expected)
    [without] = parts(program()(replace(batch, mask=mask)))
    assert (found[:2] > without[:2]).all() and found[2] == without[2]


def test_a_masked_prior_over_whole_items(model, network, batch, program):
    """Not normalised, both terms are means over all of the item."""
    mask = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    made = program(mask_prior=0.5, normalized=False)
    [found] = parts(made(replace(batch, mask=mask)))
    now, target = predictions(model, network, batch, CAPTIONS, 1.0)
    base, _ = predictions(model, network, batch, CAPTIONS, 0.0)
    torch.testing.assert_close(found, mean(mask * (now - target) ** 2 + 0.5 * (1 - mask) * (now - base) ** 2))


def test_differential_guidance_works_alone_and_aims_beyond_the_target(network, batch, program):
    """In ai-toolkit it hides inside do_guidance_loss and does nothing alone. d becomes s d."""
    weights = network.parameters("unet")
    gradients = []
    for options in ({}, {"guidance": 3.0}):
        losses = program(**options)(batch)
        losses.per_item.sum().backward()
        gradients.append([weight.grad.clone() for weight in weights])
        for weight in weights:
            weight.grad = None
    [plain], [guided] = parts(program()(batch)), parts(program(guidance=3.0)(batch))
    torch.testing.assert_close(guided, 9 * plain)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b, 3 * a, rtol=1e-3, atol=1e-6)


def test_the_guided_prediction_is_what_is_compared(model, network, batch, program):
    guide = Guide(cfg=(4.0, 4.0), negatives=["a box"], rescale=0.5)
    [found] = parts(program(guide=guide)(batch))
    now, target = predictions(model, network, batch, CAPTIONS, 1.0)
    negative, _ = predictions(model, network, batch, ["a box"] * 3, 1.0)
    compared = guided(now, negative, torch.full((3,), 4.0), rescale=0.5)
    torch.testing.assert_close(found, mean((compared - target) ** 2))
    program(guide=guide)(batch).per_item.sum().backward()
    assert all(weight.grad is not None for weight in network.parameters("unet"))
    for weight in network.parameters("unet"):
        weight.grad = None


def test_the_target_is_pushed_away_from_the_prediction_without_a_prompt(model, network, batch, program):
    for zero_star in (False, True):
        guide = Guide(target=(3.0, 3.0), unconditional="a box", zero_star=zero_star)
        [found] = parts(program(guide=guide)(batch))
        now, target = predictions(model, network, batch, CAPTIONS, 1.0)
        u, _ = predictions(model, network, batch, ["a box"] * 3, 1.0)
        aim = guidance_target(target, u, torch.full((3,), 3.0), zero_star=zero_star)
        torch.testing.assert_close(found, mean((now - aim) ** 2))


def test_the_push_can_rise_with_the_noise_level(model, network, batch, program):
    """1 + (3 - 1) t: 1 at no noise, 3 at nothing else."""
    [found] = parts(program(guide=Guide(target=(3.0, 3.0), rising=True))(batch))
    now, target = predictions(model, network, batch, CAPTIONS, 1.0)
    u, _ = predictions(model, network, batch, [""] * 3, 1.0)
    aim = guidance_target(target, u, torch.tensor([1.4, 2.0, 2.8]))  # t is 0.2, 0.5, 0.9
    torch.testing.assert_close(found, mean((now - aim) ** 2))


def test_differential_guidance_aims_beyond_the_pushed_target(model, network, batch, program):
    pushed = Guide(target=(3.0, 3.0))
    [plain], [both] = parts(program(guide=pushed)(batch)), parts(program(guide=pushed, guidance=2.0)(batch))
    torch.testing.assert_close(both, 4 * plain)


def test_corrections_of_the_prediction(model, network, batch, program):
    now, target = predictions(model, network, batch, CAPTIONS, 1.0)
    base, _ = predictions(model, network, batch, CAPTIONS, 0.0)
    compared = {
        Guide(scale=0.5): 0.5 * now,
        Guide(match_norm=True): match_norm(now, target),
        Guide(match_base=0.5): match_channels(now, base, 0.5),
    }
    for guide, expected in compared.items():
        [found] = parts(program(guide=guide)(batch))
        torch.testing.assert_close(found, mean((expected - target) ** 2))


def test_scales_are_drawn_for_each_item_from_its_own_noise(batch, program):
    """The same whatever the company, another with other noise."""
    guide = Guide(seed=3, cfg=(1.0, 7.0))
    drawn = guide._scales("cfg", batch, guide.cfg)
    assert len(set(drawn.tolist())) == 3 and (drawn >= 1).all() and (drawn <= 7).all()
    alone = replace(
        batch, items=batch.items[1:2], captions=batch.captions[1:2], noise=batch.noise[1:2], t=batch.t[1:2]
    )
    assert guide._scales("cfg", alone, guide.cfg).tolist() == drawn[1:2].tolist()
    again = guide._scales("cfg", replace(batch, noise=batch.noise + 1), guide.cfg)
    assert not set(again.tolist()) & set(drawn.tolist())
    fixed = program(guide=replace(guide, cfg=(4.0, 4.0)))(batch).per_item
    assert not torch.equal(program(guide=guide)(batch).per_item, fixed)


def test_a_datasets_network_weight_sets_the_strength_until_the_backward_pass(model, network, batch, program):
    items = tuple(replace(item, network_weight=0.5) for item in batch.items)
    prediction, target = predictions(model, network, batch, CAPTIONS, 0.5)
    generator = program()(replace(batch, items=items))
    part = next(generator)
    torch.testing.assert_close(part.per_item.detach(), mean((prediction - target) ** 2))
    assert network.multiplier == 0.5  # activations that are recomputed must see it
    generator.close()
    assert network.multiplier == 1.0


def test_noise_mixed_in_may_differ_from_noise_asked_for(model, network, batch, program):
    mixed = batch.noise + 1
    [found] = parts(program()(replace(batch, mixed_noise=mixed)))
    prediction, _ = predictions(model, network, replace(batch, noise=mixed), CAPTIONS, 1.0)
    torch.testing.assert_close(found, mean((prediction - batch.noise) ** 2))


def test_multipliers_of_latents(model, network, batch, program):
    [before] = parts(program(multipliers=Multipliers(latents=0.5))(batch))
    halved = replace(batch, latents=batch.latents * 0.5)
    torch.testing.assert_close(before, parts(program()(halved))[0])
    [after] = parts(program(multipliers=Multipliers(noisy=0.9))(batch))
    noisy = 0.9 * model.objective.add_noise(batch.latents, batch.noise, batch.t)
    with torch.no_grad():
        prediction = model.predict(noisy, batch.t, model.encode_prompts(list(CAPTIONS)))
    torch.testing.assert_close(after, mean((prediction - batch.noise) ** 2))


def test_multiplier_of_pixels(model, batch, program):
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    [found] = parts(program(multipliers=Multipliers(pixels=0.5))(replace(batch, latents=None, pixels=pixels)))
    halved = replace(batch, latents=model.encode_images(pixels * 0.5).detach())
    torch.testing.assert_close(found, parts(program()(halved))[0])


def test_prompts_beside_the_captions_are_known_ahead(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)

    def section(more: str):
        text = LORA.replace("noise_scheduler: ddpm", f"noise_scheduler: ddpm\n        {more}")
        return load(text).config.process[0]

    captions = ["zwx in a park", "a zwx", ""]
    assert extra_prompts(section("lr_scheduler: constant"), captions) == []
    assert extra_prompts(section("blank_prompt_preservation: true"), captions) == [""]
    dop = section("diff_output_preservation: true\n        diff_output_preservation_class: dog")
    assert extra_prompts(section("do_guidance_loss: true"), captions) == [""]
    cfg = section("do_cfg: true\n        cfg_scale: 3\n        negative_prompt: blurry")
    assert extra_prompts(cfg, captions) == ["blurry"]
    (tmp_path / "bad.txt").write_text("blurry\n\n  dark \n", encoding="utf-8")
    many = section("do_random_cfg: true\n        max_cfg_scale: 3\n        negative_prompt: bad.txt")
    assert extra_prompts(many, captions) == ["blurry", "dark"]
    assert extra_prompts(dop, captions) == ["dog in a park", "a dog", ""]
