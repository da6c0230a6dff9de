"""tools/eval_dataset.py from the command line: a report, a page, logs; and one line for each mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from testing.eval_helpers import unseen, write
from toolkit.evaluation.report import Report
from toolkit.paths import ROOT
from toolkit.stable_diffusion_model import StableDiffusion
from tools import eval_dataset

NUM = 6
REPORT = "dataset_eval_000000000.json"


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> Path:
    """Six drawings; the second has another's caption, the third's is too long, the fourth's empty."""
    shapes = unseen(NUM)
    texts = [drawing.caption for drawing in shapes]
    texts[1], texts[2], texts[3] = shapes[4].caption, "very " * 400 + "long", ""
    return write(tmp_path_factory.mktemp("data") / "drawings", shapes, texts)


def arguments(drawings: Path, out: Path, *more: str) -> list[str]:
    return ["--dataset-path", str(drawings), "--model", "tiny-sd", "--device", "cpu", "--out-dir", str(out),
            "--samples-per-image", "4", "--others", "2", "--batch-size", "2", *more]  # fmt: skip


def read(path: Path) -> Report:
    return Report.model_validate_json(path.read_text(encoding="utf-8"))


def test_a_report_with_page_and_logs(drawings, tmp_path, capsys):
    before = {path.name for path in drawings.iterdir()}
    more = (
        "--html",
        "--debug-captions",
        "--log-conditioning",
        "--debug-noise",
        "--suggest",
        "--caption-ablation",
        "zero",
        "--caption-ablation-compare",
        "--job-name",
        "named",
        "--step",
        "250",
    )
    assert eval_dataset.main(arguments(drawings, tmp_path, *more)) == 0
    said = capsys.readouterr().out
    assert "total examples: 5, mean loss: " in said
    assert "flagged captions: " in said
    assert said.count("[EVAL-DEBUG]") == 5
    report = read(tmp_path / "named_000000250.json")
    images = {image.path: image for image in report.images}
    assert set(images) == {f"{i:03d}.png" for i in range(NUM)}
    codes = {name: [reason.code for reason in image.reasons] for name, image in images.items()}
    assert codes["002.png"] == ["caption_too_long"]
    assert images["002.png"].loss is None
    assert images["002.png"].tokens_lost > 0
    assert codes["003.png"] == ["caption_empty"]
    assert "duplicate_caption" in codes["001.png"]
    assert images["001.png"].ablation_delta < images["000.png"].ablation_delta
    assert report.run.caption_ablation == "zero"
    assert report.run.num_forwards > 5 * 4 * 5
    assert images["000.png"].edits
    left = {path.name for path in tmp_path.iterdir()}
    assert {"named_000000250.json", "named_000000250.html"} < left
    debug, conditioning = (next(tmp_path.glob(f".eval_caption_{kind}_*.log")) for kind in ("debug", "cond"))
    assert debug.read_text(encoding="utf-8").count("[EVAL-CAPTION-DEBUG]") == 5
    rows = [json.loads(line) for line in conditioning.read_text(encoding="utf-8").splitlines()]
    assert [row["captions"] for row in rows if row["path"] == "003.png"] == [[""]]
    assert {row["ablation_mse"] == 0 for row in rows if row["captions"] == [""]} == {True}
    assert all(row["ablation_mse"] > 0 for row in rows if row["captions"] != [""])
    assert not list(tmp_path.glob("*.partial.jsonl*"))
    assert not list(tmp_path.glob(".*.lock"))
    assert {path.name for path in drawings.iterdir()} == before


def test_what_is_wrong_beside_its_length_is_told_of_a_caption_that_is_too_long(tmp_path):
    shapes = unseen(NUM)
    shapes[2] = shapes[1]  # the same picture
    texts = [drawing.caption for drawing in shapes]
    texts[1] = texts[3] = "very " * 400 + "long"
    data = write(tmp_path / "drawings", shapes, texts)
    assert eval_dataset.main(arguments(data, tmp_path)) == 0
    found = {
        image.path: [reason.code for reason in image.reasons] for image in read(tmp_path / REPORT).images
    }
    assert found["001.png"] == ["caption_too_long", "duplicate_caption", "twin_images"]
    assert found["003.png"] == ["caption_too_long", "duplicate_caption"]
    assert found["002.png"] == ["twin_images"]


def test_a_page_that_cannot_be_written_costs_no_measurement(drawings, tmp_path, capsys):
    page = (tmp_path / REPORT).with_suffix(".html")
    page.mkdir()
    assert eval_dataset.main(arguments(drawings, tmp_path, "--html")) == 1
    assert re.search(r"\nerror: .*\.html: cannot be written", capsys.readouterr().err)
    page.rmdir()
    assert eval_dataset.main(arguments(drawings, tmp_path, "--html")) == 0
    assert read(tmp_path / REPORT).run.num_forwards == 0 and page.is_file()


def test_some_of_the_images(drawings, tmp_path):
    assert eval_dataset.main(arguments(drawings, tmp_path, "--max-samples", "2", "--no-normalize-loss")) == 0
    some = read(tmp_path / REPORT)
    assert len(some.images) == 2
    assert some.datasets[0].num_images == NUM
    assert all(image.loss_relative is None for image in some.images)
    lines = [{"path": str(drawings / f"{i:03d}.png"), "caption": "a red circle"} for i in range(2)]
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(lines), encoding="utf-8")
    config = tmp_path / "model.json"
    config.write_text(json.dumps({"name_or_path": "tiny-sd", "lora_path": "x", "low_vram": False}))
    options = [
        "--dataset-path",
        str(listed),
        "--model-config-file",
        str(config),
        "--device",
        "cpu",
        "--out-dir",
        str(tmp_path / "listed"),
        "--samples-per-image",
        "1",
        "--fixed-noise-std",
        "0.6",
    ]
    assert eval_dataset.main(options) == 0
    found = read(tmp_path / "listed" / REPORT)
    assert [image.caption for image in found.images] == ["a red circle"] * 2
    assert [std for image in found.images for std in image.draws.noise_std] == pytest.approx(
        [0.6] * 2, abs=0.01
    )


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--dataset-path", "/no/such"], 2, ["dataset_path: no such folder"]),
        (["--dataset-path", "x" * 300], 2, ["dataset_path: no such folder"]),
        (["--samples-per-image", "0", "--fdr", "2"], 2, ["samples_per_image: 0 must", "fdr: 2.0 must"]),
        (["--fixed-noise-std", "0"], 2, ["fixed_noise_std: 0.0 must be in (0, 1]"]),
        (["--timestep-type", "sigmoit"], 2, ["did you mean 'sigmoid'?"]),
        (["--against-base"], 2, ["against_base: needs a LoRA"]),
        (["--lora-multiplier", "nan"], 2, ["lora_multiplier: nan must be between -100 and 100"]),
        (["--lora", "no.safetensors"], 2, ["lora: no such file"]),
        (["--target-q", "0.1", "--no-caption-ablation-compare"], 2, ["target_q: needs the comparison"]),
        (["--job-name", "a/b"], 2, ["job_name: 'a/b' cannot"]),
        (["--t-range", "0.5", "0.2"], 2, ["t_range: [0.5, 0.2] must rise"]),
        (["--sample-fraction", "0.000001"], 2, ["a share of 1e-06 of 6 images is none"]),
        (["--model", "no/such-model"], 3, ["no/such-model"]),
        (["--model-config-file", "/no/such.json"], 2, ["/no/such.json: cannot be read"]),
        (["--dtype", "fp17"], 2, ["fp17"]),
        (["--arch", "sd51"], 3, ["sd51"]),
        (["--timestep-type", "cubist", "--dtype", "float8", "--fdr", "2"], 2, ["cubist", "float8", "fdr"]),
        (["--job-name", "x" * 250], 2, ["of at most 200 bytes"]),
        (
            ["--job-name", "\udcff", "--trigger-word", "\udcff"],
            2,
            ["job_name: cannot be", "trigger_word: cannot"],
        ),
        (["--dataset-path", ".", "./toolkit/.."], 2, ["dataset_path: is named twice: ./toolkit/.."]),
        (["--caption-ext", ""], 2, ["caption_ext: '' must be the end of a file's name"]),
        (["--eval-resolution", "7"], 2, ["eval_resolution: 7 must be at least 8"]),
        (["--apply-inference-lora"], 2, ["apply_inference_lora: no LoRA is named"]),
    ],
)
def test_mistakes_are_one_line_each(drawings, tmp_path, capsys, options, code, named):
    assert eval_dataset.main(arguments(drawings, tmp_path, *options)) == code
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == len(named)
    for name in named:
        assert any(name in line for line in errors), errors
    assert "Traceback" not in "".join(lines)
    assert not (tmp_path / REPORT).exists()


def text_lora(path: Path) -> Path:
    """A LoRA on the embedded model's text encoder, made by peft and diffusers, with weights as if trained."""
    pipeline = StableDiffusion.load("tiny-sd").pipeline()
    encoder = pipeline.text_encoder
    encoder.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    layers = get_peft_model_state_dict(encoder)
    pipeline.save_lora_weights(path.parent, text_encoder_lora_layers=layers, weight_name=path.name)
    return path


def test_a_lora_on_the_text_encoder_is_off_in_the_base_and_as_strong_as_asked_for(
    drawings, tmp_path, monkeypatch
):
    """What the text encoder said under one strength is kept on disk, and is not taken for another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config, lora = tmp_path / "model.json", text_lora(tmp_path / "text.safetensors")
    config.write_text(json.dumps({"name_or_path": "tiny-sd", "inference_lora_path": str(lora)}))

    def measured(name: str, *more: str) -> Report:
        options = ["--dataset-path", str(drawings), "--model-config-file", str(config), "--device", "cpu",
                   "--samples-per-image", "1", "--others", "0", "--max-samples", "3"]  # fmt: skip
        assert eval_dataset.main([*options, "--out-dir", str(tmp_path / name), *more]) == 0
        return read(tmp_path / name / REPORT)

    def losses(report: Report) -> list[float]:
        return [image.loss for image in report.images if image.loss is not None]

    on = ("--apply-inference-lora", "--lora-multiplier")
    plain, whole = measured("plain"), measured("whole", *on, "1", "--against-base")
    half, none = measured("half", *on, "0.5"), measured("none", *on, "0")
    assert losses(plain) == [image.base.loss for image in whole.images if image.base is not None]
    assert losses(none) == pytest.approx(losses(plain), rel=1e-5)
    for first, second, third in zip(losses(plain), losses(half), losses(whole), strict=True):
        assert len({first, second, third}) == 3
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert losses(measured("fresh", *on, "0.5")) == losses(half)
    assert (plain.run.lora_multiplier, half.run.lora_multiplier) == (None, 0.5)
    assert plain.run.model_hash == whole.run.model_hash  # of what the LoRA is put on


def test_the_report_says_what_stopping_early_spent(drawings, tmp_path, capsys):
    options = ("--target-se", "100", "--samples-per-image", "8", "--seed", "-1")
    assert eval_dataset.main(arguments(drawings, tmp_path, *options)) == 0
    run = read(tmp_path / REPORT).run
    assert (run.num_draws, run.num_draws_full, run.target_se) == (4 * 5, 8 * 5, 100)
    assert "stopping early spent 20 of 40 draws" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"name_or_path": 5, "arch": 3, "dtype": 7}, ["name_or_path: 5", "arch: 3", "dtype: 7"]),
        ({"name_or_path": "tiny-sd", "vae_path": 4}, ["vae_path: 4 is no text"]),
        ({"name_or_path": "tiny-sd", "lora_path": "/no/l.safetensors"}, ["lora: no such file"]),
    ],
)
def test_mistakes_in_a_models_file_are_one_line_each(drawings, tmp_path, capsys, more, named):
    config = tmp_path / "model.json"
    config.write_text(json.dumps(more), encoding="utf-8")
    options = ["--dataset-path", str(drawings), "--model-config-file", str(config), "--apply-inference-lora",
               "--against-base", "--out-dir", str(tmp_path)]  # fmt: skip
    assert eval_dataset.main(options) == 2
    said = capsys.readouterr().err
    assert all(each in said for each in named)
    assert ("needs a LoRA" in said) == ("lora_path" not in more)


def test_an_out_dir_that_is_a_file_is_told_before_anything_is_loaded(drawings, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert eval_dataset.main(arguments(drawings, tmp_path / "file")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_data_and_model_must_be_named(capsys):
    with pytest.raises(SystemExit) as ended:
        eval_dataset.main(["--model", "tiny-sd"])
    assert ended.value.code == 2
    assert "--dataset-path" in capsys.readouterr().err


def test_the_schema_is_printed(capsys):
    assert eval_dataset.main(["--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "AI Toolkit evaluation"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_evaluation_goes_on_where_it_was(tmp_path, number):
    drawings = write(tmp_path / "drawings", unseen(24))
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "tools" / "eval_dataset.py"),
               *arguments(drawings, out, "--samples-per-image", "16", "--batch-size", "1")]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )
    records = out / ".dataset_eval_000000000_0.partial.jsonl"
    deadline = time.monotonic() + 240
    while not (records.exists() and records.read_text(encoding="utf-8").count("\n") > 5):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), output
    assert number == signal.SIGKILL or "\nstopped after" in output  # below the bar
    assert not (out / REPORT).exists()
    measured = records.read_text(encoding="utf-8").count("\n") - 1
    assert eval_dataset.main(command[2:]) == 0
    resumed = read(out / REPORT)
    assert resumed.run.num_forwards <= (24 - measured + 1) * 16 * 4
    assert eval_dataset.main([*command[2:], "--out-dir", str(tmp_path / "whole")]) == 0
    whole = read(tmp_path / "whole" / REPORT)
    assert whole.run.num_forwards == 24 * 16 * 4
    assert resumed.images == whole.images
