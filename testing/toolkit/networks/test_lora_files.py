from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toolkit.errors import ModelError, RunError
from toolkit.metadata import read_metadata
from toolkit.networks.adapters import AdapterNetwork
from toolkit.networks.saving import load_network, save_network

NewPipeline = Callable[[], StableDiffusionPipeline]
Attach = Callable[..., AdapterNetwork]

# The names that ComfyUI and A1111 know for Stable Diffusion 1.x.
KNOWN_UNET = re.compile(
    r"lora_unet_(down_blocks_\d_attentions_\d|mid_block_attentions_0|up_blocks_\d_attentions_\d)"
    r"_(proj_in|proj_out|transformer_blocks_0_(attn[12]_to_(q|k|v|out_0)|ff_net_(0_proj|2)))"
)
KNOWN_TEXT = re.compile(r"lora_te_text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])")


def images(pipeline: StableDiffusionPipeline) -> np.ndarray:
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    result = pipeline(
        "a red circle",
        height=size,
        width=size,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    )
    return result.images


def deltas(module: nn.Module) -> dict[str, Tensor]:
    """Module path -> the change of its weight, as peft computes it, whatever the adapter's name."""
    return {
        path: layer.get_delta_weight(layer.active_adapters[0]).detach()
        for path, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    }


def assert_same_change(a: StableDiffusionPipeline, b: StableDiffusionPipeline) -> int:
    """Both pipelines have the same modules with the same change of weight; returns how many."""
    count = 0
    for component in ("unet", "text_encoder"):
        ours, theirs = deltas(getattr(a, component)), deltas(getattr(b, component))
        assert ours.keys() == theirs.keys()
        for path, delta in ours.items():
            assert delta.abs().max() > 1e-3
            torch.testing.assert_close(theirs[path], delta, atol=1e-6, rtol=1e-5)
        count += len(ours)
    return count


@pytest.mark.parametrize("transformer_only", [True, False])
def test_diffusers_loads_every_module_and_draws_the_same(
    new_pipeline: NewPipeline, attach: Attach, tmp_path: Path, transformer_only: bool
) -> None:
    ours, theirs = new_pipeline(), new_pipeline()
    base = images(ours)
    network = attach(ours, transformer_only=transformer_only)
    save_network(network, tmp_path / "a.safetensors", dtype=torch.float32, metadata={})
    theirs.load_lora_weights(tmp_path / "a.safetensors")
    assert assert_same_change(ours, theirs) == network.num_modules
    drawn = images(ours)
    assert np.abs(drawn - base).max() > 0.01
    assert np.abs(drawn - images(theirs)).max() <= 1e-3


def test_a_bfloat16_pipeline_draws_with_float32_adapters(new_pipeline: NewPipeline, attach: Attach) -> None:
    pipeline = new_pipeline().to(torch.bfloat16)
    base = images(pipeline)
    attach(pipeline)
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.bfloat16
    drawn = images(pipeline)
    assert np.isfinite(drawn).all() and np.abs(drawn - base).max() > 0.01


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_diffusers_loads_one_component_alone(
    new_pipeline: NewPipeline, attach: Attach, tmp_path: Path, component: str
) -> None:
    ours, theirs = new_pipeline(), new_pipeline()
    network = attach(ours, (component,))
    save_network(network, tmp_path / "a.safetensors", dtype=torch.float32, metadata={})
    theirs.load_lora_weights(tmp_path / "a.safetensors")
    assert assert_same_change(ours, theirs) == network.num_modules


def test_keys_are_literally_those_other_tools_match(
    new_pipeline: NewPipeline, attach: Attach, tmp_path: Path
) -> None:
    pipeline = new_pipeline()
    network = attach(pipeline)
    save_network(network, tmp_path / "a.safetensors", metadata={})
    tensors = load_file(tmp_path / "a.safetensors")
    modules = {key.partition(".")[0] for key in tensors}
    assert {key.partition(".")[2] for key in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert len(modules) == network.num_modules and len(tensors) == 3 * len(modules)
    assert all(KNOWN_UNET.fullmatch(name) or KNOWN_TEXT.fullmatch(name) for name in modules)
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in tensors
    for name in modules:
        alpha, down, up = (
            tensors[f"{name}.{part}"] for part in ("alpha", "lora_down.weight", "lora_up.weight")
        )
        assert alpha.ndim == 0 and alpha.item() == 3.0
        assert down.shape[0] == up.shape[1] == 4 and down.dtype == up.dtype == torch.float16


def test_a_fraction_as_alpha_survives_half_precision(
    new_pipeline: NewPipeline, attach: Attach, tmp_path: Path
) -> None:
    network = attach(new_pipeline(), ("unet",), alpha=0.3)
    save_network(network, tmp_path / "a.safetensors", dtype=torch.bfloat16, metadata={})
    alphas = [v.item() for k, v in load_file(tmp_path / "a.safetensors").items() if k.endswith(".alpha")]
    assert alphas == [pytest.approx(0.3, rel=1e-6)] * network.num_modules


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saved_and_loaded_draws_the_same(
    new_pipeline: NewPipeline, attach: Attach, tmp_path: Path, dtype: torch.dtype
) -> None:
    pipeline, other = new_pipeline(), new_pipeline()
    network = attach(pipeline)
    save_network(network, tmp_path / "a.safetensors", dtype=dtype, metadata={"ss_note": "kept"})
    fresh = attach(other, learned=False)
    loaded = load_network(fresh, tmp_path / "a.safetensors")
    assert loaded.num_modules == network.num_modules
    assert loaded.metadata["ss_note"] == "kept"
    state = network.state_dict()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, state[name].to(dtype).float())
    if dtype == torch.float32:
        assert np.array_equal(images(pipeline), images(other))


def test_equal_weights_make_equal_files(new_pipeline: NewPipeline, attach: Attach, tmp_path: Path) -> None:
    network = attach(new_pipeline(), ("unet",))
    metadata = {f"ss_{letter}": letter for letter in "qwertzuiop"}
    for name in "ab":
        save_network(network, tmp_path / name, metadata=metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_the_file_is_loaded_as_it_acts_whatever_its_alpha(
    new_pipeline: NewPipeline, attach: Attach, tmp_path: Path
) -> None:
    ours, other = new_pipeline(), new_pipeline()
    save_network(attach(ours), tmp_path / "a.safetensors", dtype=torch.float32, metadata={})
    load_network(attach(other, learned=False, alpha=8.0), tmp_path / "a.safetensors")
    assert_same_change(ours, other)


def diffusers_file(pipeline: StableDiffusionPipeline, folder: Path, *, with_alpha: bool) -> Path:
    """A LoRA that diffusers trained and saved by itself, in its own keys."""
    config = LoraConfig(r=4, lora_alpha=3, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    text_config = LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
    pipeline.unet.add_adapter(config)
    pipeline.text_encoder.add_adapter(text_config)
    for component in (pipeline.unet, pipeline.text_encoder):
        for name, parameter in component.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    alphas = {
        "unet_lora_adapter_metadata": config.to_dict(),
        "text_encoder_lora_adapter_metadata": text_config.to_dict(),
    }
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(pipeline.text_encoder),
        **(alphas if with_alpha else {}),
    )
    return folder / "pytorch_lora_weights.safetensors"


def test_files_of_diffusers_are_read(new_pipeline: NewPipeline, attach: Attach, tmp_path: Path) -> None:
    theirs, ours = new_pipeline(), new_pipeline()
    path = diffusers_file(theirs, tmp_path, with_alpha=True)
    assert any(key.startswith("unet.down_blocks.0") and "lora_A" in key for key in load_file(path))
    network = attach(ours, learned=False, only_if_contains=["attn"], alpha=5.0)
    assert load_network(network, path).num_modules == network.num_modules
    assert assert_same_change(theirs, ours) == network.num_modules


def test_without_alpha_a_file_acts_at_full_scale(
    new_pipeline: NewPipeline, attach: Attach, tmp_path: Path
) -> None:
    path = diffusers_file(new_pipeline(), tmp_path, with_alpha=False)
    judge, ours = new_pipeline(), new_pipeline()
    judge.load_lora_weights(path)
    load_network(attach(ours, learned=False, only_if_contains=["attn"]), path)
    assert_same_change(judge, ours)


def edited(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    result = path.with_name("edited.safetensors")
    save_file(change(load_file(path)), result)
    return result


def without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if part not in key}


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def test_names_without_text_model_are_read_too(
    new_pipeline: NewPipeline, attach: Attach, tmp_path: Path
) -> None:
    ours, other = new_pipeline(), new_pipeline()
    save_network(attach(ours), tmp_path / "a.safetensors", dtype=torch.float32, metadata={})
    path = edited(tmp_path / "a.safetensors", renamed("lora_te_text_model_", "lora_te_"))
    load_network(attach(other, learned=False), path)
    assert_same_change(ours, other)


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (without("lora_unet_mid_block"), "lora.missing", "lora_unet_mid_block_attentions_0"),
        (renamed("mid_block", "big_block"), "lora.unmatched", "lora_unet_big_block_attentions_0"),
        (without("attn1_to_q.lora_up"), "lora.incomplete", "attn1_to_q"),
        (lambda t: {k: v[:2] if "lora_down" in k else v for k, v in t.items()}, "lora.shape", "needed"),
        (
            lambda t: {k: v[:, :3].contiguous() if "lora_down" in k else v for k, v in t.items()},
            "lora.shape",
            "another size",
        ),
        (lambda t: t | {"bundle_emb.x.string_to_param.*": torch.zeros(1)}, "lora.foreign_keys", "bundle_emb"),
        (lambda t: t | {"lora_unet_x.dora_scale": torch.zeros(1)}, "lora.other_type", "type: dora"),
        (lambda t: {"lora_unet_x.hada_w1_a": torch.zeros(1)}, "lora.other_type", "type: loha"),
        (lambda t: t | {"lora_unet_x.lora_mid.weight": torch.zeros(1)}, "lora.other_type", "Tucker"),
        (lambda t: {"unet.conv_in.weight": torch.zeros(1)}, "lora.not_a_lora", "unet.conv_in.weight"),
    ],
)
def test_files_that_do_not_fit(
    new_pipeline: NewPipeline,
    attach: Attach,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    code: str,
    text: str,
) -> None:
    network = attach(new_pipeline())
    save_network(network, tmp_path / "a.safetensors", metadata={})
    before = network.state_dict()
    path = edited(tmp_path / "a.safetensors", change)
    with pytest.raises(ModelError) as caught:
        load_network(network, path)
    problem = next(p for p in caught.value.problems if p.code == code)
    assert text in str(problem) and problem.file == str(path)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_text_encoder_half_is_not_dropped_silently(
    new_pipeline: NewPipeline, attach: Attach, tmp_path: Path
) -> None:
    save_network(attach(new_pipeline()), tmp_path / "a.safetensors", metadata={})
    with pytest.raises(ModelError, match="that the network lacks.*lora_te_text_model"):
        load_network(attach(new_pipeline(), ("unet",)), tmp_path / "a.safetensors")


def test_files_that_are_no_safetensors(new_pipeline: NewPipeline, attach: Attach, tmp_path: Path) -> None:
    network = attach(new_pipeline())
    (tmp_path / "a.safetensors").write_text("<html>404</html>")
    with pytest.raises(ModelError, match=r"a\.safetensors: is not a safetensors file"):
        load_network(network, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="No such file"):
        load_network(network, tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    ("value", "dtype", "remedy"),
    [
        (70000.0, torch.float16, "save as bf16 or float32"),
        (float("nan"), torch.float32, "lower the learning rate"),
    ],
)
def test_weights_that_are_not_finite_are_never_written(
    new_pipeline: NewPipeline, attach: Attach, tmp_path: Path, value: float, dtype: torch.dtype, remedy: str
) -> None:
    network = attach(new_pipeline(), ("unet",))
    save_network(network, tmp_path / "a.safetensors", metadata={})
    good = (tmp_path / "a.safetensors").read_bytes()
    with torch.no_grad():
        network.layers["unet"]["mid_block.attentions.0.proj_in"].lora_B["default"].weight[0, 0] = value
    with pytest.raises(RunError, match=f"mid_block_attentions_0_proj_in.lora_up.*{remedy}"):
        save_network(network, tmp_path / "a.safetensors", dtype=dtype, metadata={})
    assert (tmp_path / "a.safetensors").read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_mode_and_metadata(new_pipeline: NewPipeline, attach: Attach, tmp_path: Path) -> None:
    network = attach(new_pipeline(), ("unet",))
    info = json.dumps({"step": 5, "epoch": 1})
    save_network(network, tmp_path / "a.safetensors", metadata={"training_info": info})
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o444 == 0o444
    metadata = read_metadata(tmp_path / "a.safetensors")
    assert metadata["training_info"] == info
    assert len(metadata["sshs_model_hash"]) == 64


def test_a_file_that_cannot_be_written_is_told(
    new_pipeline: NewPipeline, attach: Attach, tmp_path: Path
) -> None:
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(RunError, match=r"a\.safetensors: cannot be written: Is a directory"):
        save_network(attach(new_pipeline()), tmp_path / "a.safetensors", metadata={})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
