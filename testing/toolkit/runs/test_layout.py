"""Names and folders of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from toolkit.errors import ConfigError, RunError
from toolkit.runs.layout import RunFolder

PLAIN_NAMES = ["foo", "foo_bar", "my run 2", "a+b(c)[1]*^$|.d", "кот", "v1.5"]


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_own_names_are_read_back(tmp_path: Path, name: str) -> None:
    run = RunFolder(tmp_path, name)
    assert run.final_name() == f"{name}.safetensors"
    assert run.step_name(250) == f"{name}_000000250.safetensors"
    for extension in (".safetensors", ".pt", ""):
        assert run.parse_step(tmp_path / run.step_name(250, extension)) == 250
    for other in (run.final_name(), f"{name}_250.safetensors", f"x{name}_000000250", f"{name}_000000250.txt"):
        assert run.parse_step(other) is None


def test_another_runs_files_are_never_claimed(tmp_path: Path) -> None:
    for name in PLAIN_NAMES:
        for other in PLAIN_NAMES:
            step = RunFolder(tmp_path, name).parse_step(RunFolder(tmp_path, other).step_name(7))
            assert step == (7 if name == other else None)
    assert RunFolder(tmp_path, "foo").parse_step("foo_bar_000000250.safetensors") is None
    assert RunFolder(tmp_path, "a.c").parse_step("abc_000000250.safetensors") is None


@pytest.mark.parametrize(
    "name", ["", " ", "a/b", "a\\b", "..", ".", ".hidden", "a\n", "tab\there", "x" * 201, "a "]
)
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunFolder(tmp_path, name)
    (problem,) = caught.value.problems
    assert problem.key == "config.name"
    assert problem.remedy


@pytest.mark.parametrize("name", ["foo", "a+b(c)[1]*"])
def test_prune_keeps_the_last_steps_and_what_is_not_ours(tmp_path: Path, name: str) -> None:
    run = RunFolder(tmp_path, name)
    run.create()
    doomed = [run.path / run.step_name(step) for step in (100, 200)]
    folder = run.path / run.step_name(200, "")
    kept = [run.path / run.step_name(step) for step in (300, 1_000_000_000)]
    kept += [
        run.path / other for other in (f"{name}_bar_000000100.safetensors", run.final_name(), "optimizer.pt")
    ]
    for path in [*kept, *doomed]:
        path.touch()
    folder.mkdir()
    (folder / "model_index.json").touch()
    assert run.prune_step_files(2) == sorted([*doomed, folder], key=lambda path: (run.parse_step(path), path))
    assert not any(path.exists() for path in [*doomed, folder])
    assert all(path.exists() for path in kept)
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")]
    assert run.prune_step_files(2) == []
    with pytest.raises(ValueError, match="keep"):
        run.prune_step_files(0)


def test_prune_removes_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "foo")
    run.create()
    precious = tmp_path / "precious"
    precious.mkdir()
    (run.path / run.step_name(1, "")).symlink_to(precious)
    (run.path / run.step_name(2)).touch()
    run.prune_step_files(1)
    assert precious.exists()
    assert [step for step, _ in run.step_files()] == [2]


def test_samples_are_grouped_and_the_newest_counts(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "foo")
    assert run.samples_by_step() == {}
    run.create()
    assert run.sample_name(1700, 250, 3) == "1700__000000250_3.jpg"
    for name in (
        run.sample_name(1, 0, 0), run.sample_name(5, 250, 0), run.sample_name(40, 250, 0, "png"),
        run.sample_name(6, 250, 10), "notes.txt", ".x__000000000_0.jpg", "7__000000250_1.jpg.part",
    ):  # fmt: skip
        (run.samples / name).touch()
    grouped = run.samples_by_step()
    assert list(grouped) == [0, 250]
    assert {index: path.name for index, path in grouped[250].items()} == {
        0: "40__000000250_0.png",
        10: "6__000000250_10.jpg",
    }


def test_create_twice_and_where_it_cannot(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "deep" / "er", "foo")
    run.create()
    run.create()
    assert run.samples.is_dir() and run.checkpoints.is_dir() and run.commands.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="training_folder"):
        RunFolder(tmp_path / "file", "foo").create()


def test_config_keeps_variables_and_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "foo")
    run.create()
    raw = {
        "job": "train",
        "config": {"name": "foo", "token": "${HF_TOKEN}", "path": Path("a/b"), "size": (1, 2)},
    }
    run.write_config(raw)
    text = run.config_path.read_text(encoding="utf-8")
    assert text.startswith("# schema_version: 1\njob: train\n")
    loaded = yaml.safe_load(text)
    assert loaded["config"] == {"name": "foo", "token": "${HF_TOKEN}", "path": "a/b", "size": [1, 2]}


def test_models_of_a_run_that_began_again_are_set_aside_and_never_crowd_out_new_ones(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path, "foo")
    run.create()
    for step in (1, 2, 4, 5):
        (run.path / run.step_name(step)).write_text(f"old {step}")
    (run.path / run.final_name()).write_text("old final")
    assert run.prune_step_files(1, current=2) == [run.path / run.step_name(1)]
    assert run.set_aside(after_step=4) == [run.path / "earlier" / run.step_name(5)]
    moved = run.set_aside(after_step=0)
    assert sorted(path.name for path in moved) == ["foo.safetensors", run.step_name(2), run.step_name(4)]
    (run.path / run.final_name()).write_text("newer")
    assert [path.name for path in run.set_aside(after_step=0)] == ["foo.2.safetensors"]
    assert (run.path / "earlier" / "foo.safetensors").read_text() == "old final"
    assert run.set_aside(after_step=0) == []


def test_the_best_model_outlives_its_numbered_file(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "foo")
    run.create()
    for step in (1, 2, 3):
        (run.path / run.step_name(step)).write_text(f"model {step}")
    best = run.point_to_best(run.path / run.step_name(1))
    assert best == run.path / "foo_best.safetensors"
    assert best.samefile(run.path / run.step_name(1)), "no second copy on the disk"
    assert run.point_to_best(run.path / run.step_name(1)) == best
    assert run.prune_step_files(1) == [run.path / run.step_name(1), run.path / run.step_name(2)]
    assert best.read_text() == "model 1"
    run.point_to_best(run.path / run.step_name(3))
    assert best.read_text() == "model 3"
    assert [path.name for path in run.path.glob(".*")] == []
    (run.path / "food_best.safetensors").touch()
    assert run.best_files() == [best]
    assert run.parse_step(best) is None
    assert run.set_aside(after_step=0)[-1] == run.path / "earlier" / "foo_best.safetensors"


def test_the_best_of_full_models_is_a_folder_that_shares_its_files(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "foo")
    run.create()
    for step in (1, 2):
        (run.path / run.step_name(step, "") / "unet").mkdir(parents=True)
        (run.path / run.step_name(step, "") / "unet" / "weights").write_text(str(step))
        best = run.point_to_best(run.path / run.step_name(step, ""))
    assert best == run.path / "foo_best"
    assert (best / "unet" / "weights").samefile(run.path / run.step_name(2, "") / "unet" / "weights")


def test_where_nothing_can_be_linked_the_best_is_copied(tmp_path: Path, monkeypatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    run = RunFolder(tmp_path, "foo")
    run.create()
    (run.path / "foo.safetensors").write_text("final")
    best = run.point_to_best(run.path / "foo.safetensors")
    assert best.read_text() == "final"
    assert not best.samefile(run.path / "foo.safetensors")


def test_previews_of_an_earlier_attempt_leave_the_contact_sheet(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "foo")
    run.create()
    for step in (0, 10, 20):
        (run.samples / run.sample_name(7, step, 0, "png")).write_text("old")
    (run.samples / "notes.txt").write_text("not ours")
    assert run.set_aside_samples(after_step=10) == 1
    assert sorted(run.samples_by_step()) == [0, 10]
    (run.samples / run.sample_name(7, 20, 0, "png")).write_text("newer")
    assert run.set_aside_samples(after_step=0) == 3
    assert run.list_samples() == [] and (run.samples / "notes.txt").exists()
    kept = sorted(path.name for path in (run.path / "earlier" / "samples").iterdir())
    names = [run.sample_name(7, step, 0, "png") for step in (0, 10, 20)]
    assert kept == [names[0], names[1], names[2].replace(".png", ".2.png"), names[2]]


@pytest.mark.parametrize("name", ["v1.5", "earlier"])
def test_whole_folders_are_set_aside_under_their_name(tmp_path: Path, name: str) -> None:
    """Full models are folders; the dot of a name is no extension, and `earlier` never holds itself."""
    run = RunFolder(tmp_path, name)
    run.create()
    for expected in (f"{name}_000000003", f"{name}_000000003.2"):
        (run.path / run.step_name(3, "")).mkdir()
        assert run.set_aside(after_step=0) == [run.path / "earlier" / expected]
    (run.path / run.final_name("")).mkdir(exist_ok=True)
    moved = run.set_aside(after_step=0)
    assert moved == ([] if name == "earlier" else [run.path / "earlier" / name])
    (run.path / run.final_name("")).mkdir(exist_ok=True)
    moved = run.set_aside(after_step=0)
    assert moved == ([] if name == "earlier" else [run.path / "earlier" / f"{name}.2"])


def test_what_cannot_be_moved_or_written_is_told(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "foo")
    run.create()
    (run.path / "earlier").touch()
    (run.path / run.step_name(3)).touch()
    with pytest.raises(RunError, match="earlier: cannot be written"):
        run.set_aside(after_step=0)
    assert (run.path / run.step_name(3)).exists()
    run.config_path.mkdir()
    with pytest.raises(RunError, match=r"config\.yaml: cannot be written: Is a directory"):
        run.write_config({})
