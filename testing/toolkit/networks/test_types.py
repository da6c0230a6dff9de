"""What every type of network must be: nothing at first, float32, seeded, switchable, alike after a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from lycoris import LycorisNetwork, create_lycoris_from_weights
from safetensors.torch import load_file
from torch import Tensor, nn

from testing.tiny_models import tiny_pipeline
from toolkit.networks.adapters import AdapterNetwork, layer_parameters, rank_of, scale_of
from toolkit.networks.catalogue import FULL_RANK, NETWORKS, resolve_network
from toolkit.networks.saving import load_network, save_network
from toolkit.seeding import keyed_generator

# name of the case -> (type, options beside rank, alpha and seed)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "locon": ("locon", {"conv_rank": 2, "conv_alpha": 3.0}),
    "dora": ("dora", {}),
    "dora-conv": ("dora", {"conv_rank": 2, "conv_alpha": 1.0}),
    "loha": ("loha", {}),
    "loha-conv": ("loha", {"conv_rank": 2, "conv_alpha": 1.0}),
    "lokr": ("lokr", {}),
    "lokr-factor": ("lokr", {"factor": 4, "rank": 2}),
    "lokr-full": ("lokr", {"rank": FULL_RANK, "alpha": FULL_RANK}),
    "lokr-conv": ("lokr", {"factor": 4, "conv_rank": 2, "conv_alpha": 1.0}),
}
PARTS = ["down_blocks.0"]  # of a UNet: enough to see, and quick
RANK, ALPHA = 4, 3.0  # alpha / rank = 0.75: a reader that forgets it is seen

Make = Callable[..., tuple[nn.Module, AdapterNetwork]]


def test_every_type_has_a_case():
    assert {kind for kind, _ in CASES.values()} == set(NETWORKS)


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return tiny_pipeline().unet.eval()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(unet: nn.Module, case: str) -> Make:
    """make(learned=True, dtype, **options): a copy of the UNet with a network of the case's type."""

    def attach(*, learned: bool = True, dtype: torch.dtype = torch.float32, **options: Any):
        kind, own = CASES[case]
        model = deepcopy(unet).to(dtype)
        settings = {"rank": RANK, "alpha": ALPHA, "seed": 7, "only_if_contains": PARTS} | own | options
        network = resolve_network(kind)({"unet": model}, **settings)
        if learned:
            learn(network)
        return model.eval(), network

    return attach


@torch.no_grad()
def learn(network: AdapterNetwork, spread: float = 0.3) -> None:
    """Weights as after training; magnitudes stay near the lengths they began with."""
    for name, parameter in network.named_parameters().items():
        drawn = torch.randn(parameter.shape, generator=keyed_generator("learned", name))
        if name.endswith("magnitude_vector"):
            parameter.mul_(1 + 0.1 * drawn.to(parameter.dtype))
        else:
            parameter.copy_(spread * drawn)


def predict(model: nn.Module) -> Tensor:
    dtype = model.conv_in.weight.dtype
    config = model.config
    draws = [
        torch.randn(shape, generator=keyed_generator("input", i)).to(dtype)
        for i, shape in enumerate([(2, config.in_channels, 8, 8), (2, 5, config.cross_attention_dim)])
    ]
    with torch.no_grad():
        return model(draws[0], torch.tensor([100, 500]), draws[1]).sample.float()


def test_it_changes_nothing_before_the_first_update(unet, make):
    model, network = make(learned=False)
    assert network.num_modules > 8
    torch.testing.assert_close(predict(model), predict(unet), rtol=0, atol=1e-6)


def test_all_of_its_weights_can_learn(make):
    """After one step away from the start every weight has a gradient, and only the network's have one."""
    model, network = make(learned=True)
    prediction = model(
        torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, model.config.cross_attention_dim)
    ).sample
    prediction.square().sum().backward()
    trainable = {id(parameter) for parameter in network.parameters("unet")}
    for parameter in model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trainable)
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters("unet"))


def test_it_is_float32_on_a_bfloat16_base_and_changes_nothing_there_either(unet, make):
    model, network = make(learned=False, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in network.parameters("unet")} == {torch.float32}
    base = predict(deepcopy(unet).to(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(predict(model), base, rtol=0, atol=0.02)


def test_equal_seeds_make_equal_networks(make):
    first, second, other = (make(learned=False, seed=seed)[1].state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_strength_goes_from_the_base_exactly_to_as_trained(unet, make):
    model, network = make()
    base, trained = predict(unet), predict(model)
    assert (trained - base).abs().max() > 1e-2
    network.multiplier = 0.0
    assert torch.equal(predict(model), base)
    network.multiplier = 0.5
    half = predict(model)
    network.multiplier = 1.0
    assert torch.equal(predict(model), trained)
    assert (half - base).abs().max() > 1e-3 and (half - trained).abs().max() > 1e-3
    with network.enabled(False):
        assert torch.equal(predict(model), base)
    assert torch.equal(predict(model), trained)


def test_merged_equals_applied(make):
    """|f(x; merged) - f(x; adapter)| in float64: 1e-12 a module; a UNet of layers adds some of it up."""
    model, network = make()
    model.double()
    applied = predict_double(model)
    for _, _, layer in network.named_layers():
        layer.merge()
    torch.testing.assert_close(predict_double(model), applied, rtol=1e-10, atol=1e-12)


def predict_double(model: nn.Module) -> Tensor:
    sample, states = (
        torch.empty(shape).double() for shape in [(2, 4, 8, 8), (2, 5, model.config.cross_attention_dim)]
    )
    generator = torch.Generator().manual_seed(1)
    sample.normal_(generator=generator)
    states.normal_(generator=generator)
    with torch.no_grad():
        return model(sample, torch.tensor([100, 500]), states).sample


def test_dropout_acts_while_training_only(make):
    model, _ = make(dropout=0.5)
    quiet = predict(model)
    assert torch.equal(predict(model), quiet)
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(predict(model), quiet)


def test_saved_and_loaded_it_predicts_the_same(make, tmp_path):
    model, network = make()
    save_network(network, tmp_path / "a.safetensors", dtype=torch.float32, metadata={})
    other, fresh = make(learned=False)
    assert load_network(fresh, tmp_path / "a.safetensors").num_modules == network.num_modules
    torch.testing.assert_close(predict(other), predict(model), rtol=1e-4, atol=1e-5)


def test_it_is_loaded_as_it_acts_whatever_the_alpha(make, case, tmp_path):
    if case == "lokr-full":
        return  # has no alpha of its own
    model, network = make()
    save_network(network, tmp_path / "a.safetensors", dtype=torch.float32, metadata={})
    other, fresh = make(learned=False, alpha=8.0)
    load_network(fresh, tmp_path / "a.safetensors")
    torch.testing.assert_close(predict(other), predict(model), rtol=1e-3, atol=1e-4)


@pytest.fixture
def lycoris_prefix() -> Iterator[None]:
    before = LycorisNetwork.LORA_PREFIX
    LycorisNetwork.LORA_PREFIX = "lora_unet"
    yield
    LycorisNetwork.LORA_PREFIX = before


@pytest.mark.usefixtures("lycoris_prefix")
def test_lycoris_reads_every_module_and_predicts_the_same(unet, make, tmp_path):
    model, network = make()
    save_network(network, tmp_path / "a.safetensors", dtype=torch.float32, metadata={})
    theirs = deepcopy(unet)
    judge, _ = create_lycoris_from_weights(1.0, str(tmp_path / "a.safetensors"), theirs)
    assert len(judge.loras) == network.num_modules
    judge.apply_to()
    torch.testing.assert_close(predict(theirs), predict(model), rtol=1e-3, atol=2e-4)
    assert (predict(model) - predict(unet)).abs().max() > 1e-2


def test_files_have_an_alpha_for_every_module(make, case, tmp_path):
    _, network = make()
    save_network(network, tmp_path / "a.safetensors", metadata={})
    tensors = load_file(tmp_path / "a.safetensors")
    names = {key.partition(".")[0] for key in tensors}
    assert len(names) == network.num_modules
    assert all(f"{name}.alpha" in tensors for name in names)
    assert all(tensor.dtype == torch.float16 for key, tensor in tensors.items() if "alpha" not in key)


@pytest.mark.parametrize("wanted", [6, 3])
def test_another_rank_is_padded_or_cut_to_the_largest_singular_values(make, case, tmp_path, wanted):
    if case == "lokr-full":
        return  # has no rank
    model, network = make()
    save_network(network, tmp_path / "a.safetensors", dtype=torch.float32, metadata={})
    before = predict(model)
    kind, options = CASES[case]
    if kind == "lokr" and options.get("rank") == 2:
        wanted = {6: 3, 3: 1}[wanted]
    other, fresh = make(learned=False, rank=wanted)
    changed = {rank_of(layer) for _, _, layer in fresh.named_layers()}
    try:
        loaded = load_network(fresh, tmp_path / "a.safetensors")
    except Exception as error:
        if kind == "lokr":  # a rank at which w2 is whole is another layout
            assert "lokr_w2" in str(error)
            return
        raise
    assert wanted in changed
    if kind in ("lora", "locon", "dora"):
        assert f"became {wanted}" in loaded.notes[0]
    if wanted > options.get("rank", RANK):
        torch.testing.assert_close(predict(other), before, rtol=1e-3, atol=1e-4)
    elif kind in ("lora", "locon"):
        assert_best_of_rank(network, fresh, wanted)


def assert_best_of_rank(before: AdapterNetwork, after: AdapterNetwork, rank: int) -> None:
    """Each cut module is its best approximation of that rank (Eckart and Young)."""
    for (_, _, old), (_, _, new) in zip(before.named_layers(), after.named_layers(), strict=True):
        if rank_of(old) <= rank:
            continue
        full, cut = (layer.get_delta_weight("default").detach().flatten(1) for layer in (old, new))
        left, values, right = torch.linalg.svd(full, full_matrices=False)
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        torch.testing.assert_close(cut, best, rtol=1e-3, atol=1e-4)


def test_lokr_equals_peft_without_its_weight(unet):
    """kron(w1, w2) x as two small products, against peft's own weight."""
    for options in ({"factor": 4, "rank": 2}, {"rank": FULL_RANK, "alpha": FULL_RANK}, {"factor": 8}):
        model = deepcopy(unet)
        network = resolve_network("lokr")(
            {"unet": model}, **{"rank": RANK, "alpha": ALPHA, "seed": 1} | options
        )
        learn(network)
        linears = [layer for _, _, layer in network.named_layers() if isinstance(layer.base_layer, nn.Linear)]
        for layer in linears:
            x = torch.randn(2, 3, layer.base_layer.in_features, generator=torch.Generator().manual_seed(0))
            expected = x @ layer.get_delta_weight("default").T
            found = layer._get_delta_activations("default", x)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_dora_equals_its_formula(unet):
    """W' = m V / |V| with V = W + alpha / rank up down, a length for each row (arXiv:2402.09353)."""
    model = deepcopy(unet)
    network = resolve_network("dora")({"unet": model}, rank=RANK, alpha=ALPHA, seed=1)
    for _, _, layer in network.named_layers():
        lengths = layer.base_layer.weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(layer_parameters(layer)["lora_magnitude_vector"].flatten(), lengths)
    learn(network)
    linears = [layer for _, _, layer in network.named_layers() if isinstance(layer.base_layer, nn.Linear)]
    layer = linears[0]
    own = {name: parameter.detach() for name, parameter in layer_parameters(layer).items()}
    v = layer.base_layer.weight + scale_of(layer) * own["lora_B.weight"] @ own["lora_A.weight"]
    weight = own["lora_magnitude_vector"][:, None] * v / v.norm(dim=1, keepdim=True)
    x = torch.randn(2, v.shape[1])
    bias = layer.base_layer.bias if layer.base_layer.bias is not None else 0
    torch.testing.assert_close(layer(x), x @ weight.T + bias, rtol=1e-4, atol=1e-5)


def test_attention_alone(unet):
    model = deepcopy(unet)
    network = resolve_network("lora")({"unet": model}, rank=2, alpha=2.0, seed=1, attn_only=True)
    paths = [path for _, path, _ in network.named_layers()]
    assert paths and all(".attn1." in path or ".attn2." in path for path in paths)
    assert any(path.endswith("to_out.0") for path in paths)


def test_convolutions_are_those_of_kohya(unet):
    model = deepcopy(unet)
    network = resolve_network("locon")(
        {"unet": model}, rank=2, alpha=2.0, seed=1, conv_rank=3, conv_alpha=1.0
    )
    layers = {path: layer for _, path, layer in network.named_layers()}
    spatial = {path for path, layer in layers.items() if rank_of(layer) == 3}
    assert spatial and all("resnets" in p or "samplers" in p for p in spatial)
    assert {scale_of(layers[path]) for path in spatial} == {1.0 / 3}
    assert {scale_of(layer) for path, layer in layers.items() if path not in spatial} == {1.0}
    assert "conv_in" not in layers and "conv_out" not in layers
