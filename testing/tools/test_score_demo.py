"""The judge of the demo's concept, and the demo's score and sheet."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from testing.tiny_models import build_tiny_sd15
from toolkit.config_modules.loading import load_job
from toolkit.paths import CONFIG_ROOT, DATASETS_ROOT, ROOT
from tools import concept_classifier, score_demo
from tools.concept_classifier import (
    FACES,
    WEIGHTS,
    background_of,
    cut_out,
    face_pool,
    is_face,
    load_classifier,
    load_faces,
    own_score,
    split_faces,
)
from tools.draw_shapes import BACKGROUNDS, Drawing, make_drawing, render, write_drawings
from tools.score_demo import build_score, nearest, nearest_other, table, trigger_prompts, wrapped
from tools.score_tiny import choose_prompts
from tools.shape_classifier import to_pixels


@pytest.fixture(scope="module")
def net():
    return load_classifier()


@pytest.fixture(scope="module")
def assert_demo():
    """.ci/assert_demo.py as a module."""
    spec = importlib.util.spec_from_file_location("assert_demo", ROOT / ".ci" / "assert_demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_judge_is_right_on_what_was_kept_from_it(net):
    facts = json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    assert facts["made_by"] == "python -m tools.concept_classifier --train"
    found = own_score(net, num=300, seed=9)
    for score in (found, facts["score"]):
        assert score["right"] >= 0.95
        assert min(score.values()) >= 0.9
    assert WEIGHTS.stat().st_size <= 400_000


def test_faces_kept_apart_are_really_apart():
    learned, apart = split_faces(load_faces())
    assert (len(learned), len(apart)) == (18, 6)
    assert not {face.tobytes() for face in learned} & {face.tobytes() for face in apart}


def test_the_committed_faces_are_seen_and_bare_circles_are_not(net):
    faces = [Image.open(path) for path in sorted(FACES.glob("*.png"))]
    seen = is_face(net, to_pixels(faces))
    assert sum(seen) >= 23
    bare = [
        render(Drawing("circle", colour, background, "large", "centre", 16, 16, 12.0, ""))
        for colour in ("yellow", "orange")
        for background in BACKGROUNDS
    ]
    assert not any(is_face(net, to_pixels(bare)))


def test_a_cut_out_keeps_the_face_and_drops_the_background():
    for path in sorted(FACES.glob("*.png"))[:8]:
        ground = BACKGROUNDS[background_of(path.with_suffix(".txt").read_text("utf-8"))]
        face = cut_out(Image.open(path), ground)
        alpha = face.getchannel("A")
        assert alpha.getpixel((0, 0)) == 0
        assert alpha.getpixel((32, 32)) == 255
        # Put back where it was, it is the picture again but for the rim.
        again = Image.new("RGB", face.size, ground)
        again.paste(face, (0, 0), face)
        assert nearest([again], [Image.open(path)]) < 0.03
    with pytest.raises(ValueError, match="background"):
        cut_out(Image.new("RGB", (64, 64), (1, 2, 3)), (1, 2, 3))


def test_one_seed_gives_the_same_pools():
    faces = load_faces()
    assert torch.equal(face_pool(faces, 8, 3), face_pool(faces, 8, 3))
    assert not torch.equal(face_pool(faces, 8, 3), face_pool(faces, 8, 4))
    assert not torch.equal(face_pool(faces, 8, 3), face_pool(faces, 8, 3, near=True))


def test_distance_is_rms_in_zero_to_one_to_the_nearest():
    def plain(value: int) -> Image.Image:
        return Image.new("RGB", (32, 32), (value,) * 3)

    assert nearest([plain(0)], [plain(255)]) == pytest.approx(1.0)
    assert nearest([plain(0), plain(51)], [plain(255), plain(51)]) == pytest.approx((0.2 + 0.0) / 2, abs=1e-6)
    half = plain(0)
    half.paste((255, 255, 255), (0, 0, 32, 16))
    assert nearest([half], [plain(0)]) == pytest.approx(0.5**0.5)
    assert nearest_other([plain(0), plain(0), plain(255)]) == pytest.approx(1 / 3)


def test_prompts_use_the_trigger_of_the_job_and_every_background():
    prompts = trigger_prompts(64)
    section = load_job(CONFIG_ROOT / "examples" / "demo.yml").config.process[0]
    assert len(set(prompts)) == len(BACKGROUNDS)
    assert prompts[:8] == prompts[8:16]
    captions = {path.read_text(encoding="utf-8").strip() for path in FACES.glob("*.txt")}
    assert set(prompts) == captions
    assert {section.datasets[0].folder_path} == {"datasets/zrb_faces"}
    assert set(section.sample.prompts) & captions
    assert not any("zrb" in drawing.caption for drawing in choose_prompts(64, "train"))


def test_the_drawings_of_the_job_are_as_the_script_makes_them(tmp_path):
    folder = DATASETS_ROOT / "drawings"
    facts = json.loads((folder / "drawings.json").read_text(encoding="utf-8"))
    digest = facts.pop("sha256")
    assert write_drawings(tmp_path, **facts) == digest
    for path in sorted(folder.glob("*.png")):
        assert Image.open(path).tobytes() == Image.open(tmp_path / path.name).tobytes()
        assert path.with_suffix(".txt").read_text() == (tmp_path / path.name).with_suffix(".txt").read_text()


def test_the_score_is_what_continuous_integration_reads(assert_demo):
    before = {"concept": [True] + [False] * 9, "others": [True] * 9 + [False], "nearest": 0.2}
    after = {"concept": [True] * 9 + [False], "others": [True] * 8 + [False] * 2, "nearest": 0.1}
    score = build_score(before, after)
    assert score == {
        "before": 0.1, "after": 0.9, "kept_before": 0.9, "kept_after": 0.8,
        "nearest_before": 0.2, "nearest_after": 0.1,
    }  # fmt: skip
    assert assert_demo.failures(score) == []
    assert len(assert_demo.failures(build_score(after, before))) == 2
    text = table(score)
    assert "10.0%" in text
    assert "90.0%" in text
    assert "0.100" in text


def test_long_prompts_end_in_two_lines():
    assert wrapped("a red heart") == "a red heart"
    lines = wrapped("a picture of a small purple triangle at the bottom on a light green background").split(
        "\n"
    )
    assert len(lines) == 2
    assert lines[1].endswith("…")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """A model of random weights and a run folder with a LoRA for it."""
    from toolkit.model_utils import load_model_for_inference
    from toolkit.networks.lora import attach_lora
    from toolkit.networks.saving import save_network

    folder = tmp_path_factory.mktemp("demo")
    model = build_tiny_sd15(folder / "model")
    run = folder / "run"
    run.mkdir()
    sd = load_model_for_inference(model)
    network = attach_lora({"unet": sd.unet}, rank=2, alpha=2.0, seed=0)
    with torch.no_grad():
        for index, parameter in enumerate(network.named_parameters().values()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    save_network(network, run / "run.safetensors", metadata={})
    return model, run


def test_the_command_measures_a_run(finished, capsys):
    model, run = finished
    arguments = ["--run", str(run), "--model", str(model), "--seeds", "8", "--steps", "2"]
    assert score_demo.main(arguments) == 0
    score = json.loads((run / "score.json").read_text(encoding="utf-8"))
    assert all(0 <= score[name] <= 1 for name in ("before", "after", "kept_before", "kept_after"))
    assert score["nearest_before"] != score["nearest_after"]  # the LoRA was on
    assert score["judge"]["right"] >= 0.95
    sheet = Image.open(run / "before_after.png")
    assert sheet.width > 900
    assert sheet.height > 600
    told = capsys.readouterr().out
    assert str(run / "before_after.png") in told
    assert str(run / "loss.png") not in told  # there is none here


def test_a_run_without_lora_is_a_line_and_not_a_traceback(tmp_path, capsys):
    assert score_demo.main(["--run", str(tmp_path / "none")]) != 0
    told = capsys.readouterr().err
    assert str(tmp_path / "none") in told
    assert "demo.yml" in told


def test_a_judge_that_is_often_wrong_measures_nothing(monkeypatch, finished, capsys):
    always = concept_classifier.PictureNet({"concept": 2})
    with torch.no_grad():
        always.heads["concept"].bias.copy_(torch.tensor([100.0, -100.0]))
    monkeypatch.setattr(concept_classifier, "load_classifier", lambda: always)
    assert score_demo.main(["--run", str(finished[1]), "--model", str(finished[0])]) != 0
    assert "--train" in capsys.readouterr().err


def test_drawings_are_no_faces(net):
    pictures = [render(make_drawing(index, 55)) for index in range(300)]
    assert sum(is_face(net, to_pixels(pictures))) <= 3
