"""What follows from the architecture: noise and sampler that it implies, keys that others do not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from toolkit.config_modules.checks import check_process, process_notes
from toolkit.config_modules.model import ModelConfig, architecture_of
from toolkit.config_modules.process import GenerateProcess, TrainProcess, VaeProcess

FLUX = {"name_or_path": "some/model", "arch": "flux"}


def train(model: dict[str, Any], **sections: Any) -> TrainProcess:
    base = {"type": "sd_trainer", "training_folder": "output", "datasets": [{"folder_path": "pictures"}]}
    return TrainProcess.model_validate(base | {"model": model, "network": {"type": "lora"}} | sections)


def generate(model: dict[str, Any], **settings: Any) -> GenerateProcess:
    section = {"prompts": ["a fox"]} | settings
    return GenerateProcess.model_validate(
        {"type": "to_folder", "output_folder": "output", "model": model, "generate": section}
    )


def told(process: Any) -> list[str]:
    return [f"{'.'.join(map(str, where))}: {message}" for where, _, message, _ in check_process(process)]


@pytest.fixture
def flux_folder(tmp_path: Path) -> Path:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    return tmp_path


def test_the_architecture_is_what_the_file_or_the_flag_or_the_folder_says(flux_folder):
    folder = {"name_or_path": str(flux_folder)}
    named = [{}, {"arch": "flux"}, {"is_flux": True}, {"arch": "flex1"}, {"arch": "flux:dev"}]
    assert [ModelConfig.model_validate(folder | each).arch for each in named] == [
        "flux", "flux", "flux", "flex1", "flux"
    ]  # fmt: skip
    assert ModelConfig.model_validate({"name_or_path": "some/model"}).arch == "sd15"
    (flux_folder / "model_index.json").write_text(json.dumps({"_class_name": "CogView4Pipeline"}))
    assert ModelConfig.model_validate(folder).arch == "sd15"  # the loader says what it is


def test_a_flag_against_an_architecture_is_refused():
    with pytest.raises(ValidationError, match="is_flux and arch differ"):
        ModelConfig.model_validate({"name_or_path": "x/y", "is_flux": True, "arch": "sd1"})


@pytest.mark.parametrize(
    "raw", [None, "x", {"arch": "none"}, {"arch": "sd3"}, {"arch": "sd1", "is_flux": True}]
)
def test_a_section_that_says_nothing_valid_means_no_architecture(raw):
    assert architecture_of(raw) is None


def test_a_flow_model_is_trained_and_drawn_with_flow_noise_unless_said_otherwise():
    process = train(FLUX)
    assert process.train.noise_scheduler == "flowmatch"
    assert process.train.timestep_type == "sigmoid"
    assert process.sample.sampler == "flowmatch"
    assert generate(FLUX).generate.sampler == "flowmatch"
    assert train(FLUX, sample={"sampler": "euler"}).sample.sampler == "euler"
    assert train({"name_or_path": "some/model"}).train.noise_scheduler == "ddpm"
    assert generate({"name_or_path": "some/model"}).generate.sampler == "ddpm"
    assert told(process) == []


def test_noise_and_samplers_of_other_models_are_refused():
    assert told(train(FLUX, train={"noise_scheduler": "ddpm"})) == [
        "train.noise_scheduler: ddpm does not go with this model, which predicts flow"
    ]
    assert told(train(FLUX, sample={"sampler": "pndm"})) == [
        "sample.sampler: 'pndm' cannot sample a flow-matching model"
    ]
    assert told(generate(FLUX, sampler="pndm")) == [
        "generate.sampler: 'pndm' cannot sample a flow-matching model"
    ]
    wrong = FLUX | {"prediction_type": "epsilon"}
    assert told(train(wrong)) == told(generate(wrong)) == ["model.prediction_type: FLUX.1 predicts flow"]


OWN = {"extras_name_or_path": "some/folder", "use_flux_cfg": True}


@pytest.mark.parametrize("key", OWN)
def test_what_only_flux_reads_is_refused_elsewhere(key):
    sd15 = {"name_or_path": "tiny-sd", key: OWN[key]}
    assert told(train(FLUX | {key: OWN[key]})) == told(generate(FLUX | {key: OWN[key]})) == []
    for process in (train(sd15), generate(sd15)):
        assert told(process)[0].startswith(f"model.{key}:")
        assert "means nothing to Stable Diffusion 1.x" in told(process)[0]
    raw = {"type": "vae", "training_folder": "x", "datasets": [{"folder_path": "x"}]}
    vae = VaeProcess.model_validate(raw | {"model": FLUX | {key: OWN[key]}})
    assert any(line.startswith(f"model.{key}:") for line in told(vae))


def test_the_guidance_embedding_is_said_once():
    bypass = {"train": {"bypass_guidance_embedding": True}}
    assert told(train(FLUX, **bypass)) == told(train(FLUX | {"use_flux_cfg": True}, **bypass)) == []
    assert "means nothing to Stable Diffusion 1.x" in told(train({"name_or_path": "tiny-sd"}, **bypass))[0]
    contrary = train(FLUX | {"use_flux_cfg": True}, train={"bypass_guidance_embedding": False})
    assert "contradicts model.use_flux_cfg" in told(contrary)[0]


def test_settings_of_pictures_that_the_pipeline_ignores_are_told():
    sample = {"neg": "dark", "samples": [{"prompt": "a fox", "guidance_rescale": 0.5}]}
    notes = process_notes(train(FLUX, sample=sample))
    assert [note.partition(":")[0] for note in notes] == ["sample.neg", "sample.samples[0].guidance_rescale"]
    assert process_notes(train(FLUX | {"use_flux_cfg": True}, sample={"neg": "dark"})) == []
    assert process_notes(train({"name_or_path": "tiny-sd"}, sample={"neg": "dark"})) == []
    assert process_notes(generate(FLUX, neg="dark"))[0].startswith("generate.neg: ")
