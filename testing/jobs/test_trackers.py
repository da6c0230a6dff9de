"""Numbers reach accelerate's trackers; a package that is missing is told with its remedy."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from jobs import trackers
from jobs.base_job import run_job
from testing.job_helpers import training_config
from testing.tiny_models import build_tiny_sd15
from toolkit.config_modules.loading import load_job
from toolkit.errors import ConfigError


class Recorder(GeneralTracker):
    """A tracker of accelerate's own kind that keeps what it is told."""

    name = "recorder"
    requires_logging_directory = False
    told: list[tuple[int, dict[str, Any]]]

    def __init__(self) -> None:
        super().__init__()
        self.told, self.settings, self.calls = [], {}, []

    @property
    def tracker(self) -> list[Any]:
        return self.told

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.calls.append("finish")


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(trackers, "trackers_of", lambda section, name: [made])
    return made


def test_a_tracker_hears_every_row(tmp_path, monkeypatch, recorder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKEN_OF_MINE", "swordfish")
    model = build_tiny_sd15(tmp_path / "model")
    run_job(load_job(training_config(
        tmp_path, model, logging={"log_every": 3}, trigger_word="${TOKEN_OF_MINE}",
        validation={"fraction": 0.34, "every": 2, "num_levels": 2},
    )))  # fmt: skip
    steps = [step for step, _ in recorder.told]
    assert steps == sorted(steps), "Weights & Biases drops what comes late"
    assert [s for s, values in recorder.told if "loss" in values] == [1, 2, 3, 4]
    assert [s for s, values in recorder.told if "val_loss" in values] == [0, 2, 4]
    assert all(isinstance(v, int | float) for _, values in recorder.told for v in values.values())
    levels = {key for _, values in recorder.told for key in values if key.startswith("loss_by_t.")}
    assert levels
    assert recorder.calls == ["start", "finish"]
    assert recorder.settings["config.process.0.train.steps"] == 4
    assert "swordfish" not in str(recorder.settings)


@pytest.mark.parametrize(
    ("changes", "package", "key"),
    [
        ({"log_dir": "logs"}, "tensorboard", "log_dir"),
        ({"logging": {"use_wandb": True}}, "wandb", "use_wandb"),
    ],
)
def test_a_missing_package_is_told_with_its_remedy(tmp_path, monkeypatch, changes, package, key):
    from toolkit.config_modules import watching_checks

    monkeypatch.setattr(watching_checks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        load_job(training_config(tmp_path, tmp_path / "model", **changes))
    (problem,) = [p for p in caught.value.problems if p.code == "config.missing_package"]
    assert key in problem.key
    assert f"pip install {package}" in str(caught.value)


def test_the_trackers_are_those_that_are_asked_for(tmp_path, monkeypatch):
    from toolkit.config_modules import watching_checks

    monkeypatch.setattr(watching_checks, "find_spec", lambda name: object())
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def of(**changes: Any) -> list[Any]:
        (section,) = load_job(training_config(tmp_path, tmp_path / "model", **changes)).config.process
        return trackers.trackers_of(section, "mine")

    assert of() == []
    (board,) = of(log_dir="some/logs")
    assert (board.name, board.run_name) == ("tensorboard", "mine")
    assert Path(board.logging_dir_param).parts[-2:] == ("some", "logs")
    (wandb,) = of(logging={"use_wandb": True, "project_name": "cats"})
    assert (wandb.run_name, wandb.init_kwargs) == ("cats", {"name": "mine", "mode": "offline"})
    (named,) = of(logging={"use_wandb": True, "run_name": "second"})
    assert named.init_kwargs["name"] == "second"


if find_spec("tensorboard") is not None:

    def test_tensorboard_files_hold_the_losses(tmp_path, monkeypatch):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        model = build_tiny_sd15(tmp_path / "model")
        run_job(load_job(training_config(tmp_path, model, log_dir=str(tmp_path / "logs"))))
        events = EventAccumulator(str(tmp_path / "logs" / "run")).Reload()
        assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
