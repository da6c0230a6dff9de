"""Validation as a job does it: what is held out, what is measured, and that training never notices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from testing.job_helpers import make_dataset, train, training_config
from testing.tiny_models import build_tiny_sd15
from toolkit.config_modules.loading import load_job
from toolkit.errors import ConfigError, DatasetError, JobStopped
from toolkit.evaluation import validation as grid_module
from toolkit.runs.metrics import read_metrics

LEGACY = {"validation_items": [{"image_path": "a.png"}, {"image_path": "b.png"}]}
TRAIN = {"steps": 6, "ema_config": {"use_ema": True, "ema_decay": 0.5}}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def held_out(tmp_path) -> Path:
    """Four pictures unlike those of make_dataset, one of them in another bucket."""
    folder = tmp_path / "held_out"
    folder.mkdir()
    for index, size in enumerate([(32, 32), (32, 32), (48, 24), (32, 32)]):
        image = Image.effect_noise(size, 90 + 20 * index).convert("RGB")
        image.save(folder / f"noise{index}.png")
        (folder / f"noise{index}.txt").write_text(f"noise of kind {index}", encoding="utf-8")
    return folder


def job(tmp_path: Path, model: Path, name: str, validation: dict[str, Any] | None, **changes: Any) -> Path:
    return training_config(
        tmp_path, model, name, **({"train": TRAIN, "network": {"dropout": 0.2}} | changes),
        **({} if validation is None else {"validation": {"num_images": 4, "num_levels": 2} | validation}),
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "metrics.jsonl")


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "validation.json").read_text())


def test_training_is_bit_equal_with_and_without(tmp_path, model, held_out):
    """Dropout, an average of the weights and longer captions than the training's among the held-out ones."""
    (held_out / "noise0.txt").write_text("noise " * 4)
    with_it = train(job(tmp_path, model, "with", {"folder_path": str(held_out), "every": 2}))
    without = train(job(tmp_path, model, "without", None))
    assert [r["loss"] for r in rows(with_it) if "loss" in r] == [r["loss"] for r in rows(without)]
    one, two = (load_file(folder / f"{folder.name}.safetensors") for folder in (with_it, without))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert [r["step"] for r in rows(with_it) if "val_loss" in r] == [0, 2, 4, 6]
    assert not (without / "validation.json").exists()


def test_readings_are_the_same_in_every_run(tmp_path, model, held_out):
    """Step 0 is the base model: neither seed nor batches of the training change its losses."""
    section = {"folder_path": str(held_out), "every": 0}
    short = {"steps": 1, "batch_size": 3}
    one = record(train(job(tmp_path, model, "one", section, train={"steps": 1})))["readings"][0]
    two = record(train(job(tmp_path, model, "two", section, train=short, training_seed=99)))["readings"][0]
    for kind in ("held_out", "probe"):
        torch.testing.assert_close(torch.tensor(one[kind]), torch.tensor(two[kind]), rtol=1e-5, atol=0)
    other = record(train(job(tmp_path, model, "other", section | {"seed": 1}, train={"steps": 1})))
    assert other["readings"][0]["held_out"] != one["held_out"]


def test_a_loss_is_that_of_diffusers(tmp_path, model, held_out):
    """Unweighted mean squared error at the noise and level that the grid says, by diffusers' own classes."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    from toolkit.evaluation.outcomes import content_of
    from toolkit.evaluation.validation import Grid
    from toolkit.stable_diffusion_model import StableDiffusion

    section = {"folder_path": str(held_out), "every": 0, "noise_levels": [0.9, 0.3], "num_noises": 2}
    weighted = {"steps": 1, "min_snr_gamma": 5.0, "loss_type": "mae"}
    found = record(train(job(tmp_path, model, "one", section, train=weighted)))
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None).to(torch.float32)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    objective = StableDiffusion.load(str(model)).architecture.objective
    place, path = next((i, Path(p)) for i, p in enumerate(found["files"]) if "noise2" not in p)
    (item,) = [each for each in scanned(held_out) if each.path == path]
    pixels = torch.from_numpy(pixels_of(path)).float().permute(2, 0, 1)[None] / 127.5 - 1
    latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    embeds, _ = pipeline.encode_prompt(path.with_suffix(".txt").read_text(), "cpu", 1, False)
    grid = Grid(num_noises=2, levels=(0.9, 0.3))
    for column, design in enumerate(grid.designs):
        losses = []
        for draw in range(2):
            noise = design.noise(content_of(item), draw, tuple(latents.shape[1:]))[None]
            std = (1 - scheduler.alphas_cumprod) ** 0.5
            index = int((std - design.fixed_noise_std).abs().argmin())
            assert float(design.t("", draw, objective)) == pytest.approx((index + 1) / 1000)
            step = torch.tensor([index])
            with torch.no_grad():
                prediction = pipeline.unet(scheduler.add_noise(latents, noise, step), step, embeds).sample
            losses.append(float(((prediction - noise) ** 2).mean()))
        mean = sum(losses) / 2
        assert found["readings"][0]["held_out"][place][column] == pytest.approx(mean, rel=1e-4)


def scanned(folder: Path) -> list[Any]:
    from toolkit.data.scan import scan_dataset

    return scan_dataset(folder, resolutions=[32], size_multiple=8).items


def pixels_of(path: Path) -> Any:
    import numpy

    image = Image.open(path).convert("RGB")
    assert image.size == (32, 32)
    return numpy.array(image)


def test_a_stop_during_a_measurement_resumes_exactly(tmp_path, model, held_out, monkeypatch):
    section = {"folder_path": str(held_out), "every": 2}
    straight = train(job(tmp_path, model, "straight", section))
    path, measure, calls = job(tmp_path, model, "broken", section), grid_module.measure, []

    def stopping(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == len(record(straight)["readings"]) * 3 + 1:  # somewhere in the third reading
            (tmp_path / "out" / "broken" / "commands" / "stop").touch()
        return measure(*arguments, **options)

    monkeypatch.setattr(grid_module, "measure", stopping)
    with pytest.raises(JobStopped):
        train(path)
    before = [reading["step"] for reading in record(tmp_path / "out" / "broken")["readings"]]
    assert before and before[-1] < 6
    broken = train(path)
    one, two = record(straight), record(broken)
    assert one["readings"] == two["readings"]
    assert one["best_step"] == two["best_step"]


def test_a_fraction_is_held_out_and_never_shown(tmp_path, model):
    folder = train(job(tmp_path, model, "split", {"fraction": 0.34, "every": 0}, train={"steps": 9}))
    held = {Path(path).name for path in record(folder)["files"]}
    shown = {entry["file"] for entry in json.loads((folder / "coverage.json").read_text())["times"]}
    assert len(held) == 2
    assert {Path(path).name for path in shown} == {f"disk{i}.png" for i in range(6)} - held
    assert "bands will be wide" in (folder / "log.txt").read_text()


def test_pictures_that_look_like_trained_ones_are_left_out_by_name(tmp_path, model, held_out):
    make_dataset(tmp_path / "data")
    Image.open(tmp_path / "data" / "disk3.png").save(held_out / "copy.jpg", quality=95)
    (held_out / "copy.txt").write_text("a copy")
    folder = train(job(tmp_path, model, "leak", {"folder_path": str(held_out), "num_images": 9}))
    assert "copy.jpg looks like disk3.png" in (folder / "log.txt").read_text()
    assert not any("copy" in path for path in record(folder)["files"])
    only = tmp_path / "only"
    only.mkdir()
    (held_out / "copy.jpg").rename(only / "copy.jpg")
    (only / "copy.txt").write_text("a copy")
    with pytest.raises(DatasetError, match="0 held-out pictures are left"):
        train(job(tmp_path, model, "none", {"folder_path": str(only)}))


def test_the_keys_of_ai_toolkit_are_read(tmp_path, model, held_out):
    items = [{"image_path": str(held_out / f"noise{i}.png"), "prompt": f"kind {i}"} for i in (0, 1)]
    legacy = {"validation_items": items, "resolution": 32, "validate_every_n_steps": 2,
              "validation_sigmas": [1.0, 0.5]}  # fmt: skip
    folder = train(training_config(tmp_path, model, "legacy", train={"validation_config": legacy}))
    found = record(folder)
    assert [reading["step"] for reading in found["readings"]] == [0, 2, 4]
    assert found["levels"] == ["1", "0.5"]
    assert sorted(path.rsplit("/", 1)[1] for path in found["files"]) == ["noise0.png", "noise1.png"]
    assert set(found["key"]["captions"]) >= {"kind 0", "kind 1"}


def test_the_best_save_has_a_name_of_its_own(tmp_path, model, held_out):
    """Improvement, then a rate that ruins everything: the early save outlives its numbered file."""
    save = {"save_every": 2, "max_step_saves_to_keep": 1}
    changes = {"train": {"steps": 6, "lr": 1e-3, "lr_scheduler": "constant"}, "save": save}
    folder = train(job(tmp_path, model, "best", {"folder_path": str(held_out), "every": 2}, **changes))
    found = record(folder)
    losses = {r["step"]: torch.tensor(r["held_out"]).double().log().mean() for r in found["readings"]}
    best = min((2, 4, 6), key=losses.__getitem__)
    assert found["best_saved_step"] == best
    metadata_step = step_of(folder / "best_best.safetensors")
    assert metadata_step == best
    assert f"that of step {best} is best" in (folder / "log.txt").read_text()


def step_of(path: Path) -> int:
    from toolkit.metadata import read_metadata

    return json.loads(read_metadata(path)["training_info"])["step"]


def test_rows_tell_what_the_record_holds(tmp_path, model, held_out):
    folder = train(job(tmp_path, model, "rows", {"folder_path": str(held_out), "every": 3}))
    told = {row["step"]: row for row in rows(folder) if "val_loss" in row}
    for reading in record(folder)["readings"]:
        row = told[reading["step"]]
        assert row["val_loss"] == pytest.approx(torch.tensor(reading["held_out"]).mean().item(), rel=1e-5)
        assert {key: row[key] for key in reading if key.startswith(("val_", "probe_", "gap"))} == {
            key: value for key, value in reading.items() if key.startswith(("val_", "probe_", "gap"))
        }
    assert "val_change" not in told[0]
    assert told[3]["val_change_low"] <= told[3]["val_change"] <= told[3]["val_change_high"]
    assert (folder / "validation.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": {}}, "names no pictures"),
        ({"validation": {"fraction": 0.2, "folder_path": "x"}}, "has folder_path and fraction"),
        ({"validation": {"folder_path": "nowhere"}}, "validation.folder_path: folder nowhere does not exist"),
        ({"validation": {"items": [{"image_path": "nowhere.png"}]}}, "file nowhere.png does not exist"),
        ({"validation": {"fraction": 0.7}}, "validation.fraction: must be at most 0.5"),
        ({"train": {"validation_config": LEGACY | {"validation_sigmas": [2.0]}}}, "validation_sigmas"),
        ({"sample": {"keeper_sheet": True}, "network": None}, "this run trains none"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_loads(tmp_path, changes, message):
    with pytest.raises(ConfigError) as caught:
        load_job(training_config(tmp_path, tmp_path / "no_model", "wrong", **changes))
    assert message in str(caught.value)


def test_a_start_that_cannot_be_measured_is_not_tried_after_each_step(tmp_path, model, held_out, monkeypatch):
    calls = []

    def overflow(model, subjects, grid, **options):
        calls.append(len(subjects))
        return numpy.full((len(subjects), len(grid.labels)), numpy.nan)

    monkeypatch.setattr(grid_module, "measure_grid", overflow)
    folder = train(job(tmp_path, model, "nan", {"folder_path": str(held_out), "every": 3}))
    assert len(calls) == 2 * 3, "held-out pictures and probe, at steps 0, 3 and 6"
    log = (folder / "log.txt").read_text()
    assert log.count("a loss is not finite; not recorded") == 3
