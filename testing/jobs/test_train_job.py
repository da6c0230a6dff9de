"""The training job as its users run it, on a toy model of the real classes."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from testing.job_helpers import make_dataset, run_cli, start_job, train, training_config, wait_until
from testing.tiny_models import build_tiny_sd15
from toolkit.errors import DatasetError, JobStopped, RunError
from toolkit.metadata import read_metadata
from toolkit.runs.checkpoints import list_checkpoints
from toolkit.runs.layout import RunFolder
from toolkit.runs.metrics import read_metrics
from toolkit.runs.status import read_status
from toolkit.training.checkpoints import load_checkpoint

# Everything that draws at random: flips, dropout of captions, two resolutions, several buckets, EMA.
RANDOM = {
    "train": {"steps": 24, "ema_config": {"use_ema": True, "ema_decay": 0.9}, "lr_scheduler": "cosine"},
    "network": {"dropout": 0.1},
}


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def random_datasets(tmp_path: Path) -> list[dict]:
    return [{"folder_path": str(tmp_path / "data"), "resolution": [32, 48], "flip_x": True,
             "caption_dropout_rate": 0.3, "cache_latents": True}]  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint and of the final file, by a name."""
    _, newest = list_checkpoints(folder / "checkpoints")[-1]
    groups = load_checkpoint(newest).tensors
    state = {
        f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()
    }
    return state | {f"file/{k}": v for k, v in load_file(folder / f"{folder.name}.safetensors").items()}


def assert_bitwise_equal(first: Path, second: Path) -> None:
    one, two = final_state(first), final_state(second)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_a_run_leaves_what_its_folder_promises(tmp_path, model):
    folder = train(
        training_config(
            tmp_path, model,
            train={"disable_sampling": False}, save={"save_every": 1, "max_step_saves_to_keep": 2},
        )
    )  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints", "commands", "config.yaml", "contact_sheet.png", "coverage.json", "log.txt", "loss.png",
        "metrics.jsonl", "report.html", "run.safetensors", "run_000000002.safetensors",
        "run_000000003.safetensors", "samples", "status.json",
    ]  # fmt: skip
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    status = read_status(folder / "status.json")
    assert (status.phase, status.step, status.total_steps) == ("finished", 4, 4)
    steps = sorted({path.name.split("__")[1][:9] for path in (folder / "samples").iterdir()})
    assert steps == ["000000000", "000000002", "000000004"]
    metadata = read_metadata(folder / "run.safetensors")
    assert json.loads(metadata["training_info"]) == {"step": 4, "epoch": 1}
    assert (
        metadata["by"] == "test"
        and metadata["ss_network_dim"] == "4"
        and metadata["ss_network_alpha"] == "2.0"
    )


def test_two_runs_with_one_seed_are_bitwise_equal_and_another_seed_is_not(tmp_path, model):
    datasets = random_datasets(tmp_path)
    one = train(training_config(tmp_path, model, "one", datasets=datasets, **RANDOM))
    two = train(training_config(tmp_path, model, "two", datasets=datasets, **RANDOM))
    assert losses(one) == losses(two)
    state_one, state_two = final_state(one), final_state(two)
    assert [name for name in state_one if not torch.equal(state_one[name], state_two[name])] == []
    other = train(training_config(tmp_path, model, "other", datasets=datasets, training_seed=8, **RANDOM))
    assert losses(one)[0] != losses(other)[0]


def test_previews_leave_the_losses_bit_equal(tmp_path, model):
    without = train(training_config(tmp_path, model, "without", **RANDOM))
    previews = RANDOM | {"train": RANDOM["train"] | {"disable_sampling": False}}
    with_previews = train(training_config(tmp_path, model, "with", sample={"sample_every": 3}, **previews))
    assert len(list((with_previews / "samples").iterdir())) == 2 * (1 + 24 // 3)
    assert losses(without) == losses(with_previews)


def test_a_run_killed_at_any_step_and_resumed_equals_one_never_interrupted(tmp_path, model):
    datasets = random_datasets(tmp_path)
    settings = RANDOM | {"save": {"save_every": 5}}
    straight = train(training_config(tmp_path, model, "straight", datasets=datasets, **settings))
    broken = training_config(tmp_path, model, "broken", datasets=datasets, **settings)
    folder = tmp_path / "out" / "broken"
    process = start_job(tmp_path, broken)
    wait_until(lambda: (folder / "checkpoints" / "step_000000010" / "manifest.json").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (folder / "broken.safetensors").exists(), "killed too late to test anything"
    train(broken)
    assert losses(straight) == losses(folder)
    one, two = final_state(straight), final_state(folder)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert {name.split("/")[0] for name in one} == {"weights", "optimizer", "ema", "file"}
    assert "resuming from step" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("means", ["command", "SIGINT", "SIGTERM"])
def test_a_run_is_stopped_by_each_of_its_means_and_goes_on_from_there(tmp_path, model, means):
    path = training_config(tmp_path, model, "halt", train={"steps": 4000})
    folder = tmp_path / "out" / "halt"
    process = start_job(tmp_path, path)
    wait_until(
        lambda: (folder / "status.json").exists() and read_status(folder / "status.json").step >= 3, process
    )
    if means == "command":
        (folder / "commands" / "stop").touch()
    else:
        process.send_signal(getattr(signal, means))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    status = read_status(folder / "status.json")
    assert status.phase == "stopped" and "Traceback" not in output
    step = status.step
    assert [number for number, _ in list_checkpoints(folder / "checkpoints")] == [step]
    assert (folder / f"halt_{step:09d}.safetensors").exists()
    assert not (folder / "commands" / "stop").exists()
    # The run goes on where it was, to an end that we bring closer.
    train(training_config(tmp_path, model, "halt", train={"steps": step + 2}))
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == list(range(1, step + 3))


def test_a_run_that_was_done_already_says_so_with_its_step(tmp_path, model):
    path = training_config(tmp_path, model, "done")
    train(path)
    status = read_status(train(path) / "status.json")
    assert (status.phase, status.attempt, status.step, status.total_steps) == ("finished", 2, 4, 4)


def test_an_aborted_run_leaves_what_was_saved_and_nothing_more(tmp_path, model):
    path = training_config(tmp_path, model, "cut", train={"steps": 4000}, save={"save_every": 100_000})
    folder = tmp_path / "out" / "cut"
    process = start_job(tmp_path, path)
    wait_until(lambda: (s := read_status(folder / "status.json")) is not None and s.step >= 3, process)
    (folder / "commands" / "abort").touch()
    output, _ = process.communicate(timeout=60)
    status = read_status(folder / "status.json")
    assert (process.returncode, status.phase, status.exit["code"]) == (130, "stopped", 130), output
    assert list_checkpoints(folder / "checkpoints") == [] and not list(folder.glob("*.safetensors"))
    assert list((folder / "commands").iterdir()) == [] and not (folder / "run.lock").exists()


def test_commands_save_and_sample_are_obeyed(tmp_path, model):
    path = training_config(tmp_path, model, "asked", train={"steps": 4000, "disable_sampling": False})
    folder = tmp_path / "out" / "asked"
    process = start_job(tmp_path, path)
    sampled = lambda: any("__000000000_" not in p.name for p in (folder / "samples").glob("*.jpg"))  # noqa: E731
    wait_until(
        lambda: (folder / "status.json").exists() and read_status(folder / "status.json").step >= 1, process
    )
    (folder / "commands" / "save").touch()
    wait_until(lambda: bool(list(folder.glob("asked_*.safetensors"))), process)
    (folder / "commands" / "sample").touch()
    wait_until(sampled, process)
    (folder / "commands" / "stop").touch()
    assert process.wait(timeout=60) == 3
    process.stdout.close()
    assert list((folder / "commands").iterdir()) == []


def test_a_stop_is_obeyed_between_two_previews(tmp_path, model, monkeypatch):
    from jobs import training_run

    save_image = training_run.save_image

    def stop_then_save(image, path, recipe):
        (tmp_path / "out" / "midway" / "commands" / "stop").touch()
        return save_image(image, path, recipe)

    monkeypatch.setattr(training_run, "save_image", stop_then_save)
    with pytest.raises(JobStopped):
        train(training_config(tmp_path, model, "midway", train={"disable_sampling": False}))
    assert len(list((tmp_path / "out" / "midway" / "samples").iterdir())) == 1


def test_previews_that_a_kill_cost_are_drawn_when_the_run_goes_on(tmp_path, model, monkeypatch):
    from jobs import training_run

    settings = {"train": {"steps": 4, "disable_sampling": False}, "save": {"save_every": 2}}
    path = training_config(tmp_path, model, "drawn", **settings)
    save_image = training_run.save_image

    def die(image, file, recipe):
        if "__000000002_1." in file.name:  # the second picture of step 2
            raise KeyboardInterrupt
        return save_image(image, file, recipe)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training_run, "save_image", die)
        train(path)
    train(path)
    drawn = RunFolder(tmp_path / "out", "drawn").samples_by_step()
    assert {step: sorted(pictures) for step, pictures in drawn.items()} == {0: [0, 1], 2: [0, 1], 4: [0, 1]}


def test_a_second_run_into_the_folder_is_refused_by_name(tmp_path, model):
    from toolkit.runs.lock import RunLock

    path = training_config(tmp_path, model, "taken")
    folder = tmp_path / "out" / "taken"
    folder.mkdir(parents=True)
    with RunLock(folder / "run.lock"), pytest.raises(RunError, match=f"process {os.getpid()}"):
        train(path)


def test_a_full_fine_tune_with_the_text_encoder_changes_both_and_saves_a_model(tmp_path, model):
    from diffusers import StableDiffusionPipeline

    folder = train(
        training_config(
            tmp_path, model, "full", network=None, save={"save_format": "diffusers"},
            train={"train_text_encoder": True, "text_encoder_lr": 1e-4},
        )
    )  # fmt: skip
    before = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    after = StableDiffusionPipeline.from_pretrained(folder / "full", safety_checker=None)
    for part in ("unet", "text_encoder"):
        old, new = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        assert any(not torch.equal(old[name], new[name]) for name in old), part
    old, new = before.vae.state_dict(), after.vae.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"linear": 8}}, "network.linear 4, this config has 8"),
        ({"network": {"linear_alpha": 8}}, "network.linear_alpha 2, this config has 8"),
        ({"train": {"optimizer": "sgd"}}, "optimizer adamw, this config has sgd"),
        ({"model": {"prediction_type": "v_prediction"}}, "objective epsilon"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, model, changes, message):
    train(training_config(tmp_path, model, "same"))
    longer = {"train": {"steps": 9} | changes.get("train", {})}
    with pytest.raises(RunError, match=message):
        train(training_config(tmp_path, model, "same", **(changes | longer)))


def test_a_checkpoint_of_another_base_model_is_refused(tmp_path, model):
    train(training_config(tmp_path, model, "same"))
    other = build_tiny_sd15(tmp_path / "other", seed=1)
    with pytest.raises(RunError, match="base model"):
        train(training_config(tmp_path, other, "same", train={"steps": 9}))


def test_another_batch_size_goes_on_at_the_same_share_of_the_epochs(tmp_path, model):
    train(training_config(tmp_path, model, "batches"))  # 4 batches of 2: one epoch
    folder = train(training_config(tmp_path, model, "batches", train={"steps": 6, "batch_size": 1}))
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [0, 0, 0, 0, 1, 1]
    assert "the batch size changed" in (folder / "log.txt").read_text()


def test_a_non_finite_run_stays_refused_however_often_it_is_started(tmp_path, model):
    path = training_config(
        tmp_path, model, "blown", train={"lr": 1e30, "max_grad_norm": 0}, save={"save_every": 1}
    )
    kept = None
    for _ in range(3):
        with pytest.raises(RunError, match="is not finite"):
            train(path)
        steps = [step for step, _ in list_checkpoints(tmp_path / "out" / "blown" / "checkpoints")]
        assert kept is None or steps == kept, "a later start must not get past the step that was refused"
        kept = steps
    assert not (tmp_path / "out" / "blown" / "blown.safetensors").exists()


def test_an_average_switched_on_later_begins_at_the_trained_weights(tmp_path, model):
    plain = train(training_config(tmp_path, model, "late", train={"lr": 1e-2}))
    trained = final_state(plain)
    averaged = {"steps": 5, "lr": 0.0, "ema_config": {"use_ema": True, "ema_decay": 0.9}}
    state = final_state(train(training_config(tmp_path, model, "late", train=averaged)))
    assert all(
        torch.equal(state[f"ema/{name.removeprefix('weights/')}"], tensor)
        for name, tensor in trained.items()
        if name.startswith("weights/")
    )


def test_a_damaged_checkpoint_is_set_aside_and_never_crowds_out_a_good_one(tmp_path, model):
    settings = {"save": {"save_every": 1}}
    folder = train(training_config(tmp_path, model, "hurt", **settings))
    for _, checkpoint in list_checkpoints(folder / "checkpoints"):
        (checkpoint / "weights.safetensors").write_bytes(b"damaged")
    train(training_config(tmp_path, model, "hurt", train={"steps": 3}, **settings))
    assert [step for step, _ in list_checkpoints(folder / "checkpoints")] == [2, 3]
    assert len(list((folder / "checkpoints").glob("damaged_*"))) == 2
    assert sorted(path.name for path in folder.glob("hurt*.safetensors")) == [
        "hurt.safetensors", "hurt_000000001.safetensors", "hurt_000000002.safetensors",
    ]  # fmt: skip


def test_a_picture_that_vanishes_midway_costs_no_steps(tmp_path, model):
    path = training_config(
        tmp_path, model, "gone", train={"steps": 30},
        datasets=[{"folder_path": str(tmp_path / "data"), "resolution": 32}],
    )  # fmt: skip
    from toolkit.data import transforms

    fit, seen = transforms.fit, []

    def vanish(*args, **kwargs):
        seen.append(1)
        if len(seen) == 20:
            (tmp_path / "data" / "disk2.png").unlink()
        return fit(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "fit", vanish)
        with pytest.raises(DatasetError, match="disk2.png"):
            train(path)
    ((step, _),) = list_checkpoints(tmp_path / "out" / "gone" / "checkpoints")
    assert step >= 5


def test_every_unusable_picture_is_named_before_a_model_is_loaded(tmp_path, model):
    path = training_config(tmp_path, tmp_path / "no-such-model", "bad")
    (tmp_path / "data" / "disk1.png").write_bytes(b"not a picture")
    (tmp_path / "data" / "disk3.png").write_bytes((tmp_path / "data" / "disk3.png").read_bytes()[:80])
    with pytest.raises(DatasetError) as caught:
        train(path)
    assert [Path(problem.file).name for problem in caught.value.problems] == ["disk1.png", "disk3.png"]
    status = read_status(tmp_path / "out" / "bad" / "status.json")
    assert status.phase == "failed" and len(status.exit["error"]) == 2
    assert "disk3.png" in (tmp_path / "out" / "bad" / "log.txt").read_text()


def test_a_stop_while_loading_is_obeyed(tmp_path, model, monkeypatch):
    from toolkit.data.latent_cache import LatentCache

    fill = LatentCache.fill

    def stop_then_fill(self, *args, **kwargs):
        (tmp_path / "out" / "early" / "commands" / "stop").touch()
        return fill(self, *args, **kwargs)

    monkeypatch.setattr(LatentCache, "fill", stop_then_fill)
    with pytest.raises(JobStopped):
        train(training_config(tmp_path, model, "early"))
    assert read_status(tmp_path / "out" / "early" / "status.json").phase == "stopped"


def test_one_batch_is_learned_by_heart(tmp_path, model):
    make_dataset(tmp_path / "data", sizes=[(32, 32)])
    folder = train(
        training_config(
            tmp_path, model, "overfit", network={"linear": 16, "linear_alpha": 16},
            train={"steps": 60, "batch_size": 1, "gradient_accumulation": 2, "lr": 1e-2},
        )
    )  # fmt: skip
    curve = losses(folder)
    assert sum(curve[-15:]) < 0.8 * sum(curve[:15])


def test_errors_reach_the_shell_as_lines_without_traceback(tmp_path, model):
    path = training_config(tmp_path, model, "typo", train={"learning_rate": 1.0, "steps": -3})
    code, output = run_cli(tmp_path, path)
    assert code == 2 and "Traceback" not in output
    assert "train.steps" in output and "learning_rate" in output
