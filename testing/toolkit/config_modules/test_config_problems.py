"""Mistakes in a job file: each with line, key and remedy, all at once."""

from __future__ import annotations

import pytest

from testing.config_helpers import GENERATE, LORA, changed, line_of, load, problems_of
from toolkit.errors import ConfigError

pytestmark = pytest.mark.usefixtures("folder")


# -- problems --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("lr: 1e-4", "lrr: 1e-4", "train.lrr", "did you mean 'lr'?"),
        ("lr: 1e-4", "lr: fast", "train.lr", "must be a number, not 'fast'"),
        ("lr: 1e-4", "lr: -1", "train.lr", "must be at least 0, not -1"),
        ("steps: 2000", "steps: 0", "train.steps", "must be at least 1, not 0"),
        ("steps: 2000", "steps: 2.5", "train.steps", "must be a whole number, not 2.5"),
        ("steps: 2000", "linear: 4", "train.linear", "'linear' belongs to network"),
        ("linear: 16", "lr: 1e-4", "network.lr", "'lr' belongs to train"),
        ("steps: 2000", "num_threads: 100000", "train.num_threads", "must be at most 1024, not 100000"),
        ("caption_ext: txt", "num_repeats: 1000000", "datasets[0].num_repeats",
         "must be at most 10000, not 1000000"),
        ("linear: 16", "rank: 0", "network.linear", "must be at least 1, not 0"),
        ("steps: 2000", "do_fft_loss: true", "train.do_fft_loss", "true is not supported yet (leave it out"),
        ("steps: 2000", "max_loss: 5", "train.max_loss", "5 is not supported yet (leave it out)"),
        ("is_flux: false", "is_lumina2: true", "model.is_lumina2", "true is not supported yet"),
        ("type: lora", "type: lorm", "network.type", "'lorm' is not supported yet (supported: lora, locon"),
        ("optimizer: adamw8bit", "optimizer: adamv", "train.optimizer", "did you mean 'adamw'?"),
        ("train_unet: true", "train_unet: perhaps", "train.train_unet", "true or false, not 'perhaps'"),
        ("train_unet: true", "train_unet: false", "train.train_unet", "nothing would be trained"),
        ("trigger_word: zwx", "trigger_word: yes", "trigger_word", "must be text"),
        ("trigger_word: zwx", "trigger_word: [name]", "trigger_word", "put it in quotes"),
        ("trigger_word: zwx", "lr: 1", "lr", "'lr' belongs to train"),
        ("folder_path: pictures", "folder_path: picture", "datasets[0].folder_path", "did you mean"),
        ("folder_path: pictures", "folder_path: job.yml", "datasets[0].folder_path", "is a file"),
        ("folder_path: pictures", "dataset_path: none", "datasets[0].dataset_path", "does not exist"),
        ("[512, 768]", "[512, x]", "datasets[0].resolution[1]", "must be a number, not 'x'"),
        ("walk_seed: true", "walk_seeds: true", "sample.walk_seeds", "did you mean 'walk_seed'?"),
        ("in snow", "--w wide", "sample.prompts[0]", "--w needs a whole number"),
        ("sampler: ddim", "sampler: flowmatch", "sample.sampler", "cannot sample a ddpm model"),
        ("name_or_path: some/model", "vae_path: x", "model.name_or_path", "is missing"),
        ("training_folder: output", "log_every: 5", "training_folder", "is missing"),
        ("lr: 1e-4", "lr_scheduler_params: {gamma: 1}", "train.lr_scheduler_params.gamma", "no parameter"),
        ("ema_decay: 0.99", "decay: 0.99", "train.ema_config.decay", "did you mean 'ema_decay'?"),
        ("dtype: bf16", "dtype: bf17", "train.dtype", "unknown dtype 'bf17'; did you mean 'bf16'?"),
        ("type: sd_trainer", "type: sd_trainr", "type", "did you mean 'sd_trainer'?"),
        ("type: sd_trainer", "type: concept_replacer", "type", "is not supported yet"),
        ("type: sd_trainer", "type: vae", "type", "set job: train"),
        ("job: extension", "job: extract", "job", "job 'extract' is not supported yet"),
        ("job: extension", "job: trian", "job", "did you mean 'train'?"),
        ("job: extension", "jobb: train", "jobb", "did you mean 'job'?"),
        ("name: my_lora", "nam: my_lora", "config.nam", "did you mean 'name'?"),
        ("name: my_lora", "name: x\n  train: {}", "config.train", "'train' belongs to an entry of process"),
        ("linear: 16\n", "linear: 16\n        linear: 8\n", "network.linear", "first on line 11"),
        ("ema_config:\n", "ema_config: x # \n", None, "not valid YAML"),
        ("version: '1.0'", "version: ${NONE}", "meta.version", "NONE is not set"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_line_key_and_remedy(old, new, key, words):
    text = changed(old, new)
    problems = problems_of(text)
    told = [problem for problem in problems if words in str(problem)]
    assert told, [str(problem) for problem in problems]
    if key is None:
        return
    problem = told[0]
    assert problem.key == key
    assert problem.file == "job.yml"
    if "is missing" not in words:
        assert problem.line == line_of(text, new.strip().splitlines()[-1].strip())
    assert str(problem).startswith(f"job.yml:{problem.line}: ")


def test_all_problems_are_told_at_once_in_the_order_of_the_file():
    text = LORA
    for old, new in [
        ("linear: 16", "linea: 16"),
        ("steps: 2000", "steps: many"),
        ("folder_path: pictures", "folder_path: nowhere"),
        ("lr: 1e-4", "do_fft_loss: true"),
        ("seed: 42", "seed: ${SEED}"),
        ("meta:", "mete:"),
    ]:
        text = changed(old, new, text)
    problems = problems_of(text)
    keys = [problem.key for problem in problems]
    assert keys[:4] == ["network.linea", "datasets[0].folder_path", "train.steps", "train.do_fft_loss"]
    assert keys[4:] == ["sample.seed", "mete"]
    lines = [problem.line for problem in problems]
    assert lines == sorted(lines)
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert len(str(caught.value).splitlines()) == len(problems)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("job: train\n", "config"),
        ("config: {name: x, process: [{type: vae}]}\n", "job"),
        ("job: train\nconfig: {process: [{type: vae}]}\n", "config.name"),
        ("job: train\nconfig: {name: x}\n", "config.process"),
        ("job: train\nconfig: {name: x, process: []}\n", "config.process"),
        ("job: train\nconfig: {name: x, process: {type: vae}}\n", "config.process"),
        ("job: train\nconfig: {name: x, process: [vae]}\n", "process[0]"),
        ("job: train\nconfig: {name: x, process: [{}]}\n", "type"),
        ("job: train\nconfig: [1]\n", "config"),
        ("job: train\nconfig: {}\n", "config.name"),
        ("job: train\nconfig: {}\n", "config.process"),
        ("job: train\nconfig:\n", "config"),
    ],
)
def test_the_skeleton_of_a_job(text, key):
    assert key in [problem.key for problem in problems_of(text)]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train_text_encoder: false": "train_text_encoder: true\n        cache_text_embeddings: true"},
         "train.cache_text_embeddings"),
        ({"noise_scheduler: ddpm": "noise_scheduler: flowmatch\n        min_snr_gamma: 5",
          "ddim": "flowmatch"},
         "train.min_snr_gamma"),
        ({"noise_scheduler: ddpm": "noise_scheduler: flowmatch", "sampler: ddim": "sampler: heun"},
         "sample.sampler"),
        ({"is_flux: false": "prediction_type: flow"}, "model.prediction_type"),
        ({"caption_ext: txt": "cache_text_embeddings: true",
          "      train:\n": "        - folder_path: pictures\n      train:\n"},
         "datasets[0].cache_text_embeddings"),
        ({"dtype: float16": "save_format: diffusers"}, "save.save_format"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(changes, key):
    text = LORA
    for old, new in changes.items():
        text = changed(old, new, text)
    (problem,) = problems_of(text)
    assert (problem.code, problem.key) == ("config.conflict", key)


def test_a_missing_lora_file_is_told():
    text = changed("generate: {", "generate: {lora_path: output/none.safetensors, ", GENERATE)
    (problem,) = problems_of(text)
    assert (problem.code, problem.key, problem.line) == ("config.missing_file", "generate.lora_path", 8)
    assert load(text.replace("output/none.safetensors", "owner/lora"))


def test_notes_say_what_changes_meaning():
    notes = load(changed("gradient_accumulation_steps: 1", "gradient_accumulation_steps: 4")).notes
    assert [note.partition(":")[0] for note in notes] == ["train.gradient_accumulation_steps"]
    notes = load(changed("noise_scheduler: ddpm", "timestep_type: sigmoid")).notes
    assert [note.partition(":")[0] for note in notes] == ["train.timestep_type"]


def test_a_value_out_of_range_is_told_once():
    text = changed("gradient_accumulation_steps: 1", "gradient_accumulation: 0")
    (problem,) = problems_of(text)
    assert problem.message == "must be at least 1, or -1 for an epoch, not 0"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: my_lora", 'name: "two\\nlines"'),
        ("job: extension", 'job: "two\\nlines"'),
        ("type: sd_trainer", 'type: "two\\nlines"'),
        ("optimizer: adamw8bit", 'optimizer: "two\\nlines"'),
        ("folder_path: pictures", 'folder_path: "two\\nlines"'),
        ('- "[trigger] in snow"', '- "a --two\\nlines 3"'),
        ("lr: 1e-4", '"two\\nlines": 1'),
    ],
)
def test_a_value_of_two_lines_is_told_in_one(old, new):
    for problem in problems_of(changed(old, new)):
        assert "\n" not in str(problem)


def test_a_value_that_two_sections_share_is_told_once():
    (problem,) = problems_of(changed("dtype: bf16", "dtype: nope"))
    assert problem.key == "train.dtype"
