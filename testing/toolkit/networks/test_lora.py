from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from toolkit.errors import ConfigError
from toolkit.networks.base import Network
from toolkit.networks.lora import ADAPTER, AdapterNetwork, attach_lora

NewPipeline = Callable[[], StableDiffusionPipeline]
Attach = Callable[..., AdapterNetwork]


def unet_inputs(unet: UNet2DConditionModel, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = unet.config.sample_size
    noisy = torch.randn(2, unet.config.in_channels, size, size, generator=generator)
    embeds = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    return {
        "sample": noisy.to(dtype),
        "timestep": torch.tensor([3, 800]),
        "encoder_hidden_states": embeds.to(dtype),
    }


def run_unet(pipeline: StableDiffusionPipeline, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.no_grad():
        return pipeline.unet(**unet_inputs(pipeline.unet, dtype)).sample


def run_text_encoder(pipeline: StableDiffusionPipeline) -> Tensor:
    tokens = pipeline.tokenizer(["a red circle"], padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        return pipeline.text_encoder(tokens.input_ids).last_hidden_state


def all_transformer_weights(unet: nn.Module) -> set[str]:
    """kohya's set, found another way: by the weights' names and shapes."""
    return {
        name.removesuffix(".weight")
        for name, weight in unet.named_parameters()
        if ".attentions." in name and name.endswith(".weight") and weight.ndim in (2, 4)
    }


def test_it_is_a_network_and_adapts_kohyas_set(new_pipeline: NewPipeline, attach: Attach) -> None:
    pipeline = new_pipeline()
    expected = all_transformer_weights(pipeline.unet)
    network = attach(pipeline)
    assert isinstance(network, Network)
    assert set(network.layers["unet"]) == expected
    leaves = {path.rpartition(".")[2] for path in network.layers["text_encoder"]}
    num_layers = pipeline.text_encoder.config.num_hidden_layers
    assert leaves == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    assert len(network.layers["text_encoder"]) == 6 * num_layers
    assert network.num_modules == len(expected) + 6 * num_layers


def test_step_zero_is_the_base_bit_for_bit(new_pipeline: NewPipeline, attach: Attach) -> None:
    pipeline = new_pipeline()
    base = run_unet(pipeline), run_text_encoder(pipeline)
    attach(pipeline, learned=False)
    assert torch.equal(run_unet(pipeline), base[0])
    assert torch.equal(run_text_encoder(pipeline), base[1])


def test_only_float32_adapter_weights_are_trained(new_pipeline: NewPipeline, attach: Attach) -> None:
    pipeline = new_pipeline()
    network = attach(pipeline, learned=False)
    groups = network.trainable_parameters()
    assert set(groups) == {"unet", "text_encoder"}
    for component, parameters in groups.items():
        trained = {id(p) for p in getattr(pipeline, component).parameters() if p.requires_grad}
        assert trained == {id(p) for p in parameters} and len(trained) == len(parameters)
        assert parameters == network.parameters(component)
        assert {p.dtype for p in parameters} == {torch.float32}
    pipeline.unet(**unet_inputs(pipeline.unet)).sample.square().mean().backward()
    up = [
        p for name, p in network.named_parameters().items() if name.startswith("unet.") and "lora_B" in name
    ]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in up)


def test_a_component_without_modules_has_no_group(new_pipeline: NewPipeline, attach: Attach) -> None:
    network = attach(new_pipeline(), only_if_contains=["lora_unet"])
    assert set(network.trainable_parameters()) == {"unet"}
    assert network.parameters("text_encoder") == []


def test_multiplier_scales_the_change(new_pipeline: NewPipeline, attach: Attach) -> None:
    pipeline = new_pipeline()
    base = run_unet(pipeline), run_text_encoder(pipeline)
    network = attach(pipeline)
    full = run_unet(pipeline)
    layers = [layer for _, _, layer in network.named_layers()]
    deltas = [layer.get_delta_weight(ADAPTER) for layer in layers]
    assert not torch.allclose(full, base[0], atol=1e-3)
    network.multiplier = 0.5
    assert network.multiplier == 0.5
    for layer, delta in zip(layers, deltas, strict=True):
        torch.testing.assert_close(layer.get_delta_weight(ADAPTER), delta / 2)
    network.multiplier = 0.0
    assert torch.equal(run_unet(pipeline), base[0])
    assert torch.equal(run_text_encoder(pipeline), base[1])
    network.multiplier = 1.0
    assert torch.equal(run_unet(pipeline), full)


def test_enabled_bypasses_and_restores_even_after_an_error(new_pipeline: NewPipeline, attach: Attach) -> None:
    pipeline = new_pipeline()
    base = run_unet(pipeline)
    network = attach(pipeline)
    full = run_unet(pipeline)
    frozen = network.parameters("unet")[0].requires_grad_(False)
    with pytest.raises(ZeroDivisionError), network.enabled(False):
        assert torch.equal(run_unet(pipeline), base)
        with network.enabled():
            assert torch.equal(run_unet(pipeline), full)
        assert torch.equal(run_unet(pipeline), base)
        raise ZeroDivisionError
    assert torch.equal(run_unet(pipeline), full)
    trainable = [parameter.requires_grad for parameter in network.parameters("unet")]
    assert not frozen.requires_grad and all(trainable[1:])


def test_merged_by_hand_equals_applied(new_pipeline: NewPipeline, attach: Attach) -> None:
    pipeline, merged = new_pipeline(), new_pipeline()
    network = attach(pipeline)
    state = network.state_dict()
    for component in ("unet", "text_encoder"):
        for path in network.layers[component]:
            flat = (
                path
                if component == "unet"
                else f"text_model.{path}".replace("text_model.text_model", "text_model")
            )
            down = state[f"{component}.{flat}.lora_A.weight"]
            up = state[f"{component}.{flat}.lora_B.weight"]
            weight = getattr(merged, component).get_submodule(path).weight
            with torch.no_grad():
                weight += (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * 3.0 / 4
    torch.testing.assert_close(run_unet(pipeline), run_unet(merged), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(run_text_encoder(pipeline), run_text_encoder(merged), atol=2e-5, rtol=1e-4)


def test_initial_weights_depend_on_seed_and_name_only(new_pipeline: NewPipeline, attach: Attach) -> None:
    torch.manual_seed(1)
    both = attach(new_pipeline(), learned=False).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    pipeline = new_pipeline()
    alone = attach(pipeline, ("unet",), learned=False, only_if_contains=["attn2"]).state_dict()
    assert alone and all(torch.equal(alone[name], both[name]) for name in alone)
    other = attach(new_pipeline(), learned=False, seed=8).state_dict()
    down = [name for name in both if "lora_A" in name]
    assert not any(torch.equal(other[name], both[name]) for name in down)
    torch.set_rng_state(before)
    expected = torch.rand(3)
    torch.set_rng_state(before)
    attach(new_pipeline(), learned=False)
    assert torch.equal(torch.rand(3), expected), "attaching must not move the global generator"


def test_initial_down_has_the_spread_of_a_linear_layer(new_pipeline: NewPipeline, attach: Attach) -> None:
    network = attach(new_pipeline(), learned=False, rank=64)
    for name, weight in network.state_dict().items():
        if "lora_B" in name:
            assert not weight.any()
            continue
        bound = (
            weight.flatten(1).shape[1] ** -0.5
        )  # kaiming uniform with a = sqrt(5): U(-1/sqrt(n), 1/sqrt(n))
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base(new_pipeline: NewPipeline, attach: Attach, dtype: torch.dtype) -> None:
    pipeline = new_pipeline()
    pipeline.unet.to(dtype)
    base = run_unet(pipeline, dtype)
    network = attach(pipeline, ("unet",), learned=False)
    assert {p.dtype for p in network.parameters("unet")} == {torch.float32}
    assert torch.equal(run_unet(pipeline, dtype), base)
    output = pipeline.unet(**unet_inputs(pipeline.unet, dtype)).sample
    assert output.dtype == dtype
    output.float().square().mean().backward()
    for name, parameter in network.named_parameters().items():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.any() == ("lora_B" in name)


def test_float32_base_under_autocast(new_pipeline: NewPipeline, attach: Attach) -> None:
    pipeline = new_pipeline()
    network = attach(pipeline)
    exact = run_unet(pipeline)
    with torch.autocast("cpu", torch.bfloat16):
        output = pipeline.unet(**unet_inputs(pipeline.unet)).sample
        output.float().square().mean().backward()
    assert (output.float() - exact).norm() / exact.norm() < 0.05
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters("unet"))


def test_gradient_checkpointing_gives_the_same_gradients(new_pipeline: NewPipeline, attach: Attach) -> None:
    """Frozen embeddings and inputs: a checkpoint that needs inputs with gradients would drop them all."""
    gradients = []
    for checkpointing in (False, True):
        pipeline = new_pipeline()
        network = attach(pipeline)
        pipeline.unet.train()
        pipeline.text_encoder.train()
        if checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
            pipeline.text_encoder.gradient_checkpointing_enable()
        pipeline.unet(**unet_inputs(pipeline.unet)).sample.square().mean().backward()
        pipeline.text_encoder(torch.arange(8)[None]).last_hidden_state.square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters().items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.any(), name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_no_filter_may_be_none(new_pipeline: NewPipeline, attach: Attach) -> None:
    network = attach(new_pipeline(), ("unet",), only_if_contains=None)
    assert network.num_modules == attach(new_pipeline(), ("unet",)).num_modules


def test_dropout_acts_in_training_only(new_pipeline: NewPipeline, attach: Attach) -> None:
    pipeline = new_pipeline()
    attach(pipeline, dropout=0.5)
    pipeline.unet.eval()
    assert torch.equal(run_unet(pipeline), run_unet(pipeline))
    pipeline.unet.train()
    assert not torch.equal(run_unet(pipeline), run_unet(pipeline))


def test_state_dict_is_a_copy_and_loads_back(new_pipeline: NewPipeline, attach: Attach) -> None:
    pipeline = new_pipeline()
    network = attach(pipeline)
    output, state = run_unet(pipeline), network.state_dict()
    with torch.no_grad():
        for parameter in network.parameters("unet"):
            parameter.zero_()
    assert not torch.equal(run_unet(pipeline), output)
    network.load_state_dict(state)
    assert torch.equal(run_unet(pipeline), output)
    name = next(iter(state))
    with pytest.raises(ValueError, match="1 names are not in both"):
        network.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match="not"):
        network.load_state_dict(state | {name: state[name][:2]})


def test_filters(new_pipeline: NewPipeline, attach: Attach) -> None:
    unfiltered = set(attach(new_pipeline(), ("unet",)).layers["unet"])
    network = attach(
        new_pipeline(), ("unet",), only_if_contains=["attn2", "_ff_net_0"], ignore_if_contains=["mid_"]
    )
    expected = {p for p in unfiltered if ("attn2" in p or "ff.net.0" in p) and not p.startswith("mid_")}
    assert set(network.layers["unet"]) == expected
    assert expected and expected < unfiltered


def test_outside_of_transformers_are_time_projections_and_shortcuts(
    new_pipeline: NewPipeline, attach: Attach
) -> None:
    inside = set(attach(new_pipeline(), ("unet",)).layers["unet"])
    network = attach(new_pipeline(), ("unet",), transformer_only=False)
    extra = set(network.layers["unet"]) - inside
    assert {path.rpartition(".")[2] for path in extra} == {"time_emb_proj", "conv_shortcut"}
    assert inside < set(network.layers["unet"])
    layers = [m for m in network.layers["unet"].values() if isinstance(m, LoraLayer)]
    assert len(layers) == network.num_modules


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"only_if_contains": ["atn1"]}, ["network.network_kwargs.only_if_contains"]),
        ({"ignore_if_contains": ["tarnsformer"]}, ["network.network_kwargs.ignore_if_contains"]),
        (
            {"only_if_contains": ["attn1", "x1"], "ignore_if_contains": ["x2"]},
            ["network.network_kwargs.only_if_contains", "network.network_kwargs.ignore_if_contains"],
        ),
        ({"only_if_contains": ["attn1"], "ignore_if_contains": ["attn"]}, ["network.network_kwargs"]),
    ],
)
def test_filters_that_cannot_be_meant(
    new_pipeline: NewPipeline, attach: Attach, options: dict[str, list[str]], keys: list[str]
) -> None:
    pipeline = new_pipeline()
    with pytest.raises(ConfigError) as caught:
        attach(pipeline, ("unet",), **options)
    assert [problem.key for problem in caught.value.problems] == keys
    assert all("unet.down_blocks.0" in str(problem) for problem in caught.value.problems)
    assert not any(isinstance(module, LoraLayer) for module in pipeline.unet.modules())


def test_a_model_without_transformers_is_refused() -> None:
    with pytest.raises(ConfigError, match="no modules that a LoRA can adapt"):
        attach_lora({"unet": nn.Sequential(nn.Linear(2, 2))}, rank=1, alpha=1, seed=0)


def test_attaching_twice_is_refused(new_pipeline: NewPipeline, attach: Attach) -> None:
    pipeline = new_pipeline()
    attach(pipeline)
    with pytest.raises(ValueError, match="already"):
        attach(pipeline)


def test_a_text_encoder_that_diffusers_cannot_load_is_warned_of(
    new_pipeline: NewPipeline, attach: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    attach(new_pipeline(), ignore_if_contains=["out_proj"])
    assert "diffusers will refuse" in caplog.text
    caplog.clear()
    attach(new_pipeline())
    assert not caplog.text
