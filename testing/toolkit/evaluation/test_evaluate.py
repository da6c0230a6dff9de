"""Losses of images under several captions: the trainer's own, on shared noise, however they are asked for."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from testing.eval_helpers import unseen, write
from toolkit.data.items import Batch
from toolkit.data.scan import scan_dataset
from toolkit.diffusion.criteria import mse
from toolkit.diffusion.diffusion_loss import diffusion_loss
from toolkit.errors import JobStopped, ModelError, RunError
from toolkit.evaluation.contrasts import CaptionPool
from toolkit.evaluation.draws import Design
from toolkit.evaluation.edits import Edit, Editor, Vocabulary, without
from toolkit.evaluation.encodings import Encodings, randomised, zeroed
from toolkit.evaluation.evaluate import Evaluator, Settings
from toolkit.evaluation.measure import Measured, Subject, measure
from toolkit.evaluation.outcomes import Outcome, content_of
from toolkit.evaluation.records import RecordFile
from toolkit.model_utils import load_model_for_inference

NUM = 6
DRAWS = 4
OFF = SimpleNamespace(enabled=lambda on=True: nullcontext())  # a network that does nothing


@pytest.fixture(scope="module")
def model():
    return load_model_for_inference("tiny-sd").architecture


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("drawings"), unseen(NUM))
    return scan_dataset(folder, resolutions=[32], size_multiple=8).require_valid().items


@pytest.fixture
def evaluate(model, items, tmp_path):
    """run(items, settings ...) -> outcomes, with a record file of its own unless one is named."""
    starts = iter(range(100))

    def run(
        which=items, *, editor=None, suggest=False, file: Path | None = None, network=None,
        stop=lambda: False, **settings,
    ):  # fmt: skip
        wanted = Settings(**{"num_draws": DRAWS, "num_others": 3} | settings)
        run.evaluator = Evaluator(
            model, Encodings(model, None), wanted, CaptionPool([i.caption for i in items], seed=0),
            RecordFile(file or tmp_path / f"{next(starts)}.jsonl", "design"), network=network,
            should_stop=stop, progress=lambda *told: run.told.append(told),
        )  # fmt: skip
        return run.evaluator.run(which, editor, suggest=suggest)

    run.told = []
    return run


class Edits(Editor):
    """Changed captions that are the same for all images: tried at first, and where a part looks wrong."""

    def __init__(self, first: list[Edit], further: tuple[Edit, ...] = ()) -> None:
        super().__init__(Vocabulary(), 0)
        self.__dict__ |= {"first": first, "further": further}

    def edits(self, item):
        return self.first

    def more(self, item, parts, known):
        return [edit for edit in self.further if edit.part in parts]


def by_path(outcomes) -> dict[str, numpy.ndarray]:
    return {outcome.item.path.name: outcome.losses for outcome in outcomes}


def subject(model, item, texts) -> Subject:
    encodings = Encodings(model, None)
    return Subject(item, encodings.latents(item), [encodings.prompt(text) for text in texts])


def test_losses_are_the_trainers_own(model, items):
    """Every number against diffusion_loss on a batch of one, with the draw's noise and level."""
    texts, design = [items[0].caption, "", items[1].caption], Design(seed=5)
    subjects = [subject(model, item, texts) for item in items[:2]]
    found = measure(model, subjects, [0, 3], design)
    assert found.losses.shape == (2, 3, 2)
    for row, each in enumerate(subjects):
        content = content_of(each.item)
        for column, draw in enumerate([0, 3]):
            t = design.t(content, draw, model.objective)
            assert float(found.t[row, column]) == float(t)
            for arm, text in enumerate(texts):
                batch = Batch(
                    (each.item,), (text,), torch.ones(1), latents=each.latents[None], t=t.reshape(1),
                    noise=design.noise(content, draw, tuple(each.latents.shape))[None],
                )  # fmt: skip
                with torch.no_grad():
                    loss = float(diffusion_loss(model, batch, criterion=mse).per_item)
                assert float(found.losses[row, arm, column]) == pytest.approx(loss, rel=1e-4)


def test_all_captions_of_an_image_are_measured_on_the_same_noisy_latents(model, items, monkeypatch):
    seen = []
    predict = model.predict

    def spy(noisy, t, conditioning):
        seen.append((noisy.clone(), t.clone(), conditioning.embeds.clone()))
        return predict(noisy, t, conditioning)

    monkeypatch.setattr(model, "predict", spy)
    measure(
        model, [subject(model, item, [item.caption, "", "a star"]) for item in items[:2]], [0, 1], Design()
    )
    assert len(seen) == 2
    for noisy, t, embeds in seen:
        assert noisy.shape[0] == 6
        for image in (slice(0, 3), slice(3, 6)):
            assert torch.equal(noisy[image], noisy[image][:1].expand(3, -1, -1, -1))
            assert len(set(t[image].tolist())) == 1
            assert not torch.equal(embeds[image][0], embeds[image][1])
        assert not torch.equal(noisy[0], noisy[3])
    assert not torch.equal(seen[0][0], seen[1][0])


def test_subjects_of_one_batch_must_be_alike(model, items):
    alike = subject(model, items[0], ["a", "b"])
    with pytest.raises(ValueError, match="subjects differ"):
        measure(model, [alike, replace(alike, conditions=alike.conditions[:1])], [0], Design())


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_image_has_the_same_numbers_in_a_subset_and_in_another_order(evaluate, items, batch_size):
    """Bit for bit, where the passes have as many rows."""
    whole = by_path(evaluate(batch_size=batch_size))
    for some in (items[::-1], items[2:4], [items[5], items[0]]):
        for name, losses in by_path(evaluate(some, batch_size=batch_size)).items():
            assert numpy.array_equal(losses, whole[name])


def test_another_batch_size_changes_last_bits_at_most(evaluate):
    one, many = by_path(evaluate(batch_size=1)), by_path(evaluate(batch_size=4))
    for name, losses in one.items():
        assert losses == pytest.approx(many[name], rel=1e-3)


def test_more_draws_repeat_the_earlier_ones(evaluate, items):
    few, more = by_path(evaluate(items[:2], num_draws=4)), by_path(evaluate(items[:2], num_draws=8))
    for name, losses in few.items():
        assert numpy.array_equal(losses, more[name][:, :4])


def test_another_seed_draws_other_noise(evaluate, items):
    first, second = (evaluate(items[:1], design=Design(seed=seed))[0] for seed in (0, 1))
    assert not numpy.allclose(first.of("own"), second.of("own"))


@pytest.mark.parametrize("ablation", ["zero", "random", "shuffle"])
def test_ablations_are_what_they_are_called(model, evaluate, items, monkeypatch, ablation):
    seen = []
    predict = model.predict
    monkeypatch.setattr(
        model, "predict", lambda noisy, t, c: (seen.append(c.embeds.clone()), predict(noisy, t, c))[1]
    )
    (outcome,) = evaluate(items[:1], ablation=ablation, num_others=0)
    assert outcome.names == ["own", "blank", "ablated"]
    own, blank, ablated = seen[0]
    if ablation == "zero":
        assert not ablated.any()
    elif ablation == "random":
        assert float(ablated.mean()) == pytest.approx(float(own.mean()), abs=0.1)
        assert float((ablated - own).abs().mean()) > 0.1
        assert torch.equal(ablated, seen[1][2])
    else:
        assert outcome.texts[2] in {item.caption for item in items} - {items[0].caption}
    assert not torch.equal(ablated, blank)
    assert (outcome.of("ablated") - outcome.of("own")).mean() > 0  # this model hears its captions


def test_pooled_embeddings_are_ablated_too(model):
    made = Encodings(model, None).prompt("a red circle")
    with_pooled = replace(made, pooled=torch.ones(1, 8))
    assert not zeroed(with_pooled).pooled.any()
    first, second = (randomised(with_pooled, seed, "a") for seed in (0, 1))
    assert not torch.equal(first.embeds, second.embeds)
    assert torch.equal(first.embeds, randomised(with_pooled, 0, "a").embeds)
    assert first.pooled.shape == (1, 8)


def test_each_picture_and_each_caption_is_encoded_once(model, evaluate, items):
    evaluate(batch_size=2)
    assert evaluate.told == [("images", done, NUM) for done in (2, 4, 6)]
    encodings = evaluate.evaluator.encodings
    assert encodings.num_latents == NUM
    assert encodings.num_prompts == len({item.caption for item in items} | {""})
    assert evaluate.evaluator.num_forwards == NUM * DRAWS * 5


def test_a_stopped_evaluation_goes_on_from_its_records(evaluate, tmp_path):
    file, asked = tmp_path / "records.jsonl", iter([False, False, True])
    with pytest.raises(JobStopped, match="2 of 6 images"):
        evaluate(file=file, stop=lambda: next(asked))
    first = evaluate.evaluator.num_forwards
    outcomes = evaluate(file=file)
    assert evaluate.evaluator.num_forwards == first * 2
    for name, losses in by_path(evaluate()).items():
        assert numpy.array_equal(by_path(outcomes)[name], losses)


def test_rounds_spend_draws_where_the_answer_is_open(evaluate, items):
    wrong = [replace(items[0], caption=items[3].caption), *items[1:]]
    outcomes = evaluate(wrong, num_draws=16, target_q=0.2, num_others=0)
    spent = [outcome.num_draws for outcome in outcomes]
    assert spent[0] > min(spent) == 4  # captions that help are settled after one block
    assert max(spent[1:]) <= 12
    steady = evaluate(wrong, num_draws=16, num_others=0)
    for stopped, full in zip(outcomes, steady, strict=True):
        assert numpy.array_equal(stopped.losses, full.losses[:, : stopped.num_draws])
    assert {told[0] for told in evaluate.told} >= {"images, draws 1 to 4", "images"}


def test_a_known_standard_error_is_enough(evaluate, items):
    assert {o.num_draws for o in evaluate(items[:2], num_draws=16, target_se=100.0)} == {4}
    assert {o.num_draws for o in evaluate(items[:2], num_draws=8, target_se=1e-9)} == {8}


def test_the_base_is_measured_on_the_same_draws(model, evaluate, items):
    class Louder:
        """A network that is on: it makes what the denoiser says a little louder."""

        def __init__(self) -> None:
            self.weight = model.denoisers["unet"].conv_out.weight
            self.weight.data.mul_(1.05)

        @contextmanager
        def enabled(self, on: bool = True):
            before = self.weight.data.clone()
            self.weight.data.div_(1.05 if not on else 1)
            yield
            self.weight.data.copy_(before)

    plain = evaluate(items[:3], batch_size=2)
    before = model.denoisers["unet"].conv_out.weight.data.clone()
    try:
        outcomes = evaluate(items[:3], batch_size=2, network=Louder())
    finally:
        model.denoisers["unet"].conv_out.weight.data.copy_(before)
    for outcome, base in zip(outcomes, plain, strict=True):
        assert outcome.base_losses == pytest.approx(base.of("own"), rel=1e-3)
        assert outcome.of("own") != pytest.approx(base.of("own"), rel=1e-3)
    assert ("images without the LoRA", 3, 3) in evaluate.told


def test_changed_captions_are_measured_on_the_first_draws(evaluate, items):
    item = items[0]
    editor = Edits([Edit(item.caption, "nothing"), Edit(items[4].caption, "all", "other")])
    same, other = evaluate([item], editor=editor, num_draws=8, num_others=0)[0].edit_losses
    assert len(same) == 4
    own = evaluate([item], num_draws=8)[0].of("own")[:4]
    assert same == pytest.approx(own, rel=1e-4)
    assert other.mean() > own.mean()
    assert ("images, changed captions", 1, 1) in evaluate.told


def test_where_a_part_looks_wrong_more_is_tried_and_the_best_is_measured_again(model, evaluate, items):
    right, texts = items[0].caption, [item.caption for item in items]
    wrong = replace(items[0], caption=texts[3])
    further = Edit(right, "x", "z"), Edit(texts[2], "x", "w")
    editor = Edits([Edit(texts[4], "x", "y"), Edit("", "x")], further)
    (found,) = evaluate([wrong], editor=editor, suggest=True, num_draws=8, num_others=0)
    assert [edit.replacement for edit in found.edits] == ["y", None, "z", "w"]
    assert found.edit_losses.shape == (4, 4)
    suggestion = found.suggestion
    assert suggestion.edit.caption == right
    texts = [right, wrong.caption, "", without(wrong.caption, right)]
    again = measure(model, [subject(model, wrong, texts)], range(4, 16), Design()).losses[0]
    assert suggestion.losses == pytest.approx(again.numpy(), rel=1e-4)
    assert suggestion.losses[1, :4] == pytest.approx(found.of("own")[4:], rel=1e-4)  # its own draws go on
    assert (suggestion.log_ratios().mean(axis=1) < 0).all()


def test_suggestions_go_on_from_their_records(evaluate, items, tmp_path):
    wrong = [replace(items[0], caption=items[3].caption), items[1]]
    editor, file = Edits([Edit("", "x")], (Edit(items[0].caption, "x", "z"),)), tmp_path / "a.jsonl"
    asked = iter([False, False, False, True])
    with pytest.raises(JobStopped, match="1 of 2 images, changed captions"):
        evaluate(wrong, editor=editor, suggest=True, file=file, stop=lambda: next(asked))
    assert file.exists()
    found = evaluate(wrong, editor=editor, suggest=True, file=file)
    rest = evaluate.evaluator.num_forwards
    whole = evaluate(wrong, editor=editor, suggest=True)
    assert 0 < rest < evaluate.evaluator.num_forwards
    for one, other in zip(found, whole, strict=True):
        assert one.edits == other.edits
        assert numpy.array_equal(one.edit_losses, other.edit_losses)
    assert numpy.array_equal(found[0].suggestion.losses, whole[0].suggestion.losses)
    # The caption of the second is right: nothing more is tried there.
    assert len(found[1].edits) == 1 and found[1].suggestion is None
    assert evaluate(wrong, editor=editor, suggest=True, file=file) and not evaluate.evaluator.num_forwards


def test_predictions_that_are_not_finite_are_told_with_their_picture(model, evaluate, items, monkeypatch):
    monkeypatch.setattr(model, "predict", lambda noisy, t, c: torch.full_like(noisy, torch.inf))
    with pytest.raises(ModelError, match=r"\.png.*not finite"):
        evaluate(items[:1])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_equal_pictures_with_equal_captions_are_measured_once(evaluate, items, batch_size):
    outcomes = evaluate([items[0], items[1], items[0]], network=OFF, batch_size=batch_size)
    assert evaluate.evaluator.num_forwards == 2 * DRAWS * 6
    assert numpy.array_equal(outcomes[0].losses, outcomes[2].losses)
    ends = ("images", 3, 3), ("images without the LoRA", 3, 3)
    assert [told for told in evaluate.told if told[1] == 3] == [*ends]


def test_records_that_vanish_meanwhile_are_told(evaluate, items, tmp_path):
    outcomes = evaluate(items[:2], file=tmp_path / "a.jsonl")
    assert outcomes[1].num_draws == DRAWS
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(RunError, match=r"a\.jsonl.*changed or deleted"):
        outcomes[1]


def test_edits_of_another_vocabulary_are_not_taken_for_these(evaluate, items, tmp_path):
    """What stands in a caption's place depends on all captions, the design on the distinct readable ones."""
    wrong, file = replace(items[0], caption=items[3].caption), tmp_path / "a.jsonl"
    texts = [item.caption for item in items]
    for further in (items[0].caption, f"{items[0].caption}, drawn", items[0].caption):
        editor = Edits([Edit("", "x")], (Edit(further, "x", "z"),))
        (found,) = evaluate([wrong], editor=editor, suggest=True, file=file)
        (fresh,) = evaluate([wrong], editor=editor, suggest=True)
        assert numpy.array_equal(found.edit_losses, fresh.edit_losses)
        assert found.suggestion.edit.caption == further
        assert numpy.array_equal(found.suggestion.losses, fresh.suggestion.losses)
    for count in (1, 5):
        editor = Editor(Vocabulary.of([*texts * count, "a red star on a cream background"]), 0)
        (found,), (fresh,) = evaluate([wrong], editor=editor, file=file), evaluate([wrong], editor=editor)
        assert found.edits == fresh.edits and numpy.array_equal(found.edit_losses, fresh.edit_losses)


@pytest.mark.parametrize("stage", ["base", "edits", "more", "suggestion"])
def test_records_of_every_stage_are_missed(evaluate, items, tmp_path, stage):
    file, wrong = tmp_path / "a.jsonl", replace(items[0], caption=items[3].caption)
    editor = Edits([Edit("", "x")], (Edit(items[0].caption, "x", "z"),))
    outcomes = evaluate([wrong], editor=editor, suggest=True, file=file, network=OFF)
    assert outcomes[0].suggestion is not None and outcomes[0].base_losses is not None
    lines = file.read_text(encoding="utf-8").splitlines()
    assert sum(f'"stage":"{stage}"' in line for line in lines) == 1
    kept = ["#" * len(line) if f'"stage":"{stage}"' in line else line for line in lines]
    file.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    with pytest.raises(RunError, match="changed or deleted"):
        outcomes[0]


@pytest.mark.parametrize("settings", [{}, {"target_q": 0.2}, {"editor": True}])
def test_what_was_measured_lies_on_disk(model, items, tmp_path, monkeypatch, settings):
    """An image holds a few numbers in memory, not its losses, nor texts and keys: also where it goes on."""
    captions = [f"{item.caption}, {index}" for item in items for index in range(200)]
    many = [replace(items[index // 200], caption=text) for index, text in enumerate(captions)]
    editor = Edits([Edit("a", "b", "c")]) if settings.pop("editor", False) else None
    told = Encodings(model, None).prompt("a red circle")
    monkeypatch.setattr(Encodings, "prompt", lambda self, text: told)
    monkeypatch.setattr(Encodings, "passing_prompt", lambda self, text: told)

    def measured(model, subjects, draws, design, **how):
        """No forward passes, which would be most of this test."""
        shape = (len(subjects), len(subjects[0].conditions), len(draws))
        return Measured(torch.rand(shape), torch.rand(shape[0], shape[2]))

    monkeypatch.setattr("toolkit.evaluation.evaluate.measure", measured)

    def run(which, name: str) -> Sequence[Outcome]:
        wanted = Settings(num_draws=16, batch_size=8, **settings)
        encodings, pool = Encodings(model, tmp_path / "cache"), CaptionPool(captions, seed=0)
        return Evaluator(model, encodings, wanted, pool, RecordFile(tmp_path / name, "d")).run(which, editor)

    run(many[:16], "warm.jsonl")
    for _ in ("at first", "from its records"):
        tracemalloc.start()
        try:
            outcomes = run(many, "a.jsonl")
            gc.collect()
            held, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert outcomes[-1].losses.shape == (9, outcomes.num_draws[-1])
        assert held / len(many) < 700
        assert most / len(many) < 1400
