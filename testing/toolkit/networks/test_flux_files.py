"""Network files of FLUX.1, judged by diffusers (LoRA, DoRA) and lycoris (LoHa, LoKr)."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from lycoris import create_lycoris_from_weights
from safetensors.torch import load_file
from torch import Tensor, nn

from testing.tiny_models import T5_LENGTH, tiny_flux_pipeline
from toolkit.networks.adapters import AdapterNetwork
from toolkit.networks.catalogue import FULL_RANK, NETWORKS, resolve_network
from toolkit.networks.key_formats import style_of
from toolkit.networks.saving import load_network, save_network
from toolkit.seeding import keyed_generator

RANK, ALPHA = 4, 3.0  # alpha / rank = 0.75: a reader that forgets it is seen
OF_DIFFUSERS = ["lora", "locon", "dora"]
OF_LYCORIS = {
    "loha": ("loha", {}),
    "lokr": ("lokr", {"factor": 4, "rank": 2}),
    "lokr-full": ("lokr", {"rank": FULL_RANK, "alpha": FULL_RANK}),
}
# In a block of two streams 6 projections in, 2 out, 4 of the MLPs, 2 modulations; in one of a single stream
# 3 in, 1 and 1 of the joined MLP, 1 modulation. Two blocks of each; 6 modules in each of CLIP's two layers.
NUM_BLOCK_MODULES, NUM_TEXT_MODULES = 2 * 14 + 2 * 6, 2 * 6


@pytest.fixture(scope="module")
def base() -> FluxPipeline:
    return tiny_flux_pipeline()


def copy_of(pipeline: FluxPipeline) -> FluxPipeline:
    components = {name: part for name, part in pipeline.components.items() if part is not None}
    copied = FluxPipeline(**deepcopy(components))
    copied.set_progress_bar_config(disable=True)
    return copied


def attach(pipeline: FluxPipeline, kind: str, parts: tuple[str, ...] = ("transformer",), **options: Any):
    """A network whose weights are as after training."""
    settings = {"rank": RANK, "alpha": ALPHA, "seed": 7} | options
    network: AdapterNetwork = resolve_network(kind)({p: getattr(pipeline, p) for p in parts}, **settings)
    learn(network)
    return network


@torch.no_grad()
def learn(network: AdapterNetwork, spread: float = 0.3) -> None:
    for name, parameter in network.named_parameters().items():
        drawn = torch.randn(parameter.shape, generator=keyed_generator("learned", name))
        if "magnitude" in name:
            parameter.mul_(1 + 0.1 * drawn)
        else:
            parameter.copy_(spread * drawn)


def predict(transformer: nn.Module) -> Tensor:
    draw = keyed_generator("input")
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 16, 16, generator=draw),
            encoder_hidden_states=torch.randn(1, 5, 32, generator=draw),
            pooled_projections=torch.randn(1, 24, generator=draw),
            timestep=torch.tensor([0.4]),
            guidance=torch.tensor([1.0]),
            img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
        )[0]


def picture(pipeline: FluxPipeline) -> np.ndarray:
    return pipeline(
        "a red circle", height=32, width=32, num_inference_steps=2, max_sequence_length=T5_LENGTH,
        output_type="np", generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip


def save(network: AdapterNetwork, path: Path) -> Path:
    save_network(network, path, dtype=torch.float32, metadata={}, style=style_of("flux"))
    return path


def lora_modules(pipeline: FluxPipeline) -> dict[str, nn.Module]:
    return {
        f"{part}.{name}": module
        for part in ("transformer", "text_encoder")
        for name, module in getattr(pipeline, part).named_modules()
        if getattr(module, "lora_A", None)
    }


def delta(layer: Any) -> Tensor:
    (adapter,) = layer.lora_A
    return layer.get_delta_weight(adapter).detach()


def test_every_type_is_judged():
    assert {*OF_DIFFUSERS, *(kind for kind, _ in OF_LYCORIS.values())} == set(NETWORKS)


@pytest.mark.parametrize("kind", OF_DIFFUSERS)
@pytest.mark.parametrize("with_text", [False, True])
def test_diffusers_reads_every_module_and_draws_the_same(base, tmp_path, kind, with_text):
    ours, judge = copy_of(base), copy_of(base)
    parts = ("transformer", "text_encoder") if with_text else ("transformer",)
    network = attach(ours, kind, parts)
    judge.load_lora_weights(save(network, tmp_path / "a.safetensors"))
    mine, theirs = lora_modules(ours), lora_modules(judge)
    assert len(theirs) == NUM_BLOCK_MODULES + with_text * NUM_TEXT_MODULES == network.num_modules
    assert mine.keys() == theirs.keys()
    for name, layer in mine.items():
        torch.testing.assert_close(delta(theirs[name]), delta(layer), rtol=1e-4, atol=1e-6)
    drawn = picture(ours)
    assert np.abs(drawn - picture(judge)).max() <= 1e-3
    assert np.abs(drawn - picture(base)).max() > 1e-2


@pytest.mark.parametrize("case", OF_LYCORIS)
def test_lycoris_reads_every_module_and_predicts_the_same(base, tmp_path, case):
    kind, options = OF_LYCORIS[case]
    ours, theirs = copy_of(base).transformer, deepcopy(base.transformer)
    pipeline = copy_of(base)
    pipeline.transformer = ours
    network = attach(pipeline, kind, **options)
    path = save(network, tmp_path / "a.safetensors")
    assert all(key.startswith(("lycoris_transformer_blocks_", "lycoris_single_")) for key in load_file(path))
    judge, _ = create_lycoris_from_weights(1.0, str(path), theirs)
    assert len(judge.loras) == network.num_modules == NUM_BLOCK_MODULES
    judge.apply_to()
    torch.testing.assert_close(predict(theirs), predict(ours), rtol=1e-3, atol=2e-4)
    assert (predict(ours) - predict(base.transformer)).abs().max() > 1e-2


def test_lora_files_have_peft_keys_and_no_alpha_whatever_it_was(base, tmp_path):
    files = {
        alpha: load_file(save(attach(copy_of(base), "lora", alpha=alpha), tmp_path / "a.safetensors"))
        for alpha in (float(RANK), ALPHA)
    }
    keys = set(files[ALPHA])
    assert keys == set(files[RANK]) and len(keys) == 2 * NUM_BLOCK_MODULES
    assert {
        "transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight",
        "transformer.transformer_blocks.1.ff_context.net.0.proj.lora_B.weight",
        "transformer.single_transformer_blocks.0.proj_mlp.lora_B.weight",
        "transformer.single_transformer_blocks.1.norm.linear.lora_A.weight",
    } <= keys
    for key in keys:
        factor = ALPHA / RANK if "lora_B" in key else 1.0
        torch.testing.assert_close(files[ALPHA][key], factor * files[RANK][key])


@pytest.mark.parametrize("kind", [*OF_DIFFUSERS, "loha", "lokr"])
def test_saved_and_loaded_it_predicts_the_same(base, tmp_path, kind):
    first, second = copy_of(base), copy_of(base)
    path = save(attach(first, kind), tmp_path / "a.safetensors")
    fresh = resolve_network(kind)({"transformer": second.transformer}, rank=RANK, alpha=8.0, seed=1)
    assert load_network(fresh, path).num_modules == NUM_BLOCK_MODULES
    torch.testing.assert_close(predict(second.transformer), predict(first.transformer), rtol=1e-3, atol=1e-4)


def test_a_file_that_diffusers_saved_is_read_with_its_alpha(base, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    theirs, ours = copy_of(base), copy_of(base)
    config = LoraConfig(r=RANK, lora_alpha=3, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    theirs.transformer.add_adapter(config)
    for name, parameter in theirs.transformer.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    FluxPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(theirs.transformer),
        transformer_lora_adapter_metadata=config.to_dict(),
    )
    only = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]
    network = attach(ours, "lora", only_if_contains=only, alpha=5.0)
    loaded = load_network(network, tmp_path / "pytorch_lora_weights.safetensors")
    assert loaded.num_modules == network.num_modules == 2 * 4 + 2 * 3
    torch.testing.assert_close(predict(ours.transformer), predict(theirs.transformer), rtol=1e-4, atol=1e-5)


def test_filters_and_transformer_only(base):
    def paths(**options: Any) -> list[str]:
        network = attach(copy_of(base), "lora", **options)
        return [path for _, path, _ in network.named_layers()]

    blocks, everything = paths(), paths(transformer_only=False)
    assert len(blocks) == NUM_BLOCK_MODULES
    outside = sorted(set(everything) - set(blocks))
    assert {"x_embedder", "context_embedder", "proj_out", "norm_out.linear"} <= set(outside)
    assert not any("transformer_blocks" in path for path in outside)
    assert paths(only_if_contains=["transformer.single_transformer_blocks.1.proj_out"]) == [
        "single_transformer_blocks.1.proj_out"
    ]
    ignored = paths(ignore_if_contains=["ff_context", "single_transformer_blocks.0"])
    assert len(ignored) == NUM_BLOCK_MODULES - 2 * 2 - 6
    attention = paths(attn_only=True)
    assert len(attention) == 2 * 8 + 2 * 3 and all(".attn." in path for path in attention)


def test_layers_before_and_after_the_blocks_are_read_too(base, tmp_path):
    ours, judge = copy_of(base), copy_of(base)
    network = attach(ours, "lora", transformer_only=False)
    judge.load_lora_weights(save(network, tmp_path / "a.safetensors"))
    assert lora_modules(judge).keys() == lora_modules(ours).keys()
    assert np.abs(picture(ours) - picture(judge)).max() <= 1e-3
