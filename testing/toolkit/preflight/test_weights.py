"""Sizes counted from headers, against networks attached to real classes and files that were saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from testing.tiny_models import export_ldm_checkpoint, tiny_flux_pipeline, tiny_pipeline, tiny_xl_pipeline
from toolkit.networks.catalogue import resolve_network
from toolkit.networks.lora import attach_lora
from toolkit.preflight.weights import (
    Adapter,
    adapter_weights,
    num_weights,
    read_header,
    read_shapes,
    state_bytes,
)
from toolkit.training import checkpoints
from toolkit.training.checkpoints import Checkpoint, save_checkpoint
from toolkit.training.optimizers import make_optimizer
from toolkit.training.run_state import NUM_KEPT

PARTS = ["unet", "text_encoder", "vae"]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "sd15"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def file(pipeline, tmp_path_factory) -> Path:
    return export_ldm_checkpoint(pipeline, tmp_path_factory.mktemp("weights") / "sd15.safetensors")


def test_headers_are_read_without_their_weights(folder, pipeline):
    header = read_header(next((folder / "unet").glob("*.safetensors")))
    assert header == {name: tuple(value.shape) for name, value in pipeline.unet.state_dict().items()}
    shapes = read_shapes(folder, PARTS)
    total = sum(value.numel() for part in PARTS for value in getattr(pipeline, part).state_dict().values())
    assert num_weights(shapes) == total


def test_what_is_no_safetensors_file_has_no_size(tmp_path, folder):
    for content in (b"", b"12345678", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]"):
        path = tmp_path / "x.safetensors"
        path.write_bytes(content)
        assert read_header(path) is None
        assert read_shapes(path, []) is None
    assert read_header(tmp_path / "none.safetensors") is None
    assert read_shapes(folder, ["unet", "scheduler"]) is None


CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "locon": {"conv_rank": 2},
    "dora": {"transformer_only": False},
    "loha": {"conv_rank": 3},
    "lora attention": {"attn_only": True},
    "lora filters": {
        "only_if_contains": ["mid_block"],
        "ignore_if_contains": ["attn2"],
    },
}


@pytest.mark.parametrize("components", [["unet"], ["unet", "text_encoder"]], ids=len)
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_has_the_predicted_size(folder, components, case):
    kind, options = case.split()[0], CASES[case]
    pipeline = tiny_pipeline()
    modules = {name: getattr(pipeline, name) for name in components}
    alphas = {"conv_alpha": 1.0} if "conv_rank" in options else {}
    network = resolve_network(kind)(modules, rank=4, alpha=2.0, seed=0, **options, **alphas)
    expected = sum(parameter.numel() for parameter in network.named_parameters().values())
    shapes = {part: tensors for part, tensors in read_shapes(folder, PARTS).items() if part in components}
    assert adapter_weights(shapes, Adapter(kind, 4, **options)) == expected


@pytest.mark.parametrize("options", [{}, {"attn_only": True}, {"transformer_only": False}], ids=str)
@pytest.mark.parametrize(
    ("make", "parts"),
    [(tiny_xl_pipeline, ["unet", "text_encoder", "text_encoder_2"]), (tiny_flux_pipeline, ["transformer"]),
     (tiny_flux_pipeline, ["transformer", "text_encoder"])],
    ids=["sdxl", "flux", "flux and CLIP"],
)  # fmt: skip
def test_adapters_of_other_models_have_the_predicted_size(tmp_path, make, parts, options):
    pipeline = make()
    pipeline.save_pretrained(tmp_path / "model")
    shapes = read_shapes(tmp_path / "model", parts)
    network = attach_lora(
        {part: getattr(pipeline, part) for part in parts}, rank=4, alpha=2.0, seed=0, **options
    )
    expected = sum(parameter.numel() for parameter in network.named_parameters().values())
    assert adapter_weights(shapes, Adapter("lora", 4, **options)) == expected


def test_single_files_predict_the_same(folder, file):
    in_folder, in_file = read_shapes(folder, PARTS), read_shapes(file, [])
    assert set(in_file) == {"unet", "vae", "text_encoder"}
    for parts in (["unet"], ["unet", "text_encoder"]):
        sizes = [
            adapter_weights({part: shapes[part] for part in parts}, Adapter("lora", 4))
            for shapes in (in_folder, in_file)
        ]
        assert sizes[0] == sizes[1] > 0


def test_lokr_is_not_predicted(folder):
    assert adapter_weights(read_shapes(folder, PARTS), Adapter("lokr", 4)) is None


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "adagrad"])
@pytest.mark.parametrize("ema", [False, True])
def test_a_checkpoint_has_about_the_predicted_size(tmp_path, name, ema):
    weights = {"a": torch.nn.Parameter(torch.ones(400, 500))}
    params = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = make_optimizer(name, [{"params": list(weights.values())}], lr=1e-3, params=params)
    weights["a"].grad = torch.ones(400, 500)
    optimizer.step()
    tensors, packed = checkpoints.pack_optimizer(optimizer)
    groups = {"weights": {"a": weights["a"].detach()}, "optimizer": tensors}
    groups |= {"ema": {"a": weights["a"].detach()}} if ema else {}
    written = save_checkpoint(tmp_path, Checkpoint(1, groups, {"optimizer": packed}))
    size = sum(path.stat().st_size for path in written.iterdir())
    assert size == pytest.approx(state_bytes(200_000, name, ema=ema), rel=0.05)


def test_as_many_states_are_counted_as_are_kept_and_one_being_written():
    from jobs.preflight_disk import NUM_STATES

    assert NUM_STATES == NUM_KEPT + 1
