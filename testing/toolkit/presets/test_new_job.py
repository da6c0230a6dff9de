"""A job file from a folder of pictures: passes the check, says what it chose, overwrites nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import run
from jobs.preflight import check_files
from testing.job_helpers import make_dataset
from toolkit.config_modules.loading import load_job
from toolkit.errors import EXIT_OK, EXIT_USAGE, ConfigError, DatasetError, ModelError
from toolkit.models.catalogue import ARCHITECTURES, find_architecture
from toolkit.presets import new_job
from toolkit.presets.catalogue import Card, find_preset, preset_names, read_preset
from toolkit.presets.new_job import make_plan, render, write_job
from toolkit.presets.pictures import Look, look_at
from toolkit.runs.metrics import read_metrics


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures/ in it, on a machine without a card."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(new_job, "detect_vram", lambda: None)
    make_dataset(tmp_path / "pictures")
    return tmp_path


def process_of(path: str) -> dict[str, Any]:
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))["config"]["process"][0]


PRESETS = [(name, card) for name in preset_names() for card in read_preset(name).cards]


@pytest.mark.parametrize(("name", "card"), PRESETS, ids=lambda value: str(getattr(value, "vram", value)))
@pytest.mark.parametrize("trigger", [None, "zrb: 'x' #1"])
def test_every_preset_gives_a_file_that_can_be_loaded(name, card, trigger, place):
    preset = read_preset(name)
    entry = find_architecture(preset.arch)
    plan = make_plan(preset, card, look_at(place / "pictures"), name="x", trigger=trigger)
    text = render(plan, "pictures", Path("x.yml"))
    assert yaml.safe_load(text)["config"]["process"][0].get("trigger_word") == trigger
    assert preset.noise_scheduler == entry.noise_scheduler
    if not entry.supported:
        assert entry.name in ARCHITECTURES
        return
    Path("x.yml").write_text(text, encoding="utf-8")
    job = load_job("x.yml")
    (process,) = job.config.process
    assert job.notes == []
    assert process.train.batch_size == card.batch_size
    assert process.datasets[0].resolution == list(card.resolution or preset.resolution)


@pytest.mark.parametrize(
    "model", [name for name in preset_names() if find_architecture(read_preset(name).arch).supported]
)
def test_the_command_writes_what_passes_the_check(model, capsys):
    assert run.main(["--new", "pictures", "--model", model, "--vram", "80", "--trigger", "zrb"]) == EXIT_OK
    out = capsys.readouterr().out
    assert out.rstrip().endswith("python run.py --check pictures.yml\n  python run.py pictures.yml")
    (report,) = check_files(["pictures.yml"], None)
    assert report.all_problems == []


def test_it_says_what_it_saw_and_chose():
    lines = write_job("pictures", "tiny-sd", trigger="zrb")
    text = "\n".join(lines)
    assert "6 pictures, 24 x 24 to 48 x 48 px; 1 tall, 3 square, 2 wide" in text
    assert "6 of 6 pictures have captions (.txt)" in text
    assert "steps       200:" in text
    assert "6 pictures: ten or more learn a subject better" in text


def test_the_trigger_and_captions_become_prompts(place):
    (place / "pictures" / "disk1.txt").write_text("a zrb disk --cfg 3, [name]")
    write_job("pictures", "tiny-sd", trigger="zrb")
    process = process_of("pictures.yml")
    prompts = process["sample"]["prompts"]
    assert process["trigger_word"] == "zrb"
    assert prompts[0] == "[trigger], a disk number 0"
    assert prompts[-1] == "a landscape with mountains"
    assert len(prompts) == 4
    assert new_job._as_prompt("a zrb disk --cfg 3, [name]", "zrb") == "a [trigger] disk -cfg 3, [trigger]"
    assert new_job._as_prompt("zrbs and word " * 30, None).count(" ") == 29
    assert new_job._as_prompt("[trigger]", None) == "a photo"


def test_pictures_without_captions(place):
    for path in (place / "pictures").glob("*.txt"):
        path.unlink()
    lines = write_job("pictures", "tiny-sd", trigger="zrb")
    process = process_of("pictures.yml")
    assert process["datasets"][0]["default_caption"] == "[trigger]"
    assert process["sample"]["prompts"][0] == "[trigger]"
    assert any("no captions: every picture will be described by 'zrb' alone" in line for line in lines)
    write_job("pictures", "tiny-sd", out="plain")
    assert process_of("plain.yml")["datasets"][0]["default_caption"] == ""


def test_the_commonest_kind_of_caption_is_used(place):
    for index in range(6):
        (place / "pictures" / f"disk{index}.txt").unlink()
        (place / "pictures" / f"disk{index}.caption").write_text("a disk")
    write_job("pictures", "tiny-sd")
    assert process_of("pictures.yml")["datasets"][0]["caption_ext"] == "caption"


def look(*sizes: tuple[int, int], count: int = 20) -> Look:
    return Look(Path("x"), list(sizes) * count, [], [], ".txt")


def test_steps_follow_the_number_of_pictures_within_bounds():
    preset, card = read_preset("sd15"), Card(8, 2, True, "adamw")
    steps = [
        make_plan(preset, card, look((512, 512), count=n), name="x", trigger=None).steps for n in (5, 30, 900)
    ]
    assert steps == [1000, 1500, 3000]
    large = Card(8, 4, True, "adamw", gradient_accumulation=2)
    assert make_plan(preset, large, look((512, 512), count=100), name="x", trigger=None).steps == 1250


@pytest.mark.parametrize(
    ("size", "expected"), [((800, 800), (512, 512)), ((600, 900), (384, 640)), ((9000, 100), (1024, 256))]
)
def test_previews_have_the_shape_of_the_pictures(size, expected):
    plan = make_plan(read_preset("sd15"), Card(8, 2, True, "adamw"), look(size), name="x", trigger=None)
    assert plan.width * plan.height <= 512 * 512
    assert (plan.width, plan.height) == expected


@pytest.mark.parametrize(("vram", "expected"), [(6, 6), (7.9, 6), (12, 12), (23, 16), (80, 24)])
def test_the_largest_card_that_fits(vram, expected):
    assert read_preset("sd15").card(vram).vram == expected


def test_a_card_that_is_too_small():
    with pytest.raises(ConfigError, match="needs a card of at least 6 GB, not 4") as caught:
        write_job("pictures", "sd15", vram=4)
    assert caught.value.problems[0].code == "new.vram"


def test_an_existing_file_stays(place):
    (place / "pictures.yml").write_text("mine")
    with pytest.raises(ConfigError, match="exists already") as caught:
        write_job("pictures", "tiny-sd")
    assert caught.value.problems[0].code == "new.exists"
    assert (place / "pictures.yml").read_text() == "mine"
    write_job("pictures", "tiny-sd", out="deep/other")
    assert (place / "deep" / "other.yml").is_file()


def test_names(place):
    (place / "pictures").rename(place / "my pictures!")
    write_job("my pictures!", "tiny-sd")
    assert yaml.safe_load(Path("my_pictures.yml").read_text())["config"]["name"] == "my_pictures"
    write_job("my pictures!", "tiny-sd", name="cats")
    assert Path("cats.yml").is_file()
    with pytest.raises(ConfigError, match="holds a path separator"):
        write_job("my pictures!", "tiny-sd", name="a/b")


@pytest.mark.parametrize("folder", ["cats ${HOME}", "[name]"])
def test_a_folder_that_a_job_file_would_read_as_another(place, folder):
    (place / "pictures").rename(place / folder)
    with pytest.raises(ConfigError, match=r"reads (\$\{HOME\}|\[name\]) as something else") as caught:
        write_job(folder, "tiny-sd", name="cats")
    assert caught.value.problems[0].code == "new.folder"
    assert not Path("cats.yml").exists()


def test_a_caption_that_a_job_file_would_read_as_another(place):
    (place / "pictures" / "disk0.txt").write_text("a cat, ${HOME} [name]")
    path = Path("pictures.yml")
    write_job("pictures", "tiny-sd")
    assert "${" not in path.read_text()
    assert load_job(path).config.process[0].sample.requests()[0].prompt == "a cat, HOME"


@pytest.mark.parametrize("trigger", ["", "  ", "a\nb", "[trigger]"])
def test_words_that_cannot_be_triggers(trigger):
    with pytest.raises(ConfigError, match="cannot be a trigger word") as caught:
        write_job("pictures", "tiny-sd", trigger=trigger)
    assert caught.value.problems[0].code == "new.trigger"


def test_folders_that_hold_no_pictures(place):
    (place / "empty").mkdir()
    with pytest.raises(DatasetError, match="no images found"):
        write_job("empty", "tiny-sd")
    with pytest.raises(DatasetError, match="no such folder"):
        write_job("nowhere", "tiny-sd")
    (place / "empty" / "a.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match="no images found"):
        write_job("empty", "tiny-sd")
    Image.new("RGB", (64, 64)).save(place / "empty" / "b.png")
    assert look_at(place / "empty").unreadable == ["a.png"]


def test_models_that_are_unknown_or_not_supported_yet():
    with pytest.raises(ConfigError, match=r"unknown model 'sd51' \(did you mean 'sd15'\?\)"):
        find_preset("sd51")
    later = next(entry.name for entry in ARCHITECTURES.values() if not entry.supported)
    with pytest.raises(ModelError, match="is not supported yet"):
        find_preset(later)
    assert find_preset("sd1.5").name == "sd15"


def test_mistakes_on_the_command_line(capsys):
    with pytest.raises(SystemExit) as caught:
        run.main(["--new", "pictures"])
    assert caught.value.code == EXIT_USAGE
    assert "--new needs --model" in capsys.readouterr().err
    assert run.main(["--new", "nowhere", "--model", "tiny-sd"]) == EXIT_USAGE
    assert capsys.readouterr().err == "error: nowhere: no such folder\n"


@pytest.mark.parametrize(
    ("answer", "expected"), [("24564\n", 24), ("8192\n8192\n", 8), ("n/a", None), ("", None)]
)
def test_the_card_is_asked(place, monkeypatch, answer, expected):
    monkeypatch.undo()
    tool = place / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nprintf '{answer.encode('unicode_escape').decode()}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    assert new_job.detect_vram() == expected


def test_what_was_written_trains(place):
    from jobs.base_job import run_job

    write_job("pictures", "tiny-sd", trigger="zrb")
    path = Path("pictures.yml")
    text = path.read_text().replace("steps: 200", "steps: 2").replace("sample_steps: 15", "sample_steps: 1")
    path.write_text(text)
    run_job(load_job(path))
    folder = place / "output" / "pictures"
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2]
    assert (folder / "pictures.safetensors").is_file()


def test_what_a_run_would_refuse_is_named(place):
    (place / "pictures" / "disk0.png").write_bytes(b"")
    (place / "pictures" / "disk1.txt").write_bytes(b"\xff\xfea")
    told = "\n".join(write_job("pictures", "tiny-sd"))
    assert "1 picture that cannot be read: disk0.png" in told
    assert "1 caption that cannot be read: disk1.txt" in told
    assert "a run is refused until what cannot be read is mended or gone" in told


def test_a_file_that_cannot_be_written_is_a_mistake_on_the_command_line(place):
    (place / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        write_job("pictures", "tiny-sd", out="file/job.yml")
    assert caught.value.exit_code == EXIT_USAGE
