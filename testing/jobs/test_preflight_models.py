"""Models that a check says cannot be loaded, without loading them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jobs.preflight import check_files, require_ready
from testing.job_helpers import training_config
from testing.tiny_models import build_tiny_flux, build_tiny_sd15, export_ldm_checkpoint, tiny_pipeline
from toolkit.config_modules.loading import load_job
from toolkit.errors import Problem, UserError
from toolkit.models.file_keys import CLIP_REPO
from toolkit.preflight import hub_access
from toolkit.preflight.hub_access import HubAnswer
from toolkit.preflight.report import JobReport


def check(tmp_path: Path, model: Path, **section: str) -> JobReport:
    (report,) = check_files(
        [str(training_config(tmp_path, model, **({"model": section} if section else {})))], None
    )
    return report


def problems(tmp_path: Path, model: Path, **section: str) -> list[Problem]:
    return list(check(tmp_path, model, **section).all_problems)


def file_of(path: Path, *keys: str) -> Path:
    save_file({key: torch.zeros(1) for key in keys}, path)
    return path


@pytest.mark.parametrize("left", [-1, -1000])
def test_weights_of_a_folder_that_end_too_early(tmp_path, left):
    model = build_tiny_sd15(tmp_path / "sd15")
    assert problems(tmp_path, model) == []
    (file,) = (model / "unet").glob("*.safetensors")
    os.truncate(file, file.stat().st_size + left)
    (problem,) = problems(tmp_path, model)
    assert (problem.code, problem.key) == ("model.load", "model.name_or_path")
    assert file.name in problem.message
    assert "ends too early" in problem.message
    assert problem.remedy == "download it again"


def test_weights_that_are_not_read_may_end_where_they_like(tmp_path):
    model = build_tiny_sd15(tmp_path / "sd15")
    (whole,) = (model / "unet").glob("*.safetensors")
    (model / "safety_checker").mkdir()
    not_read = [
        model / "safety_checker" / "model.safetensors",
        model / "unet" / "diffusion_pytorch_model.non_ema.safetensors",
        model / "unet" / "diffusion_pytorch_model.fp16.safetensors",
        model / "unet" / "old.safetensors",
    ]
    for path in not_read:
        path.write_bytes(whole.read_bytes()[:-100])
    assert problems(tmp_path, model) == []
    shard = whole.with_name("diffusion_pytorch_model-00002-of-00002.safetensors")
    shard.write_bytes(whole.read_bytes()[:-100])
    names = {"a": shard.name, "b": whole.name}
    shard.with_name(f"{whole.name}.index.json").write_text(json.dumps({"weight_map": names}))
    (problem,) = problems(tmp_path, model)
    assert shard.name in problem.message


def test_of_half_precision_alone_its_files_are_looked_at(tmp_path):
    model = build_tiny_sd15(tmp_path / "sd15")
    (whole,) = (model / "unet").glob("*.safetensors")
    half = whole.rename(whole.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert problems(tmp_path, model) == []
    os.truncate(half, half.stat().st_size - 1)
    (problem,) = problems(tmp_path, model)
    assert half.name in problem.message


def test_a_file_that_ends_too_early(tmp_path):
    file = export_ldm_checkpoint(tiny_pipeline(), tmp_path / "model.safetensors")
    assert problems(tmp_path, file) == []
    os.truncate(file, file.stat().st_size - 1)
    (problem,) = problems(tmp_path, file)
    assert "model.safetensors" in problem.message
    assert "ends too early" in problem.message
    os.truncate(file, 100)
    (problem,) = problems(tmp_path, file)
    assert "is not a readable .safetensors file" in problem.message


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("arch", "keys", "said", "remedy"),
    [
        (
            "sd15",
            ["conditioner.embedders.1.model.x"],
            "holds Stable Diffusion XL, not 1.x",
            "set model.arch: sdxl",
        ),
        ("sd15", ["lora_unet_x.lora_down.weight"], "holds a LoRA", "name the base model"),
        ("sd15", ["x"], "holds no Stable Diffusion 1.x model", None),
        (
            "sdxl",
            ["cond_stage_model.transformer.x"],
            "holds Stable Diffusion 1.x, not XL",
            "set model.arch: sd15",
        ),
        ("vega", ["conditioner.embedders.0.model.x"], "holds the refiner", "name the base model"),
        ("flux", [f"{UNET}input_blocks.0.0.weight"], "Stable Diffusion with a UNet", "sd15 or sdxl"),
        (
            "flux",
            ["double_blocks.0.x", "img_in.scale_weight"],
            "is quantized (img_in.",
            "in bf16",
        ),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_keys(tmp_path, arch, keys, said, remedy):
    path = file_of(tmp_path / "model.safetensors", *keys)
    elsewhere = {"extras_name_or_path": str(build_tiny_flux(tmp_path / "flux"))} if arch == "flux" else {}
    (problem,) = problems(tmp_path, path, arch=arch, **elsewhere)
    assert (problem.code, problem.key) == ("model.load", "model.name_or_path")
    assert said in problem.message and problem.line is not None
    assert problem.remedy is None if remedy is None else remedy in str(problem.remedy)


def test_a_transformer_alone_needs_the_rest(tmp_path):
    path = file_of(tmp_path / "flux.safetensors", "double_blocks.0.x")
    (problem,) = problems(tmp_path, path, arch="flux")
    assert "holds the transformer alone" in problem.message
    assert "model.extras_name_or_path, or an autoencoder with model.vae_path and" in str(problem.remedy)
    flux = build_tiny_flux(tmp_path / "flux")
    assert problems(tmp_path, path, arch="flux", extras_name_or_path=str(flux)) == []
    assert problems(tmp_path, path, arch="flux", vae_path=str(flux), te_name_or_path=str(flux)) == []
    (problem,) = problems(tmp_path, path, arch="flux", extras_name_or_path="nowhere")
    assert (problem.key, "no such file or folder" in problem.message) == ("model.extras_name_or_path", True)
    (problem,) = problems(tmp_path, path, arch="flux", extras_name_or_path=str(path))
    assert (problem.key, "is a file; a diffusers" in problem.message) == ("model.extras_name_or_path", True)
    pickle = path.rename(tmp_path / "flux.ckpt")
    pickle.write_bytes(b"PK\x03\x04")
    (problem,) = problems(tmp_path, pickle, arch="flux", extras_name_or_path=str(flux))
    assert "is no .safetensors file" in problem.message


def test_a_folder_of_the_transformer_alone_takes_the_rest_from_extras(tmp_path):
    flux = build_tiny_flux(tmp_path / "flux")
    alone = flux / "transformer"
    (problem,) = problems(tmp_path, alone, arch="flux")
    assert "is not a diffusers folder" in problem.message
    assert problems(tmp_path, alone, arch="flux", extras_name_or_path=str(flux)) == []
    (alone / "config.json").unlink()
    (problem,) = problems(tmp_path, alone, arch="flux", extras_name_or_path=str(flux))
    assert "holds no transformer" in problem.message


def test_of_the_hub_only_what_a_part_needs_is_asked_for(tmp_path, monkeypatch):
    asked = {}

    def ask(name: str, *, key: str, patterns: list[str] | None = None) -> HubAnswer:
        asked[key] = patterns
        return HubAnswer(name, "hub", 10**6)

    monkeypatch.setattr(hub_access, "ask_hub", ask)
    flux = build_tiny_flux(tmp_path / "flux")
    assert (
        problems(tmp_path, Path("org/flux"), arch="flux", extras_name_or_path="org/rest", vae_path=str(flux))
        == []
    )
    assert asked["model.name_or_path"] == ["config.json", "diffusion_pytorch_model*", "transformer/*"]
    assert asked["model.extras_name_or_path"] == [
        "model_index.json", "scheduler/*", "text_encoder*/*", "tokenizer*/*",
    ]  # fmt: skip


def test_the_tokenizer_that_a_file_lacks_is_looked_for(tmp_path):
    model = build_tiny_sd15(tmp_path / "sd15")
    (tmp_path / "files").mkdir()
    file = export_ldm_checkpoint(tiny_pipeline(), tmp_path / "files" / "model.safetensors")
    report = check(tmp_path, file)
    assert report.all_problems == []  # the tests are offline
    assert any(CLIP_REPO in note and "a run will need it" in note for note in report.all_notes)
    with pytest.raises(UserError, match=CLIP_REPO):
        require_ready([load_job(training_config(tmp_path, file))])
    for section in ({"te_name_or_path": str(model)}, {}):
        if not section:
            shutil.copytree(model / "tokenizer", file.parent / "tokenizer")
        report = check(tmp_path, file, **section)
        assert not any(CLIP_REPO in note for note in report.all_notes)


@pytest.mark.parametrize(
    ("name", "start", "said"),
    [
        ("model.ckpt", b"\x13\x37 random", "is no model file: it does not begin as one that torch saved"),
        ("model.bin", b"", "is no model file: it does not begin as one that torch saved"),
        ("passwd", b"root:x:0:0", "is no model file: its name ends in none of .safetensors, .ckpt"),
        ("model.gguf", b"GGUF", "is no model file: its name ends in none of .safetensors, .ckpt"),
    ],
)
@pytest.mark.parametrize("key", ["name_or_path", "vae_path"])
def test_a_file_that_is_no_model(tmp_path, name, start, said, key):
    file = tmp_path / name
    file.write_bytes(start)
    model = build_tiny_sd15(tmp_path / "sd15") if key == "vae_path" else file
    (problem,) = problems(tmp_path, model, **{key: str(file)})
    assert (problem.code, problem.key) == ("model.load", f"model.{key}")
    assert f"'{file}': {said}" in problem.message


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02"])
@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_a_file_that_torch_may_have_saved_passes(tmp_path, name, start):
    file = tmp_path / name
    file.write_bytes(start + b"more")
    assert problems(tmp_path, file) == []


def test_a_folder_without_an_autoencoder_trains_none(tmp_path):
    (tmp_path / "empty").mkdir()
    changes = {"type": "vae", "network": None, "sample": None, "train": None}
    changes["datasets"] = [{"folder_path": str(tmp_path / "data"), "resolution": 32}]
    path = training_config(tmp_path, tmp_path / "empty", "run", **changes)
    path.write_text(path.read_text().replace("job: extension", "job: train"))
    (report,) = check_files([str(path)], None)
    (problem,) = report.all_problems
    assert (problem.code, problem.key) == ("model.no_vae", "model.name_or_path")
