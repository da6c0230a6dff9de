"""Both sliders as their users run them, on a toy model of the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from jobs.base_job import run_job
from testing.job_helpers import run_cli, training_config
from testing.tiny_models import build_tiny_sd15
from toolkit.config_modules.loading import load_job
from toolkit.model_utils import apply_lora, load_model_for_inference
from toolkit.runs.checkpoints import list_checkpoints
from toolkit.runs.metrics import read_metrics
from toolkit.seeding import keyed_generator
from toolkit.training.checkpoints import load_checkpoint

CONCEPT = {
    "type": "concept_slider",
    "slider": {"target_class": "a cat", "positive_prompt": "a red cat", "negative_prompt": "a blue cat"},
}
TEXT = {
    "type": "slider",
    "datasets": None,
    "slider": {
        "targets": [{"target_class": "a cat", "positive": "a red cat", "negative": "a blue cat"}],
        "resolutions": [[32, 32]],
        "max_denoising_steps": 4,
    },
}
BOTH = pytest.mark.parametrize("kind", [CONCEPT, TEXT], ids=["concept", "text"])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def with_slider(kind: dict[str, Any], **slider: Any) -> dict[str, Any]:
    return kind | {"slider": kind["slider"] | slider}


def train(tmp_path: Path, model: Path, name: str = "run", /, **changes: Any) -> Path:
    loaded = load_job(training_config(tmp_path, model, name, **changes))
    run_job(loaded)
    return tmp_path / "out" / name


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


def state(folder: Path) -> dict[str, torch.Tensor]:
    _, newest = list_checkpoints(folder / "checkpoints")[-1]
    groups = load_checkpoint(newest).tensors
    return {f"{group}/{name}": value for group, tensors in groups.items() for name, value in tensors.items()}


@BOTH
def test_a_run_leaves_a_slider_and_a_sheet_of_it(tmp_path, model, kind):
    folder = train(
        tmp_path, model, **with_slider(kind, sample_multipliers=[-1, 0, 2]),
        train={"steps": 2, "disable_sampling": False}, sample={"sample_every": 0, "prompts": ["a cat"]},
    )  # fmt: skip
    assert len(list((folder / "samples").iterdir())) == 2 * 3  # before and after, one for each strength
    with Image.open(folder / "slider_sheet.png") as sheet:
        assert sheet.width > 3 * 128 and sheet.height < 3 * 128, "one row of three pictures"
    sd = load_model_for_inference(model)
    noisy, t = torch.randn(1, 4, 8, 8, generator=keyed_generator("test", "judge")), torch.tensor([0.5])
    before = sd.predict_noise(noisy, t, sd.encode_prompt("a cat"))
    assert apply_lora(sd, folder / "run.safetensors") > 0
    assert not torch.equal(sd.predict_noise(noisy, t, sd.encode_prompt("a cat")), before)


@BOTH
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, model, kind):
    settings = kind | {"save": {"save_every": 3}, "train": {"lr": 1e-2}}
    straight = train(tmp_path, model, "straight", **settings)
    for steps in (3, 4):
        broken = train(
            tmp_path, model, "broken", **settings | {"train": settings["train"] | {"steps": steps}}
        )
    assert losses(straight) == losses(broken)
    one, two = state(straight), state(broken)
    assert one.keys() == two.keys() and [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_gradient_checkpointing_changes_no_number(tmp_path, model, kind, train_text_encoder):
    """With recomputed activations the network must have the strength that it had in the forward pass."""
    slider = with_slider(kind, **({"anchor_class": "a dog"} if kind is CONCEPT else {}))
    settings = {"lr": 1e-2, "train_text_encoder": train_text_encoder}
    plain = train(tmp_path / "a", model, **slider, train=settings)
    checkpointed = train(tmp_path / "b", model, **slider, train=settings | {"gradient_checkpointing": True})
    assert losses(plain) == pytest.approx(losses(checkpointed), rel=1e-4)


SETTINGS = [
    (CONCEPT, {"guidance_strength": 2.0}),
    (CONCEPT, {"anchor_class": "a dog"}),
    (CONCEPT, {"positive_prompt": "a green cat"}),
    (CONCEPT, {"negative_prompt": "a green cat"}),
    (CONCEPT, {"target_class": "a dog"}),
    (TEXT, {"guidance_strength": 2.0}),
    (TEXT, {"anchors": [{"prompt": "a dog"}]}),
    (TEXT, {"max_denoising_steps": 6}),
    (TEXT, {"batch_full_slide": False}),
    (TEXT, {"resolutions": [[32, 48]]}),
    (TEXT, {"targets": [TEXT["slider"]["targets"][0] | {"weight": 0.5}]}),
    (TEXT, {"targets": [TEXT["slider"]["targets"][0] | {"multiplier": 2.0}]}),
    (TEXT, {"targets": [TEXT["slider"]["targets"][0] | {"positive": "a green cat"}]}),
    (TEXT, {"targets": [TEXT["slider"]["targets"][0] | {"positive": "red, cat", "shuffle": True}]}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes"), SETTINGS, ids=[str(changes) for _, changes in SETTINGS])
def test_a_setting_counts(tmp_path, model, kind, changes):
    settings = {"lr": 1e-2}
    reference = train(tmp_path / "a", model, **kind, train=settings)
    assert losses(reference) != losses(
        train(tmp_path / "b", model, **with_slider(kind, **changes), train=settings)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (CONCEPT, {"anchor_class": "a dog"}, {"anchor_class": "a dog", "anchor_strength": 50.0}),
        (TEXT, {"anchors": [{"prompt": "a dog"}]}, {"anchors": [{"prompt": "a dog", "neg_prompt": "a box"}]}),
        (TEXT, {"anchors": [{"prompt": "a dog"}]}, {"anchors": [{"prompt": "a dog", "multiplier": 3.0}]}),
    ],
)
def test_a_setting_of_anchors_counts(tmp_path, model, kind, one, other):
    first = train(tmp_path / "a", model, **with_slider(kind, **one), train={"lr": 1e-2})
    second = train(tmp_path / "b", model, **with_slider(kind, **other), train={"lr": 1e-2})
    assert losses(first) != losses(second)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("settings", [{"dtype": "bf16"}, {"gradient_accumulation": 2, "batch_size": 1}])
def test_other_ways_to_take_a_step(tmp_path, model, kind, settings):
    folder = train(tmp_path, model, **kind, train={"lr": 1e-2} | settings)
    assert len(losses(folder)) == 4 and all(0 < loss < 100 for loss in losses(folder))


@pytest.mark.slow
def test_what_the_sheet_shows_is_what_the_file_draws_at_that_strength(tmp_path, model):
    folder = train(
        tmp_path, model, **TEXT, train={"lr": 5e-2, "disable_sampling": False},
        sample={"sample_every": 0, "format": "png", "prompts": ["a cat"], "guidance_scale": 1},
    )  # fmt: skip
    newest = max(path.name.split("__")[1][:9] for path in (folder / "samples").iterdir())
    files = {int(p.stem.split("_")[-1]): p for p in (folder / "samples").glob(f"*__{newest}_*.png")}
    pictures = [torch.from_numpy(numpy.asarray(Image.open(files[index])).copy()) for index in range(5)]
    assert all(not torch.equal(one, two) for one, two in zip(pictures, pictures[1:], strict=False))
    for index, multiplier in ((0, -2.0), (3, 1.0)):
        sd = load_model_for_inference(model)
        apply_lora(sd, folder / "run.safetensors", multiplier)
        drawn = sd.pipeline()(
            "a cat", width=32, height=32, num_inference_steps=2, guidance_scale=1,
            generator=torch.Generator().manual_seed(0),
        ).images[0]  # fmt: skip
        difference = torch.from_numpy(numpy.asarray(drawn).copy()).int() - pictures[index].int()
        assert difference.abs().max() <= 1


@pytest.mark.slow
def test_the_command_line_runs_a_slider(tmp_path, model):
    code, output = run_cli(tmp_path, training_config(tmp_path, model, "run", **CONCEPT))
    assert code == 0, output
    assert load_file(tmp_path / "out" / "run" / "run.safetensors")
