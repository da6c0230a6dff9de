"""What a process's parts must agree on: objective, run folders, names; and what a process leaves unread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from testing.config_helpers import GENERATE, LORA, load, problems_of
from toolkit.config_modules.checks import check_objective
from toolkit.config_modules.process import TrainProcess
from toolkit.errors import ConfigError, Problem

pytestmark = pytest.mark.usefixtures("folder")

Entry = dict[str, Any]


def text_of(*entries: Entry, name: str = "run") -> str:
    """A training job of these processes."""
    job = {"job": "train", "config": {"name": name, "process": list(entries)}}
    return yaml.safe_dump(job, sort_keys=False)


def train_entry(**changes: Any) -> Entry:
    """A diffusion trainer on a model of the hub."""
    base = {"type": "sd_trainer", "training_folder": "output", "model": {"name_or_path": "some/model"},
            "datasets": [{"folder_path": "pictures"}]}  # fmt: skip
    return base | changes


def vae_entry(**changes: Any) -> Entry:
    """An autoencoder's training."""
    return train_entry(**({"type": "vae", "model": {"name_or_path": "m"}} | changes))


def told(*entries: Entry) -> list[Problem]:
    return problems_of(text_of(*entries))


# -- objective -------------------------------------------------------------------------------------------


@pytest.fixture
def local(folder: Path):
    """Makes a model folder whose scheduler says what the model predicts."""

    def make(prediction_type: str | None, name: str = "base") -> str:
        scheduler = folder / name / "scheduler"
        scheduler.mkdir(parents=True)
        config = {} if prediction_type is None else {"prediction_type": prediction_type}
        (scheduler / "scheduler_config.json").write_text(json.dumps(config), encoding="utf-8")
        return str(folder / name)

    return make


@pytest.mark.parametrize(
    ("says", "noise", "words"),
    [
        ("epsilon", "flowmatch", "flowmatch does not go with this model, which predicts epsilon"),
        (None, "flowmatch", "which predicts epsilon"),
        ("v_prediction", "flowmatch", "which predicts v_prediction"),
        ("flow_prediction", "ddpm", "ddpm does not go with this model, which predicts flow"),
        ("flow_prediction", None, "ddpm does not go with this model, which predicts flow"),
    ],
)
def test_the_noise_scheduler_must_be_the_local_models(local, says, noise, words):
    train = {} if noise is None else {"noise_scheduler": noise}
    (problem,) = told(train_entry(model={"name_or_path": local(says)}, train=train))
    assert (problem.code, problem.key) == ("config.conflict", "train.noise_scheduler")
    assert words in problem.message
    expected = "model.prediction_type: flow" if noise == "flowmatch" else "noise_scheduler: flowmatch"
    assert expected in problem.remedy


@pytest.mark.parametrize(
    ("says", "noise"),
    [("epsilon", "ddpm"), ("v_prediction", "euler"), ("flow_prediction", "flowmatch"), ("flow", "flowmatch")],
)
def test_a_fitting_noise_scheduler_passes(local, says, noise):
    assert load(text_of(train_entry(model={"name_or_path": local(says)}, train={"noise_scheduler": noise})))


def test_a_local_model_may_be_trained_anew_as_a_flow_model(local):
    model = {"name_or_path": local("epsilon"), "prediction_type": "flow"}
    loaded = load(text_of(train_entry(model=model, train={"noise_scheduler": "flowmatch"})))
    process = loaded.config.process[0]
    assert process.sample.sampler == "flowmatch", "also where the file has no sample section"


def test_embedded_and_missing_schedulers(folder):
    assert load(text_of(train_entry(model={"name_or_path": "tiny-sd"})))
    (problem,) = told(train_entry(model={"name_or_path": "tiny-sd"}, train={"noise_scheduler": "flowmatch"}))
    assert problem.key == "train.noise_scheduler"
    (folder / "bare").mkdir()  # what it predicts is not known before it loads
    assert load(text_of(train_entry(model={"name_or_path": "bare"}, train={"noise_scheduler": "flowmatch"})))


def section(**changes: Any) -> TrainProcess:
    return TrainProcess.model_validate(train_entry(**changes))


FLOW = {"noise_scheduler": "flowmatch"}


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("epsilon", {}),
        ("v_prediction", {"train": {"min_snr_gamma": 5}, "sample": {"sampler": "heun"}}),
        ("flow", {"train": FLOW}),
        ("flow", {"train": FLOW, "sample": {"samples": [{"prompt": "b", "sampler": "euler"}]}}),
    ],
)
def test_a_loaded_model_that_fits_passes(objective, changes):
    check_objective(objective, section(**changes))


@pytest.mark.parametrize(
    ("objective", "changes", "keys"),
    [
        ("epsilon", {"train": FLOW}, ["train.noise_scheduler"]),
        ("v_prediction", {"train": FLOW, "sample": {"prompts": ["a fox"]}}, ["train.noise_scheduler"]),
        ("flow", {}, ["train.noise_scheduler"]),
        ("flow", {"sample": {"prompts": ["a fox"]}}, ["train.noise_scheduler"]),
        (
            "flow",
            {"train": {"min_snr_gamma": 5}, "sample": {"sampler": "heun"},
             "first_sample": {"sampler": "euler", "samples": [{"prompt": "a", "sampler": "pndm"}]}},
            ["train.noise_scheduler", "train.min_snr_gamma", "sample.sampler",
             "first_sample.samples[0].sampler"],
        ),
    ],
)  # fmt: skip
def test_all_that_does_not_go_with_a_loaded_model_is_told_at_once(objective, changes, keys):
    with pytest.raises(ConfigError) as caught:
        check_objective(objective, section(**changes))
    assert [problem.key for problem in caught.value.problems] == keys
    assert {problem.code for problem in caught.value.problems} == {"config.conflict"}


# -- one folder, one run ---------------------------------------------------------------------------------


def test_two_processes_of_one_folder_are_refused():
    (problem,) = told(train_entry(), vae_entry(training_folder="./output/"))
    assert (problem.code, problem.key) == ("config.same_run", "process[1].name")
    assert "process[0]" in problem.message and "output/run" in problem.message
    first = next(i for i, line in enumerate(text_of(train_entry()).splitlines(), 1) if "- type" in line)
    assert problem.line is not None and problem.line > first
    assert load(text_of(train_entry(), vae_entry(name="vae")))
    assert load(text_of(train_entry(), vae_entry(training_folder="other")))
    (problem,) = told(train_entry(name="x"), vae_entry(), train_entry(name="x"))
    assert problem.key == "process[2].name"


@pytest.mark.parametrize("name", ["a/b", "..", " x", "x.", "", "é" * 140, "a\x7fb"])
def test_the_name_of_a_process_must_name_a_folder(name):
    (problem,) = told(train_entry(name=name))
    assert (problem.code, problem.key) == ("config.bad_value", "name")
    assert "cannot name a folder" in problem.message
    two = told(train_entry(), vae_entry(name=name))
    assert [problem.key for problem in two] == ["process[1].name"]


def test_the_tag_in_a_process_name_is_checked_as_it_will_be():
    text = text_of(train_entry(name="x_[name]"))
    assert load(text, name="fox").config.process[0].name == "x_fox"
    (problem,) = problems_of(text, name="a/b")
    assert (problem.key, "'x_a/b'" in problem.message) == ("name", True)


# -- settings that a process does not read ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model": {"name_or_path": "m", "vae_path": "x"}}, "model.vae_path"),
        ({"model": {"name_or_path": "m", "te_name_or_path": "x"}}, "model.te_name_or_path"),
        ({"model": {"name_or_path": "m", "dtype": "bf16"}}, "model.dtype"),
        ({"model": {"name_or_path": "m", "prediction_type": "epsilon"}}, "model.prediction_type"),
        ({"model": {"name_or_path": "m", "is_v_pred": True}}, "model.is_v_pred"),
        ({"datasets": [{"folder_path": "pictures", "cache_latents": True}]}, "datasets[0].cache_latents"),
        ({"datasets": [{"folder_path": "pictures", "cache_latents_to_disk": True}]},
         "datasets[0].cache_latents_to_disk"),
        ({"save": {"save_format": "safetensors"}}, "save.save_format"),
        ({"trigger_word": "zwx"}, "trigger_word"),
        ({"train": {"noise_scheduler": "ddpm"}}, "train.noise_scheduler"),
    ],
)  # fmt: skip
def test_what_means_nothing_to_an_autoencoder_is_refused(changes, key):
    (problem,) = told(vae_entry(**changes))
    assert problem.key == key


def test_defaults_and_captions_pass_in_an_autoencoders_training():
    entry = vae_entry(
        model={"name_or_path": "m", "dtype": None, "is_v_pred": False},
        save={"save_format": "diffusers"},
        train={"dtype": "bf16"},
        datasets=[
            {"folder_path": "pictures", "cache_latents": False, "caption_ext": "txt"},
            {"folder_path": "pictures", "caption_ext": "caption", "caption_dropout_rate": 0.1,
             "trigger_word": "zwx", "default_caption": "x", "cache_text_embeddings": True, "is_reg": True},
        ],
    )  # fmt: skip
    loaded = load(text_of(entry))
    keys = ("caption_ext", "caption_dropout_rate", "trigger_word", "default_caption", "cache_text_embeddings",
            "is_reg")  # fmt: skip
    assert {note.partition(":")[0] for note in loaded.notes} == {f"datasets[1].{key}" for key in keys}
    process = loaded.config.process[0]
    assert process.model.dtype is None
    assert process.train.gradient_checkpointing is False
    checkpointed = load(text_of(vae_entry(train={"gradient_checkpointing": True}))).config.process[0]
    assert checkpointed.train.gradient_checkpointing is True


def test_first_previews_have_no_interval():
    assert not load(text_of(train_entry(first_sample={"format": "png"}))).notes
    (note,) = load(text_of(train_entry(first_sample={"sample_every": 50}))).notes
    assert note.startswith("first_sample.sample_every: 50 has no effect")
    first, second = train_entry(first_sample={"sample_every": 50}), vae_entry(training_folder="other")
    (note,) = load(text_of(first, second)).notes
    assert note.startswith("process[0].first_sample.sample_every: ")


@pytest.mark.parametrize("key", ["log_per_dataset", "flag_bad_captions", "max_examples_print"])
def test_losses_of_single_pictures_are_not_promised(key):
    (note,) = load(text_of(train_entry(train={key: 5 if key == "max_examples_print" else True}))).notes
    assert note.startswith(f"train.{key}: ")
    assert "per-picture losses" not in note


# -- values of schedules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "key"),
    [
        ({"lr_scheduler_params": {"num_warmup_steps": "x"}}, "train.lr_scheduler_params.num_warmup_steps"),
        ({"lr_scheduler": "step", "lr_scheduler_params": {"step_size": 0}},
         "train.lr_scheduler_params.step_size"),
        ({"lr_scheduler": "cosine_with_restarts", "lr_scheduler_params": {"num_cycles": "x"}},
         "train.lr_scheduler_params.num_cycles"),
        ({"lr_scheduler": "step", "lr_scheduler_params": {"step_size": 1, "gamma": 10.0}, "steps": 1000},
         "train.lr_scheduler_params"),
    ],
)  # fmt: skip
def test_values_of_a_schedule_are_checked_with_the_file(train, key):
    (problem,) = told(train_entry(train=train))
    assert (problem.code, problem.key) == ("config.bad_value", key)
    assert problem.line is not None


def test_the_defaults_still_load():
    assert load(LORA).notes == load(GENERATE).notes == []
