"""Network files of Stable Diffusion XL: the names that kohya's scripts, diffusers and ComfyUI all match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from lycoris import LycorisNetwork, create_lycoris_from_weights
from safetensors.torch import load_file, save_file
from torch import nn

from testing.tiny_models import tiny_xl_pipeline
from toolkit.models.shared.original_keys import original_unet
from toolkit.networks.adapters import AdapterNetwork
from toolkit.networks.catalogue import NETWORKS, resolve_network
from toolkit.networks.embedding import attach_embedding, save_embedding
from toolkit.networks.key_formats import STYLES, group_modules
from toolkit.networks.saving import load_network, save_network
from toolkit.networks.sgm_names import from_sgm, to_sgm
from toolkit.networks.targets import find_targets
from toolkit.paths import ASSETS_ROOT
from toolkit.seeding import keyed_generator

PARTS = ("unet", "text_encoder", "text_encoder_2")
STYLE = STYLES["sdxl"]
# What kohya's scripts name the modules of SDXL, LoCon's convolutions included.
ATTENTION = r"(proj_in|proj_out|transformer_blocks_\d_(attn[12]_to_(q|k|v|out_0)|ff_net_(0_proj|2)))"
RESNET = r"(in_layers_2|emb_layers_1|out_layers_3|skip_connection)"
KNOWN = re.compile(
    rf"lora_unet_((input|output)_blocks_\d_1_{ATTENTION}|middle_block_1_{ATTENTION}"
    rf"|(input|output)_blocks_\d_0_{RESNET}|middle_block_[02]_{RESNET}|input_blocks_\d_0_op|output_blocks_\d_2_conv)"
    r"|lora_te[12]_text_model_encoder_layers_\d_(self_attn_(q|k|v|out)_proj|mlp_fc[12])"
)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return tiny_xl_pipeline()


Attach = Callable[..., AdapterNetwork]


@pytest.fixture
def attach(pipeline: StableDiffusionXLPipeline) -> Attach:
    """attach(kind, parts): a network on fresh copies of the parts, as if trained."""

    def make(kind: str = "lora", parts: tuple[str, ...] = PARTS, **options: Any) -> AdapterNetwork:
        components = {name: deepcopy(getattr(pipeline, name)) for name in parts}
        settings = {"rank": 4, "alpha": 3.0, "seed": 7} | options
        network = resolve_network(kind)(components, **settings)
        with torch.no_grad():
            for name, parameter in network.named_parameters().items():
                drawn = torch.randn(parameter.shape, generator=keyed_generator("learned", name))
                if not name.endswith("magnitude_vector"):
                    parameter.copy_(0.3 * drawn)
        return network

    return make


def unet_of(name: str) -> nn.Module:
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(ASSETS_ROOT / name / "unet"))


@pytest.mark.parametrize("name", ["sdxl_config", "ssd_config", "vega_config"])
def test_names_are_those_of_the_original_unet(name):
    """Against the exporter of whole models, whose keys diffusers' reader is the judge of."""
    unet = unet_of(name)
    originals = {key.removesuffix(".weight").replace(".", "_") for key in original_unet(unet)}
    targets = find_targets({"unet": unet}, conv=True)["unet"]
    for path in targets:
        flat = path.replace(".", "_")
        assert to_sgm(flat) in originals and from_sgm(to_sgm(flat)) == flat
        assert from_sgm(flat) == flat
    assert len({to_sgm(path.replace(".", "_")) for path in targets}) == len(targets)
    assert to_sgm("time_embedding_linear_1") == "time_embedding_linear_1"


def test_as_many_modules_are_adapted_as_in_kohyas_scripts():
    """They tell 722 modules of the UNet, 72 and 192 of the text encoders for Stable Diffusion XL."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = ASSETS_ROOT / "sdxl_config"
    with torch.device("meta"):
        encoders = [
            CLIPTextModel(CLIPTextConfig.from_pretrained(config / "text_encoder")),
            CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(config / "text_encoder_2")),
        ]
    found = find_targets(dict(zip(PARTS, [unet_of("sdxl_config"), *encoders], strict=True)))
    assert [len(paths) for paths in found.values()] == [722, 72, 192]


def test_keys_are_literally_those_other_tools_match(attach, tmp_path):
    network = attach("locon", conv_rank=2, conv_alpha=1.0)
    save_network(network, tmp_path / "a.safetensors", metadata={}, style=STYLE)
    tensors = load_file(tmp_path / "a.safetensors")
    names = {key.partition(".")[0] for key in tensors}
    assert [name for name in names if not KNOWN.fullmatch(name)] == []
    assert len(names) == network.num_modules and len(tensors) == 3 * len(names)
    assert {
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k.lora_down.weight",
        "lora_unet_middle_block_1_proj_in.alpha",
        "lora_unet_output_blocks_2_2_conv.lora_up.weight",
        "lora_unet_input_blocks_3_0_op.lora_up.weight",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "lora_te2_text_model_encoder_layers_2_mlp_fc1.lora_down.weight",
    } <= tensors.keys()
    assert tensors["lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha"] == 3.0


@pytest.mark.parametrize("parts", [("unet",), ("text_encoder",), ("text_encoder_2",)], ids="_".join)
def test_diffusers_reads_one_part_alone(attach, pipeline, tmp_path, parts):
    network = attach(parts=parts)
    save_network(network, tmp_path / "a.safetensors", dtype=torch.float32, metadata={}, style=STYLE)
    assert matched(pipeline, tmp_path / "a.safetensors") == {parts[0]: network.num_modules}


@pytest.mark.parametrize("filters", [["down_blocks.1"], ["mid_block"], ["up_blocks.0"], ["to_out"]])
def test_diffusers_reads_a_part_of_the_unet(attach, pipeline, tmp_path, filters):
    network = attach(parts=("unet",), only_if_contains=filters)
    save_network(network, tmp_path / "a.safetensors", dtype=torch.float32, metadata={}, style=STYLE)
    assert matched(pipeline, tmp_path / "a.safetensors") == {"unet": network.num_modules}


def matched(pipeline: StableDiffusionXLPipeline, file: Path) -> dict[str, int]:
    """How many modules of each part diffusers gives an adapter of the file."""
    judge = StableDiffusionXLPipeline(**deepcopy(pipeline.components), add_watermarker=False)
    judge.load_lora_weights(str(file))
    counts = {
        part: sum("default_0" in getattr(module, "lora_A", {}) for module in getattr(judge, part).modules())
        for part in PARTS
    }
    return {part: count for part, count in counts.items() if count}


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_every_type_comes_back_from_its_file(attach, tmp_path, kind):
    conv = {"conv_rank": 2, "conv_alpha": 1.0} if kind == "locon" else {}
    network = attach(kind, **conv)
    save_network(network, tmp_path / "a.safetensors", dtype=torch.float32, metadata={}, style=STYLE)
    names = {key.partition(".")[0] for key in load_file(tmp_path / "a.safetensors")}
    assert [name for name in names if not KNOWN.fullmatch(name)] == []
    again = attach(kind, seed=8, **conv)
    with torch.no_grad():
        for parameter in again.named_parameters().values():
            parameter.zero_()
    assert load_network(again, tmp_path / "a.safetensors").num_modules == network.num_modules
    before, after = network.state_dict(), again.state_dict()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name])


@pytest.mark.parametrize("first", ["lora_te1", "lora_te"])
def test_files_in_the_names_of_diffusers_blocks_are_read_too(attach, tmp_path, first):
    """As ai-toolkit writes them."""
    network = attach()
    other = type(STYLE)(STYLE.prefixes | {"text_encoder": first})
    save_network(network, tmp_path / "a.safetensors", dtype=torch.float32, metadata={}, style=other)
    assert any("lora_unet_down_blocks_1_attentions_0" in key for key in load_file(tmp_path / "a.safetensors"))
    again = attach(seed=8)
    load_network(again, tmp_path / "a.safetensors")
    before, after = network.state_dict(), again.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.fixture
def lora_unet_prefix() -> Iterator[None]:
    before = LycorisNetwork.LORA_PREFIX
    LycorisNetwork.LORA_PREFIX = "lora_unet"
    yield
    LycorisNetwork.LORA_PREFIX = before


@pytest.mark.usefixtures("lora_unet_prefix")
@pytest.mark.parametrize("kind", ["loha", "lokr", "dora"])
def test_lycoris_makes_the_same_of_the_file(attach, pipeline, tmp_path, kind):
    """lycoris is given diffusers' UNet here, and so its names; kohya's scripts give it the original's."""
    network = attach(kind, parts=("unet",), only_if_contains=["mid_block"])
    save_network(network, tmp_path / "a.safetensors", dtype=torch.float32, metadata={}, style=STYLE)
    grouped = group_modules(load_file(tmp_path / "a.safetensors")).modules
    renamed = {f"{name}.{part}": value for name, parts in grouped.items() for part, value in parts.items()}
    save_file(renamed, tmp_path / "b.safetensors")
    judge = deepcopy(pipeline.unet)
    wrapper, _ = create_lycoris_from_weights(1.0, str(tmp_path / "b.safetensors"), judge)
    assert len(wrapper.loras) == network.num_modules > 0
    wrapper.apply_to()
    features = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    ours = network.layers["unet"][name](features)
    torch.testing.assert_close(judge.get_submodule(name)(features), ours, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(pipeline.unet.get_submodule(name)(features), ours, atol=1e-3)


def test_a_learned_word_is_read_by_diffusers_for_both_encoders(pipeline, tmp_path):
    learner, judge = (
        StableDiffusionXLPipeline(**deepcopy(pipeline.components), add_watermarker=False) for _ in range(2)
    )
    encoders = {name: getattr(learner, name) for name in PARTS[1:]}
    tokenizers = {"tokenizer": learner.tokenizer, "tokenizer_2": learner.tokenizer_2}
    inversion = attach_embedding(encoders, tokenizers, trigger="zwx", num_vectors=2, init_words="red cat")
    with torch.no_grad():
        for name, layer in inversion.layers.items():
            layer.vectors.normal_(generator=keyed_generator("test", name))
    file = tmp_path / "zwx.safetensors"
    save_embedding(inversion, file, keys=("clip_l", "clip_g"), dtype=torch.float32, metadata={}, step=3)
    learned = load_file(file)
    assert {key: tuple(value.shape) for key, value in learned.items()} == {
        "clip_l": (2, 24),
        "clip_g": (2, 32),
    }
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        judge.load_textual_inversion(
            learned[key], token="zwx", text_encoder=getattr(judge, f"text_encoder{number}"),
            tokenizer=getattr(judge, f"tokenizer{number}"),
        )  # fmt: skip
    for ours, theirs in zip(
        learner.encode_prompt("a zwx on white", negative_prompt=""),
        judge.encode_prompt("a zwx on white", negative_prompt=""),
        strict=True,
    ):
        torch.testing.assert_close(theirs, ours)
