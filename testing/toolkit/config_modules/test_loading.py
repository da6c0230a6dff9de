"""From a file to a job: what users have, formats, variables, names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from testing.config_helpers import GENERATE, LORA, changed, line_of, load, problems_of, write
from toolkit.config_modules.loading import load_env_files, load_job
from toolkit.config_modules.process import GenerateProcess, TrainProcess, VaeProcess
from toolkit.errors import ConfigError

pytestmark = pytest.mark.usefixtures("folder")


ROOT = Path(__file__).parents[3]


# -- jobs that users have --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd_trainer", "diffusion_trainer", "ui_trainer"])
@pytest.mark.parametrize("job", ["extension", "train"])
def test_a_users_lora_job_runs_as_it_is(job, kind):
    loaded = load(LORA.replace("sd_trainer", kind).replace("extension", job))
    (process,) = loaded.config.process
    assert isinstance(process, TrainProcess)
    assert (loaded.config.job, loaded.config.name, process.type) == (job, "my_lora", kind)
    assert (process.train.lr, process.train.steps, process.network.rank) == (1e-4, 2000, 16)
    assert process.datasets[0].resolution == [512, 768]
    assert process.datasets[0].trigger_word == "zwx"
    assert process.train.ema_config.use_ema is True
    assert loaded.config.meta == {"name": "my_lora", "version": "1.0"}
    assert loaded.notes == []


def test_a_job_as_the_web_ui_writes_it():
    entry = {
        "type": "diffusion_trainer",
        "training_folder": "output",
        "sqlite_db_path": "/somewhere/aitk_db.db",
        "device": "cuda",
        "trigger_word": None,
        "performance_log_every": 10,
        "network": {
            "type": "lora",
            "linear": 32,
            "linear_alpha": 32,
            "lokr_full_rank": True,
            "lokr_factor": -1,
            "network_kwargs": {"ignore_if_contains": []},
        },
        "save": {"dtype": "bf16", "save_every": 250, "max_step_saves_to_keep": 4, "save_format": "diffusers",
                 "push_to_hub": False},
        "logging": {"log_every": 1, "use_ui_logger": True},
        "datasets": [
            {"folder_path": "pictures", "mask_path": None, "mask_min_value": 0.1, "default_caption": "",
             "caption_ext": "txt", "caption_dropout_rate": 0.05, "cache_latents_to_disk": False,
             "is_reg": False,
             "network_weight": 1, "resolution": [512, 768, 1024], "controls": [],
             "shrink_video_to_frames": True,
             "num_frames": 1, "do_i2v": True, "flip_x": False, "flip_y": False, "control_path": None}
        ],
        "train": {
            "batch_size": 1, "bypass_guidance_embedding": False, "steps": 3000, "gradient_accumulation": 1,
            "train_unet": True, "train_text_encoder": False, "gradient_checkpointing": True,
            "noise_scheduler": "flowmatch", "optimizer": "adamw8bit", "timestep_type": "sigmoid",
            "content_or_style": "balanced", "optimizer_params": {"weight_decay": 0.0001},
            "unload_text_encoder": False, "cache_text_embeddings": False, "lr": 0.0001,
            "ema_config": {"use_ema": False, "ema_decay": 0.99}, "skip_first_sample": False,
            "force_first_sample": False, "disable_sampling": False, "dtype": "bf16",
            "diff_output_preservation": False, "diff_output_preservation_multiplier": 1.0,
            "diff_output_preservation_class": "person", "switch_boundary_every": 1, "loss_type": "mse",
        },
        "model": {"name_or_path": "some/model", "quantize": False, "qtype": "qfloat8", "quantize_te": False,
                  "qtype_te": "qfloat8", "arch": "sd15", "low_vram": False, "model_kwargs": {}},
        "sample": {"sampler": "flowmatch", "sample_every": 250, "width": 1024, "height": 1024,
                   "samples": [{"prompt": "a fox"}, {"prompt": "a hare"}], "neg": "", "seed": 42,
                   "walk_seed": True,
                   "guidance_scale": 4, "sample_steps": 25, "num_frames": 1, "fps": 1},
    }  # fmt: skip
    job = {"job": "extension", "config": {"name": "ui_job", "process": [entry]}, "meta": {"name": "[name]"}}
    problems = problems_of(json.dumps(job), file="job.json")
    assert [problem.key for problem in problems] == ["save.save_format"]
    entry["save"]["save_format"] = "safetensors"
    loaded = load(json.dumps(job), file="job.json")
    noted = {note.partition(":")[0] for note in loaded.notes}
    assert noted == {
        "sqlite_db_path",
        "performance_log_every",
        "logging.use_ui_logger",
        "network.lokr_full_rank",
        "train.diff_output_preservation_class",
        "sample.fps",
    }


def test_vae_and_generate_jobs():
    vae = """\
        job: train
        config:
          name: my_vae
          process:
            - type: vae
              training_folder: output
              training_seed: 1
              model: {name_or_path: folder, from_config: true}
              datasets: [{folder_path: pictures, resolution: 32}]
              train: {steps: 10, batch_size: 4, lr: 1e-3, ema_config: {use_ema: true}}
              vae_loss: {mse: 1, kl: 1e-6}
              sample: {sample_every: 5, sources: []}
        """
    process = load(vae).config.process[0]
    assert isinstance(process, VaeProcess)
    assert (process.vae_loss.kl, process.train.lr, process.model.from_config) == (1e-6, 1e-3, True)
    process = load(GENERATE).config.process[0]
    assert isinstance(process, GenerateProcess)
    assert [request.prompt for request in process.generate.requests()] == ["a fox"]


def test_several_processes_are_told_apart():
    text = changed("config:\n  name: pictures", "config:\n  name: pictures", GENERATE)
    second = "\n".join(GENERATE.splitlines()[4:]).replace("generate: {", "generate: {steps: 5, ")
    (problem,) = problems_of(f"{text}{second}\n")
    assert problem.key == "process[1].generate.steps"
    assert problem.line == 8 + 4


# -- formats ---------------------------------------------------------------------------------------------


def test_json_with_comments():
    text = """\
        {
        \t// what to do: "job" is a string
          "job": "generate", /* a block
             comment */
          "config": {
            "name": "http://x", // not a comment inside the quotes
            "process": [
              {"type": "to_folder", "output_folder": "o", "model": {"name_or_path": "tiny-sd"},
               "generate": {"prompts": ["a // fox \\u00e9, ]"], "lr": "1e-4",},},
            ],
          },
        }
        """
    name, key = problems_of(text, file="job.jsonc")
    assert (name.key, name.line) == ("config.name", 6)
    assert (key.key, key.line) == ("generate.lr", 9)
    fixed = text.replace("http://x", "x").replace(', "lr": "1e-4"', "")
    loaded = load(fixed, file="job.jsonc")
    assert loaded.config.process[0].generate.prompts == ["a // fox é, ]"]


def test_json_and_yaml_are_the_same_job():
    from_yaml = load(LORA)
    data = yaml.safe_load(LORA)
    from_json = load(json.dumps(data, indent=1), file="job.json")
    assert from_json.config == from_yaml.config


@pytest.mark.parametrize(
    ("text", "file", "line"),
    [
        ("job: train\nconfig: [1, 2\n", "job.yml", 3),
        ("job: train\n\tconfig: 1\n", "job.yml", 2),
        ('{"job": "train",\n "config": {:}}', "job.json", 2),
        ("job: *nothing\n", "job.yml", 1),
    ],
)
def test_syntax_errors_have_their_line(text, file, line):
    (problem,) = problems_of(text, file=file)
    assert (problem.code, problem.line, problem.file) == ("config.syntax", line, file)


@pytest.mark.parametrize("text", ["", "# nothing\n", "just text\n", "- a\n- b\n", "5\n", "{}\n"])
def test_a_file_that_is_no_job_says_what_it_needs(text):
    (problem,) = problems_of(text)
    assert problem.code == "config.syntax"
    assert "job and config" in problem.message


def test_an_unreadable_file(folder):
    (folder / "job.yml").write_bytes(b"job: \xff\xfe train")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_job("job.yml")


def test_a_byte_order_mark_is_fine(folder):
    (folder / "job.yml").write_text(LORA, encoding="utf-8-sig")
    assert load_job("job.yml").config.name == "my_lora"


def test_anchors_and_merges():
    text = """\
        job: train
        config:
          name: two
          process:
            - type: sd_trainer
              training_folder: output
              model: {name_or_path: some/model}
              datasets:
                - &first {folder_path: pictures, resolution: 64, flip_x: true}
                - <<: *first
                  resolution: 96
        """
    datasets = load(text).config.process[0].datasets
    assert [(d.resolution, d.flip_x) for d in datasets] == [([64], True), ([96], True)]


# -- floats, variables, names ----------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "1.0e-4", "'1e-4'", "0.0001", ".1e-3", "+1e-4", "10e-5"])
def test_every_way_to_write_a_float(written):
    loaded = load(changed("lr: 1e-4", f"lr: {written}"))
    assert loaded.config.process[0].train.lr == pytest.approx(1e-4, rel=1e-12)
    if "'" not in written:
        assert isinstance(loaded.raw["config"]["process"][0]["train"]["lr"], float)


def test_variables_are_values_of_any_type_and_stay_unexpanded_in_the_raw_data():
    text = changed("lr: 1e-4", "lr: ${RATE}").replace("some/model", "${BASE}/model # ${NOT_LOOKED_AT}")
    loaded = load(text, RATE="2e-3", BASE="secret")
    process = loaded.config.process[0]
    assert (process.train.lr, process.model.name_or_path) == (2e-3, "secret/model")
    raw = loaded.raw["config"]["process"][0]
    assert (raw["train"]["lr"], raw["model"]["name_or_path"]) == ("${RATE}", "${BASE}/model")
    assert "secret" not in json.dumps(loaded.raw)


def test_a_quoted_variable_stays_text():
    text = changed("trigger_word: zwx", 'trigger_word: "${WORD}"')
    assert load(text, WORD="1e3").config.process[0].trigger_word == "1e3"


@pytest.mark.parametrize("file", ["job.yml", "job.json"])
def test_unset_variables_are_told_with_their_line(file):
    text = GENERATE.replace("output/pictures", "${A}/${B}")
    if file == "job.json":
        text = json.dumps(yaml.safe_load(text), indent=0)
    problems = problems_of(text, file=file, B="set")
    (problem,) = problems
    assert (problem.code, problem.line) == ("config.unset_variable", line_of(text, "${A}"))
    assert "A is not set" in problem.message


def test_variables_in_json():
    text = GENERATE.replace("output/pictures", "${A}")
    loaded = load(json.dumps(yaml.safe_load(text)), file="job.json", A="there")
    assert loaded.config.process[0].output_folder == "there"
    assert loaded.raw["config"]["process"][0]["output_folder"] == "${A}"


def test_dot_env_is_read_and_set_variables_win(folder, monkeypatch):
    (folder / ".env").write_text("CFG_TEST_A=from_file\nCFG_TEST_B=from_file\n", encoding="utf-8")
    monkeypatch.setenv("CFG_TEST_A", "before")
    monkeypatch.setenv("CFG_TEST_B", "x")
    monkeypatch.delenv("CFG_TEST_B")
    load_env_files()
    assert (os.environ["CFG_TEST_A"], os.environ["CFG_TEST_B"]) == ("before", "from_file")
    text = changed("trigger_word: zwx", "trigger_word: ${CFG_TEST_B}")
    assert load_job(write(text)).config.process[0].trigger_word == "from_file"


def test_the_name_tag():
    text = changed("trigger_word: zwx", "trigger_word: w_[name]")
    loaded = load(text)
    assert loaded.config.process[0].trigger_word == "w_my_lora"
    assert loaded.raw["meta"]["name"] == "my_lora"
    loaded = load(text, name="other")
    assert (loaded.config.name, loaded.config.meta["name"]) == ("my_lora", "other")
    assert loaded.config.process[0].trigger_word == "w_other"
    loaded = load(changed("name: my_lora", 'name: "[name]_v2"'), name="other")
    assert (loaded.config.name, loaded.raw["config"]["name"]) == ("other_v2", "other_v2")


def test_a_tag_as_the_name_needs_a_value():
    (problem,) = problems_of(changed("name: my_lora", 'name: "[name]"'))
    assert (problem.key, problem.line) == ("config.name", 3)
    assert "--name" in problem.remedy


@pytest.mark.parametrize("name", ["a/b", "..", "'a:b'", "x?", "' x'", "a\\b", "'x.'", f"{'x' * 200}"])
def test_names_that_cannot_be_folders(name):
    (problem,) = problems_of(changed("name: my_lora", f"name: {name}"))
    assert (problem.key, problem.line) == ("config.name", 3)


def test_a_number_is_a_name():
    assert load(changed("name: my_lora", "name: 2024")).config.name == "2024"


def test_an_empty_network_section_is_noted():
    network = LORA[LORA.index("      network:") : LORA.index("      save:")]
    loaded = load(changed(network, "      network:\n"))
    assert loaded.config.process[0].network is None
    assert loaded.notes == ["network: is empty, so the model itself is trained"]
    assert load(changed(network, "      network: {}\n")).config.process[0].network.rank == 4


def test_reading_a_job_imports_no_torch():
    code = (
        "import sys; from toolkit.config_modules.loading import load_job, job_schema; job_schema();"
        "load_job('config/examples/generate.yml');"
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'peft'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
