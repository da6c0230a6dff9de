"""Traces, optimizer states and timings against what can be worked out by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from testing.tiny_models import TINY_BUILDERS
from toolkit.estimate.calibration import _NEEDS_VALUES, calibrate
from toolkit.estimate.optimizer_state import OptimizerChoice, optimizer_cost
from toolkit.estimate.tracing import TensorSpec, Trace, mapped
from toolkit.models.shared.weightless import without_weights
from toolkit.stable_diffusion_model import StableDiffusion

CPU = torch.device("cpu")


def test_flops_of_a_linear_layer_and_its_backward_pass() -> None:
    layer, x = nn.Linear(32, 64), torch.randn(8, 32, requires_grad=True)
    with Trace() as trace:
        y = layer(x)
    assert trace.flops == 2 * 8 * 32 * 64
    with Trace() as backward:
        y.sum().backward()
    assert backward.flops == 2 * trace.flops  # of the input's gradient and the weight's


def test_bytes_alive_between_the_passes_by_hand() -> None:
    layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4, bias=False))
    with without_weights() as mode, mode:
        fake = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4, bias=False))
        x = torch.empty(8, 16)
        with Trace() as trace:
            loss = fake(x).square().sum()
            alive = trace.live
            loss.backward()
            gradients = trace.live
            del loss
    # ReLU keeps its result, which the second layer keeps too; the square keeps what it squares; the loss.
    assert alive == 4 * (8 * 32 + 8 * 4 + 1)
    weights = sum(4 * weight.numel() for weight in layers.parameters())
    assert weights + 4 <= gradients <= weights + 4 * (1 + 1)
    assert trace.peak >= alive


@pytest.mark.parametrize("arch", ["sd15", "sdxl", "flux"])
def test_shapes_compute_on_the_device_that_they_are_for(tmp_path: Path, arch: str) -> None:
    TINY_BUILDERS[arch](tmp_path / arch)
    devices: Counter[str] = Counter()

    def count(leaf: object) -> None:
        if isinstance(leaf, TensorSpec) and leaf.num_bytes > 1000:
            devices[leaf.device.type] += 1

    with without_weights("meta") as mode:  # stands for a GPU: shapes need none
        model = StableDiffusion.load(tmp_path / arch, arch=arch, device="meta").architecture
        with mode, torch.no_grad(), Trace() as trace:
            conditioning = model.encode_prompts(["a"])
            latents = torch.empty(1, *model.latent_spec.shape(32, 32))
            model.predict(latents, torch.empty(1), conditioning)
    mapped([each.args for each in trace.operations.values()], count)
    assert devices["meta"] > 50
    assert devices["meta"] > 20 * devices["cpu"]


def test_a_device_is_not_given_what_made_up_values_break() -> None:
    aten = torch.ops.aten
    for operator in (aten._scaled_dot_product_flash_attention_backward, aten.index_put, aten.embedding):
        assert _NEEDS_VALUES.search(str(operator.default))
    for operator in (aten._scaled_dot_product_flash_attention, aten.convolution_backward, aten.mm):
        assert not _NEEDS_VALUES.search(str(operator.default))


def test_values_that_are_asked_for_are_one() -> None:
    with without_weights() as mode, mode, Trace():
        assert bool(torch.rand(1) > 0.3)
        assert torch.empty(3, dtype=torch.int64).sum().item() == 1


def test_a_scaled_trace_counts_each_call_so_often() -> None:
    with Trace(scale=7) as trace:
        torch.ones(4, 4) @ torch.ones(4, 4)
    assert trace.flops == 7 * 2 * 4**3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw", 2 * 4 * 300 * 20 + 4 + 2 * 4 * 20 + 4),  # two moments, and a counter of each parameter
        ("adafactor", 4 * (300 + 20) + 4 * 20),  # rows and columns of a matrix, all of a vector
        ("sgd", 0),
        ("lion", 4 * 300 * 20 + 4 * 20),
    ],
)
def test_optimizer_state_in_closed_form(name: str, expected: int) -> None:
    parameters = {"weight": torch.empty(300, 20), "bias": torch.empty(20)}
    cost = optimizer_cost(OptimizerChoice(name, {}, 1e-3), parameters, zeros=frozenset(), device=CPU)
    assert abs(cost.num_bytes - expected) <= 16
    assert cost.seconds > 0


def test_prodigy_keeps_no_start_of_what_begins_at_zero() -> None:
    def cost(zeros: frozenset[str]) -> int:
        weights = {"w": torch.empty(64, 64)}
        return optimizer_cost(OptimizerChoice("prodigy", {}, 1.0), weights, zeros=zeros, device=CPU).num_bytes

    assert cost(frozenset()) - cost(frozenset({"w"})) == pytest.approx(4 * 64 * 64, abs=16)


def test_timing_tells_a_large_product_from_a_small_one() -> None:
    big, small = torch.full((384, 384), 0.5), torch.full((32, 32), 0.5)
    with Trace() as trace:
        big @ big
        small @ small
    speed = calibrate(trace.operations.values(), CPU, budget=2)
    heavy, light = sorted(trace.operations.values(), key=lambda each: -each.flops)
    assert speed.of([heavy]) > 5 * speed.of([light]) > 0
    assert speed.measured == 1 and speed.flops_per_second > 1e8


def test_without_time_to_measure_the_rest_is_inferred() -> None:
    a = torch.full((128, 128), 0.5)
    with Trace() as trace:
        a @ a
    speed = calibrate(trace.operations.values(), CPU, budget=0)
    assert speed.measured == 0 and speed.of(trace.operations.values()) > 0
