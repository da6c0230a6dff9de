"""The judge of drawings, and the score of a model that is made of its verdicts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from testing.tiny_models import build_tiny_sd15
from tools import score_tiny
from tools.draw_shapes import SHAPES, WITHHELD, make_drawing, render
from tools.score_tiny import (
    Judged,
    Sampling,
    choose_prompts,
    draw_sheet,
    judge_pictures,
    missed,
    sample,
    shares,
    table,
)
from tools.shape_classifier import (
    LABELS,
    NONE,
    WEIGHTS,
    disturb,
    judge,
    labels_of,
    load_classifier,
    own_score,
    to_pixels,
    train,
)
from tools.shape_foils import FORMS, SIDE, make_foil, warp

NUM = 600


@pytest.fixture(scope="module")
def net():
    return load_classifier()


@pytest.fixture(scope="module")
def fresh():
    """Drawings that the judge was not trained on, and their pictures."""
    drawings = [make_drawing(index, 77) for index in range(NUM)]
    return drawings, to_pixels([render(drawing) for drawing in drawings])


@pytest.mark.parametrize("disturbed", [False, True])
def test_the_judge_reads_drawings_that_it_has_not_seen(net, fresh, disturbed):
    drawings, pixels = fresh
    answers = labels_of(drawings)
    found = judge(net, disturb(pixels, torch.Generator().manual_seed(3)) if disturbed else pixels)
    for name in LABELS:
        right = sum(a == b for a, b in zip(found[name], answers[name].tolist(), strict=True)) / NUM
        assert right >= (0.97 if disturbed else 0.99), (name, right)


def test_the_judge_rejects_foils_and_spoilt_drawings(net, fresh):
    none = LABELS["shape"].index(NONE)
    foils = judge(net, to_pixels([make_foil(index, 77) for index in range(NUM)]))["shape"]
    assert foils.count(none) / NUM >= 0.9
    bent = warp(fresh[1], torch.full((NUM,), 2.5), torch.Generator().manual_seed(4))
    assert judge(net, bent)["shape"].count(none) / NUM >= 0.9


@pytest.mark.parametrize("form", sorted({form.__name__ for form in FORMS}))
def test_the_judge_rejects_every_kind_of_foil(net, form):
    from toolkit.seeding import keyed_random
    from tools.draw_shapes import paint

    make = {one.__name__: one for one in FORMS}[form]
    draw = keyed_random("kind of foil", form)
    pictures = []
    for _ in range(60):
        mask = make(SIDE / 2, SIDE / 2, SIDE * draw.uniform(0.27, 0.37), draw).resize(
            (32, 32), Image.Resampling.BOX
        )
        pictures.append(paint(mask, (215, 25, 32), (255, 255, 255)))
    rejected = judge(net, to_pixels(pictures))["shape"].count(LABELS["shape"].index(NONE))
    assert rejected / 60 >= 0.85


def test_the_record_beside_the_weights_is_what_they_reach(net):
    facts = json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    assert facts["made_by"] == "python -m tools.shape_classifier --train"
    assert all(facts["score"][name] >= 0.99 for name in LABELS)
    again = own_score(net, num=500)
    for name in LABELS:
        assert again[name] == pytest.approx(facts["score"][name], abs=0.01)
    assert WEIGHTS.stat().st_size <= 400_000


def test_one_seed_gives_one_judge_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    one, two, other = (train(num_drawings=60, num_foils=30, steps=3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_larger_pictures_are_judged_at_32_pixels(net):
    drawing = make_drawing(3, 77)
    small, large = render(drawing), render(drawing).resize((64, 64), Image.Resampling.NEAREST)
    assert torch.equal(to_pixels([small]), to_pixels([large]))


@pytest.mark.parametrize("split", ["train", "withheld"])
def test_prompts_ask_for_every_shape_equally_often(split):
    chosen = choose_prompts(50, split)
    assert chosen == choose_prompts(50, split)
    assert choose_prompts(23, split) == chosen[:20] + choose_prompts(23, split)[20:]
    assert Counter(drawing.shape for drawing in chosen) == dict.fromkeys(SHAPES, 5)
    assert all(((d.shape, d.colour) in WITHHELD) == (split == "withheld") for d in chosen)
    assert len(choose_prompts(7, split)) == 7


def test_true_drawings_score_full_marks_and_wrong_ones_are_marked():
    wanted = choose_prompts(40, "train")
    good = shares(judge_pictures(wanted, [render(drawing) for drawing in wanted]))
    assert (good["shape"], good["all_three"], good["n"]) == (1.0, 1.0, 40)
    shuffled = [render(drawing) for drawing in wanted[1:] + wanted[:1]]
    judged = judge_pictures(wanted, shuffled)
    bad = shares(judged)
    assert bad["shape"] == 0.0  # shapes come in turn: each picture shows its neighbour's
    assert bad["all_three"] == 0.0
    sheet = draw_sheet(judged[:10])
    red = (0xD1, 0x24, 0x2F)
    assert sheet.width > 1000
    assert sheet.convert("RGB").getpixel((9, 9)) == red


def test_shares_count_each_question_on_its_own():
    drawing = make_drawing(0, 77)
    right = {"shape": drawing.shape, "colour": drawing.colour, "background": drawing.background}
    picture = render(drawing)
    judged = [Judged(drawing, picture, right), Judged(drawing, picture, right | {"shape": NONE})]
    found = shares(judged)
    assert (found["shape"], found["colour"], found["all_three"]) == (0.5, 1.0, 0.5)
    assert found["by_shape"] == {drawing.shape: 0.5}


def test_missed_goals_are_named():
    good = {"shape": 0.9, "colour": 0.95, "background": 0.95, "withheld": {"all_three": 0.75}}
    assert missed(good) == []
    bad = missed(good | {"shape": 0.89, "withheld": {"all_three": float("nan")}})
    assert [line.split(",")[0] for line in bad] == [
        "seen pairs: shape 89.0%",
        "withheld pairs: all three nan%",
    ]
    assert missed({"shape": 0.95, "colour": 1.0, "background": 0.1}) == [
        "seen pairs: background 10.0%, at least 95% wanted"
    ]
    assert "75.0%" in table(good | {"n": 1})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("tiny") / "model")


def test_a_picture_does_not_depend_on_its_batch(tiny):
    from toolkit.model_utils import load_model_for_inference

    pipeline = load_model_for_inference(tiny).pipeline()
    prompts = ["a red circle", "a blue square", "a green star"]
    one, two = (
        sample(pipeline, prompts, seed=0, sampling=Sampling(size=16, steps=2, batch_size=size))
        for size in (1, 3)
    )
    for a, b in zip(one, two, strict=True):
        assert int((to_pixels([a]) - to_pixels([b])).abs().max() * 127.5) <= 1
    other = sample(pipeline, prompts, seed=1, sampling=Sampling(size=16, steps=2))
    assert other[0].tobytes() != one[0].tobytes()


def test_the_command_writes_score_and_sheet(tiny, tmp_path, capsys):
    arguments = ["--model", str(tiny), "--prompts", "4", "--steps", "2", "--out", str(tmp_path / "a")]
    assert score_tiny.main(arguments) == 0
    report = json.loads((tmp_path / "a" / "score.json").read_text(encoding="utf-8"))
    assert {"shape", "colour", "background", "all_three", "n", "withheld", "settings", "model_hash"} <= set(
        report
    )
    assert (report["n"], report["withheld"]["n"]) == (4, 2)
    assert report["missed"]  # random weights draw nothing
    assert (tmp_path / "a" / "sheet.png").is_file()
    assert "missed: " in capsys.readouterr().out
    assert score_tiny.main([*arguments[:-1], str(tmp_path / "b"), "--assert"]) == 1
    again = json.loads((tmp_path / "b" / "score.json").read_text(encoding="utf-8"))
    assert again == report


def test_a_missing_model_is_a_line_and_not_a_traceback(tmp_path, capsys):
    assert score_tiny.main(["--model", str(tmp_path / "none")]) != 0
    assert str(tmp_path / "none") in capsys.readouterr().err
