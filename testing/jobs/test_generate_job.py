"""The generation job: pictures, their recipes, and a LoRA on top."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from jobs.base_job import run_job
from testing.job_helpers import run_cli, training_config
from testing.tiny_models import build_tiny_sd15
from toolkit.config_modules.loading import load_job
from toolkit.errors import ConfigError, JobStopped, ModelError
from toolkit.runs.commands import CommandBox
from toolkit.runs.images import read_parameters, read_recipe
from toolkit.runs.layout import RunFolder
from toolkit.runs.status import STATUS_FOLDER, read_status
from web.configs import check_config
from web.forms.drawing import drawing_text


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(scope="module")
def lora(tmp_path_factory, model) -> Path:
    """A LoRA trained hard enough to be seen."""
    folder = tmp_path_factory.mktemp("lora")
    run_job(load_job(training_config(folder, model, "seen", train={"steps": 12, "lr": 5e-2})))
    return folder / "out" / "seen" / "seen.safetensors"


def generation_config(
    tmp_path: Path, model: Path, name: str = "pictures", *, process: dict | None = None, **generate
) -> Path:
    settings = {"prompts": ["a disk", "a box --seed 9 --w 40"], "width": 32, "height": 32, "seed": 5,
                "sampler": "ddim", "sample_steps": 2, "guidance_scale": 3}  # fmt: skip
    section = {"type": "to_folder", "output_folder": str(tmp_path / name), "device": "cpu",
               "model": {"name_or_path": str(model)}, "generate": settings | generate}  # fmt: skip
    section |= process or {}
    path = tmp_path / f"{name}.yml"
    path.write_text(yaml.safe_dump({"job": "generate", "config": {"name": name, "process": [section]}}))
    return path


def draw(tmp_path: Path, model: Path, name: str, **generate) -> list[Path]:
    """The pictures a job wrote, in order."""
    run_job(load_job(generation_config(tmp_path, model, name, **generate)))
    return sorted((tmp_path / name).glob("*.png"), key=lambda path: int(path.stem.split("_")[1]))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=np.int16)


def test_pictures_carry_their_recipe_and_obey_prompt_flags(tmp_path, model):
    first, second = draw(tmp_path, model, "pictures", prompt_file=True)
    assert pixels(first).shape == (32, 32, 3) and pixels(second).shape == (32, 40, 3)
    recipe = read_recipe(second)
    assert (recipe["prompt"], recipe["seed"], recipe["sample_steps"]) == ("a box", 9, 2)
    assert recipe["model"] == "sd15", "a picture must not tell the folders of its maker"
    assert "Seed: 5" in read_parameters(first)
    assert second.with_suffix(".txt").read_text() == "a box"


def test_a_recipe_makes_the_same_picture_as_diffusers(tmp_path, model):
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    (picture,) = draw(tmp_path, model, "one", prompts=["a disk"])
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    expected = pipeline(
        "a disk", negative_prompt="", width=32, height=32, num_inference_steps=2, guidance_scale=3,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert np.abs(pixels(picture) - np.asarray(expected, dtype=np.int16)).max() <= 1


def test_a_lora_changes_pictures_by_its_multiplier(tmp_path, model, lora):
    prompts = ["a disk", "a disk --m 0", "a disk --m 0.5"]
    plain = pixels(draw(tmp_path, model, "plain", prompts=["a disk"])[0])
    full, none, half = map(pixels, draw(tmp_path, model, "with", prompts=prompts, lora_path=str(lora)))
    assert np.array_equal(none, plain)
    assert np.abs(full - plain).mean() > np.abs(half - plain).mean() > 0
    weaker = draw(tmp_path, model, "weak", prompts=["a disk"], lora_path=str(lora), network_multiplier=0.5)
    assert np.array_equal(pixels(weaker[0]), half)


def test_seeds_repeat_and_random_ones_do_not(tmp_path, model):
    one, two = (draw(tmp_path, model, name, prompts=["a disk"], seed=-1)[0] for name in ("r1", "r2"))
    assert not np.array_equal(pixels(one), pixels(two))
    assert read_recipe(one)["seed"] >= 0, "the seed drawn must be told"
    repeats = draw(tmp_path, model, "repeats", prompts=["a disk"], num_repeats=3)
    assert [read_recipe(path)["seed"] for path in repeats] == [5, 6, 7]


def test_prompts_come_from_a_file_too(tmp_path, model):
    (tmp_path / "prompts.txt").write_text("a disk\n\na box\n", encoding="utf-8")
    pictures = draw(tmp_path, model, "listed", prompts=str(tmp_path / "prompts.txt"))
    assert [read_recipe(path)["prompt"] for path in pictures] == ["a disk", "a box"]


def test_mistakes_are_told_before_a_model_is_loaded(tmp_path, model):
    for changes, message in [
        ({"prompts": str(tmp_path / "nothing.txt")}, "nothing.txt"),
        ({"lora_path": str(tmp_path / "no.safetensors")}, "no.safetensors"),
    ]:
        with pytest.raises(ConfigError, match=message):
            run_job(load_job(generation_config(tmp_path, tmp_path / "no-model", "bad", **changes)))
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match=r"bad\.safetensors"):
        draw(tmp_path, model, "broken", lora_path=str(tmp_path / "bad.safetensors"))


def test_the_precision_is_the_process_s_then_the_model_s(tmp_path, model):
    def drawn(name: str, own: str | None, of_model: str | None) -> np.ndarray:
        changes = {"dtype": own, "model": {"name_or_path": str(model), "dtype": of_model}}
        return pixels(draw(tmp_path, model, name, prompts=["a disk"], process=changes)[0])

    full, half = drawn("full", None, None), drawn("half", "bf16", None)
    assert not np.array_equal(full, half), "this picture must tell the precisions apart"
    assert np.array_equal(drawn("of_model", None, "bf16"), half)
    assert np.array_equal(drawn("own", "fp32", "bf16"), full)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs a folder that nobody can write")
@pytest.mark.parametrize("folder", ["/proc/self/task", "/proc/none", "{tmp_path}/file"])
def test_a_folder_that_cannot_be_written_is_told_before_a_model_is_loaded(tmp_path, folder):
    (tmp_path / "file").write_text("x")
    changes = {"output_folder": folder.format(tmp_path=tmp_path)}
    path = generation_config(tmp_path, tmp_path / "no-model", process=changes)
    with pytest.raises(ConfigError, match="output_folder: cannot") as caught:
        run_job(load_job(path))
    assert caught.value.problems[0].code == "config.output_folder"


def test_trying_the_folder_leaves_nothing_in_it(tmp_path, model):
    draw(tmp_path, model, "clean", prompts=["a disk"])
    assert [path.suffix for path in (tmp_path / "clean").iterdir()] == [".png"]


def test_who_starts_it_sees_how_far_it_is_and_can_stop_it(tmp_path, model, monkeypatch):
    place = tmp_path / "attempt"
    place.mkdir()
    monkeypatch.setenv(STATUS_FOLDER, str(place))
    draw(tmp_path, model, "watched")
    status = read_status(place / "status.json")
    assert (status.phase, status.step, status.total_steps, status.exit["code"]) == ("finished", 2, 2, 0)
    from jobs.process import to_folder

    seen, save = [], to_folder.save_image

    def stop_after_saving(*arguments):
        save(*arguments)
        seen.append(read_status(place / "status.json").phase)
        CommandBox(place / "commands").put("stop")

    monkeypatch.setattr(to_folder, "save_image", stop_after_saving)
    with pytest.raises(JobStopped, match="1 of 2 pictures"):
        draw(tmp_path, model, "stopped")
    status = read_status(place / "status.json")
    assert seen == ["sampling"] and "after 1 of 2 pictures" in status.exit["error"][0]
    assert (status.phase, status.step, status.total_steps) == ("stopped", 1, 2)


def test_who_starts_it_is_shown_every_picture(tmp_path, model, monkeypatch, caplog):
    place = tmp_path / "attempt"
    place.mkdir()
    monkeypatch.setenv(STATUS_FOLDER, str(place))
    written = draw(tmp_path, model, "one") + draw(tmp_path, model, "two", ext="jpg")
    written += sorted((tmp_path / "two").glob("*.jpg"))
    shown = RunFolder(tmp_path, "attempt").list_samples()
    assert [(sample.step, sample.index, sample.path.suffix) for sample in shown] == [
        (0, 0, ".png"), (0, 1, ".png"), (0, 2, ".jpg"), (0, 3, ".jpg")
    ]  # fmt: skip
    assert [sample.path.samefile(path) for sample, path in zip(shown, written, strict=True)] == [True] * 4
    assert len(list((place / "samples").iterdir())) == 4
    shown[1].path.unlink()  # as one that could not be shown
    draw(tmp_path, model, "four")
    assert [sample.index for sample in RunFolder(tmp_path, "attempt").list_samples()] == [0, 2, 3, 4, 5]
    shutil.rmtree(place / "samples")
    (place / "samples").write_text("in the way")
    assert len(draw(tmp_path, model, "three")) == 2, "a picture that cannot be shown is a picture"
    assert "is not shown in the UI: File exists" in caplog.text


@pytest.mark.parametrize("kind", ["lora", "text encoders", "whole"])
def test_the_ui_s_job_for_a_trained_model_draws_its_last_previews(tmp_path, model, kind):
    """Pixel by pixel: the previews are drawn by the training itself, with the weights that it has."""
    changes: dict = {"train": {"steps": 2, "lr": 1e-2, "disable_sampling": False}}
    changes["sample"] = {"sample_every": 2, "format": "png", "prompts": ["a disk", "a box --seed 9 --cfg 3"]}
    if kind != "lora":
        changes |= {"network": None, "save": {"save_format": "diffusers"}}
        changes["model"] = {"te_name_or_path": str(model)}  # whose encoders are not those that were trained
        changes["train"]["train_text_encoder"] = kind == "text encoders"
    path = training_config(tmp_path, model, "drawn", **changes)
    run = RunFolder(tmp_path / "out", "drawn")
    run_job(load_job(path))
    (trained,) = (place for place in run.path.iterdir() if place.name in ("drawn", "drawn.safetensors"))
    text = path.read_text()
    made = drawing_text(text, check_config(text), 1, trained, name="again", output_root=tmp_path)
    (tmp_path / "again.yml").write_text(made)
    run_job(load_job(tmp_path / "again.yml"))
    again = sorted((tmp_path / "again").glob("*.png"), key=lambda found: int(found.stem.split("_")[1]))
    last = [sample.path for sample in run.list_samples() if sample.step == 2]
    assert len(last) == len(again) == 2
    for preview, picture in zip(last, again, strict=True):
        assert np.array_equal(pixels(preview), pixels(picture))
    first = [sample.path for sample in run.list_samples() if sample.step == 0]
    assert not np.array_equal(pixels(first[0]), pixels(last[0])), "it must have learned something to show"


def test_the_command_line_draws(tmp_path, model):
    code, output = run_cli(tmp_path, generation_config(tmp_path, model, "shell"))
    assert code == 0 and "2 pictures in" in output
    assert len(list((tmp_path / "shell").glob("*.png"))) == 2
