"""Steps that fail in a whole job: batches without memory; losses not finite, rolled back or skipped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs import build
from testing.job_helpers import log, train, training_config
from testing.tiny_models import build_tiny_sd15
from toolkit.errors import RunError
from toolkit.runs.checkpoints import list_checkpoints
from toolkit.runs.metrics import read_metrics
from toolkit.runs.status import read_status
from toolkit.training.checkpoints import load_checkpoint
from toolkit.training.updates import NonFiniteError

NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Planted:
    """Makes the losses of micro-batches at chosen positions go wrong; `seen` are (step, position) of all."""

    def __init__(self, monkeypatch, *, no_memory=(), nan=(), stop_before=None) -> None:
        self.no_memory, self.nan, self.stop_before = set(no_memory), set(nan), stop_before
        self.seen: list[tuple[int, int]] = []
        make_trainer = build.trainer

        def trainer(*args, **kwargs):
            made = make_trainer(*args, **kwargs)
            made.losses = self.around(made, made.losses)
            return made

        monkeypatch.setattr(build, "trainer", trainer)

    def around(self, trainer, losses):
        def planted(batch):
            state = trainer.state
            position = next(p for p in range(state.position, 10**6) if p not in trainer.left_out)
            if self.stop_before == state.step + 1:
                raise KeyboardInterrupt
            self.seen.append((state.step + 1, position))
            if position in self.no_memory:
                raise torch.OutOfMemoryError(NO_MEMORY)
            found = losses(batch)
            return replace(found, sums=found.sums * float("nan")) if position in self.nan else found

        return planted


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1][1]).tensors["weights"]


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_a_batch_without_memory_is_left_out_named_and_left_out_again_after_a_kill(
    tmp_path, model, monkeypatch
):
    settings = {"train": {"steps": 6}, "save": {"save_every": 2}}
    planted = Planted(monkeypatch, no_memory={2})
    straight = train(training_config(tmp_path, model, "straight", **settings))
    assert planted.seen == [(1, 0), (2, 1), (3, 2), (3, 3), (4, 4), (5, 5), (6, 6)]
    assert "note: step 3: no memory for a batch, which is left out: " in log(straight)
    assert ".png" in log(straight).split("left out: ")[1].splitlines()[0]
    # Killed after the batch was left out and before the next save; then there is memory again.
    planted.seen.clear()
    planted.stop_before = 4
    broken = training_config(tmp_path, model, "broken", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    planted.stop_before, planted.no_memory = None, set()
    folder = train(broken)
    assert planted.seen == [(1, 0), (2, 1), (3, 2), (3, 3), (3, 3), (4, 4), (5, 5), (6, 6)]
    assert "note: 1 batches are passed over that failed before" in log(folder)
    assert equal(weights(straight), weights(folder))
    assert [row["loss"] for row in read_metrics(straight / "metrics.jsonl")] == [
        row["loss"] for row in read_metrics(folder / "metrics.jsonl")
    ]


def test_three_batches_in_a_row_without_memory_end_the_run_with_remedies_and_stay(
    tmp_path, model, monkeypatch
):
    planted = Planted(monkeypatch, no_memory=range(3, 100))
    path = training_config(tmp_path, model, "full", train={"steps": 9})
    with pytest.raises(RunError) as caught:
        train(path)
    text = str(caught.value)
    assert "step 4: not enough memory for 3 batches in a row, the last of " in text and ".png" in text
    assert text.index("bf16") < text.index("gradient_checkpointing: true") < text.index("batch_size: 1 with")
    assert [position for _, position in planted.seen] == [0, 1, 2, 3, 4, 5]
    status = read_status(tmp_path / "out" / "full" / "status.json")
    assert status.phase == "failed" and "Traceback" not in log(tmp_path / "out" / "full")
    assert "note: the state after step 3 was saved" in log(tmp_path / "out" / "full")
    # With the remedy taken none of them is left out.
    planted.no_memory, planted.seen = set(), []
    train(training_config(tmp_path, model, "full", train={"steps": 5, "gradient_checkpointing": True}))
    assert planted.seen == [(4, 3), (5, 4)]


def test_no_memory_for_an_update_saves_nothing_half_updated(tmp_path, model, monkeypatch):
    from toolkit.training.updates import GuardedOptimizer

    step, calls = GuardedOptimizer.step, []

    def fail_at_third(self, finite):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError(NO_MEMORY)
        step(self, finite)

    monkeypatch.setattr(GuardedOptimizer, "step", fail_at_third)
    path = training_config(tmp_path, model, "update", save={"save_every": 1})
    with pytest.raises(RunError, match=r"step 3: not enough memory for the optimizer .* adamw8bit"):
        train(path)
    assert [step for step, _ in list_checkpoints(tmp_path / "out" / "update" / "checkpoints")] == [1, 2]


def test_a_refused_step_is_rolled_back_and_the_batches_since_the_checkpoint_left_out(
    tmp_path, model, monkeypatch
):
    planted = Planted(monkeypatch, nan={5})
    settings = {"train": {"steps": 8, "on_non_finite": "rollback"}, "save": {"save_every": 4}}
    folder = train(training_config(tmp_path, model, "rolled", **settings))
    # Step 6 is refused, which is known while step 7 runs; then step 5 begins again with what comes after.
    assert planted.seen == [
        *[(step, step - 1) for step in range(1, 8)], (5, 6), (6, 7), (7, 8), (8, 9),
    ]  # fmt: skip
    text = log(folder)
    assert "note: step 6 was refused (not finite); back to step 4, leaving out the 2 batches since" in text
    assert ".png" in text.split("Pictures of the refused step: ")[1].splitlines()[0]
    rows = read_metrics(folder / "metrics.jsonl")
    assert [(row["step"], row["attempt"]) for row in rows] == [(s, 1 + (s > 4)) for s in range(1, 9)]
    assert all(row["loss"] is not None for row in rows)
    assert read_status(folder / "status.json").attempt == 2
    assert json.loads((folder / "coverage.json").read_text())["exact"], "what was left out was not shown"
    # As if those batches had never been: from the same checkpoint, with the record alone.
    planted.nan = set()
    twin = tmp_path / "out" / "twin"
    record = json.loads((folder / "checkpoints" / "left_out.json").read_text())
    (twin / "checkpoints").mkdir(parents=True)
    entries = [record["entries"][0]]
    (twin / "checkpoints" / "left_out.json").write_text(json.dumps(record | {"entries": entries}))
    train(training_config(tmp_path, model, "twin", **settings))
    assert equal(weights(folder), weights(twin))


def test_rolling_back_ends_where_it_does_not_help(tmp_path, model, monkeypatch):
    planted = Planted(monkeypatch, nan=range(100))
    path = training_config(tmp_path, model, "hopeless", train={"steps": 8, "on_non_finite": "rollback"})
    with pytest.raises(NonFiniteError, match="step 1: the loss is not finite"):
        train(path)
    tried = len(planted.seen)
    assert tried <= 8
    with pytest.raises(NonFiniteError):
        train(path)
    assert len(planted.seen) - tried <= 2, "a later start must not try all over again"


def test_skipping_goes_on_and_tells_how_many(tmp_path, model, monkeypatch):
    Planted(monkeypatch, nan={1})
    folder = train(training_config(tmp_path, model, "skipped", train={"on_non_finite": "skip"}))
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["loss"] is None for row in rows] == [False, True, False, False]
    assert "note: 1 of 4 updates were refused" in log(folder)


def test_previews_without_memory_are_left_out_and_training_goes_on(tmp_path, model, monkeypatch):
    from toolkit.training import previews

    render = previews.render

    def scarce(architecture, requests, **rest):
        if requests[0].prompt == "a box":
            raise torch.OutOfMemoryError(NO_MEMORY)
        return render(architecture, requests, **rest)

    monkeypatch.setattr(previews, "render", scarce)
    folder = train(training_config(tmp_path, model, "previews", train={"disable_sampling": False}))
    assert log(folder).count("not enough memory for a preview") == 3
    names = {path.stem[-1] for path in (folder / "samples").iterdir()}
    assert names == {"0"}, "pictures keep the number of their prompt"
    assert read_status(folder / "status.json").phase == "finished"


@pytest.mark.parametrize(
    ("method", "doing"), [("encode_images", "caching latents"), ("encode_prompts", "encoding captions")]
)
def test_no_memory_while_caching_is_one_line(tmp_path, model, monkeypatch, method, doing):
    from toolkit.models.sd15.model import SD15

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError(NO_MEMORY)

    monkeypatch.setattr(SD15, method, fail)
    with pytest.raises(RunError, match=rf"not enough memory while {doing}.*\(cheapest first: "):
        train(training_config(tmp_path, model, "caching"))
