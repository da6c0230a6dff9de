"""From measured losses to flags, a report that keeps to its published schema, and a page of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy
import pytest

from testing.eval_helpers import a_run, errors_in, unseen, write
from toolkit.data.scan import scan_dataset
from toolkit.evaluation import html_report
from toolkit.evaluation.edits import Edit
from toolkit.evaluation.flags import Reason, unmeant_copies
from toolkit.evaluation.html_report import render, share
from toolkit.evaluation.image_store import ImageStore
from toolkit.evaluation.outcomes import Outcome, Outcomes, Suggestion, content_of, key_of
from toolkit.evaluation.report import DatasetReport, ImageReport, Report, report_name, report_schema
from toolkit.evaluation.statistics import e_bh, q_values, signed_rank_p
from toolkit.evaluation.summary import (
    Context,
    dataset_report,
    summaries,
    summarise,
    summary_lines,
    usefulness_note,
)
from toolkit.paths import ROOT

SCHEMA = ROOT / "docs" / "eval_report.schema.json"
NUM, DRAWS = 12, 16
EVIL = "<script>alert('x')</script> & \"quotes\""


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    drawings = unseen(NUM)
    texts = [EVIL, *(drawing.caption for drawing in drawings[1:])]
    folder = write(tmp_path_factory.mktemp("drawings"), drawings, texts)
    return scan_dataset(folder, resolutions=[32], size_multiple=8).require_valid().items


def outcome_of(item, gain: float, seed: int, *, other_gain: float = 1.0, draws: int = DRAWS) -> Outcome:
    """An image whose caption lowers the log of the loss by `gain`, give or take 0.1."""
    random = numpy.random.default_rng(seed)
    own = numpy.exp(random.normal(-3, 1, draws))
    blank = own * numpy.exp(random.normal(gain, 0.1, draws))
    other = own * numpy.exp(random.normal(other_gain, 0.1, draws))
    return Outcome(
        item, content_of(item), key_of(item), ["own", "blank", "other:0", "other:1"],
        [item.caption, "", "something else", "one more"], numpy.stack([own, blank, other, 2 * other]),
        random.uniform(0.01, 1, draws),
    )  # fmt: skip


@pytest.fixture
def outcomes(items) -> list[Outcome]:
    """The first caption hurts, the second does nothing, the third fits less well than another's."""
    gains = [-0.5, 0.0, *[1.0] * (NUM - 2)]
    made = [outcome_of(item, gain, i) for i, (item, gain) in enumerate(zip(items, gains, strict=True))]
    made[2] = outcome_of(items[2], 1.0, 2, other_gain=-0.5)
    return made


def context(items, **changes: Any) -> Context:
    return replace(
        Context(name=lambda o: o.item.path.name, noise_std=lambda t: t, dataset=str(items[0].path.parent)),
        **changes,
    )


def report_of(items, images: list[ImageReport]) -> Report:
    folder = str(items[0].path.parent)
    return Report(
        run=a_run(samples_per_image=DRAWS),
        images=images,
        datasets=[dataset_report(folder, len(items), images, seed=0)],
        notes=["a note"],
    )


# -- effects and flags -------------------------------------------------------------------------------------


def test_flags_name_what_was_planted(items, outcomes):
    images = summarise(outcomes, context(items))
    flagged = {image.path: [reason.code for reason in image.reasons] for image in images if image.flagged}
    assert flagged == {
        "000.png": ["caption_hurts"],
        "001.png": ["caption_does_nothing"],
        "002.png": ["other_fits_better"],
    }
    assert images[2].rank == 2
    assert images[3].rank == 1
    assert images[2].best_other.caption == "something else"


def test_another_caption_is_told_with_its_own_p(items, outcomes):
    """The first fits best through a few draws, the second a little better in all of them."""
    own = outcomes[3].of("own")
    few = numpy.where(numpy.arange(DRAWS) < 3, 0.001, 1.05)
    outcomes[3].losses[2:] = own * few, own * 0.98
    images = summarise(outcomes, context(items))
    assert images[3].best_other.caption == "something else"
    assert images[3].best_other.p_value == 1.0 == min(1.0, 2 * signed_rank_p(-numpy.log(few)) + 0.9)
    assert not images[3].flagged


def test_numbers_of_an_image_are_those_of_its_draws(items, outcomes):
    image, outcome = summarise(outcomes, context(items))[0], outcomes[0]
    own, blank = outcome.of("own"), outcome.of("blank")
    gains = numpy.log(blank / own)
    assert image.loss == image.loss_with_caption == pytest.approx(own.mean())
    assert image.loss_with_blank == pytest.approx(blank.mean())
    assert image.ablation_delta == pytest.approx((blank - own).mean())
    assert image.ablation_delta < 0  # this caption hurts
    assert image.log_ratio.mean == pytest.approx(gains.mean())
    assert image.p_value == signed_rank_p(gains)
    assert image.draws.loss_with_caption == own.tolist()
    assert image.loss_relative == pytest.approx(
        own.mean() / numpy.mean([each.of("own").mean() for each in outcomes])
    )
    assert summarise(outcomes, context(items, relative=False))[0].loss_relative is None


def test_the_ablation_stands_in_for_the_empty_caption(items, outcomes):
    base = outcomes[0]
    ablated = base.of("own") * 3
    with_one = replace(
        base, names=["own", "blank", "ablated"], texts=["", "", None],
        losses=numpy.stack([base.of("own"), base.of("blank"), ablated]),
    )  # fmt: skip
    image = summarise([with_one], context(items))[0]
    assert image.ablation_delta == pytest.approx((ablated - base.of("own")).mean())
    assert image.loss_ablated == pytest.approx(ablated.mean())


def test_q_values_are_over_the_data_set(items, outcomes):
    images = summarise(outcomes, context(items))
    assert [image.q_value for image in images] == pytest.approx(q_values([i.p_value for i in images]))


def test_with_stopping_flags_are_those_of_e_bh(items, outcomes):
    images = summarise(outcomes, context(items, stopping=True))
    found = e_bh([image.e_value for image in images], 0.1)
    assert [image.q_value <= 0.1 for image in images] == found
    assert found[0]
    assert not any(found[1:])


def test_an_empty_caption_is_flagged_and_not_tested(items, outcomes):
    empty = outcome_of(replace(items[0], caption=""), 0.0, 0)
    image = summarise([empty, *outcomes[1:]], context(items))[0]
    assert [reason.code for reason in image.reasons] == ["caption_empty"]
    assert image.p_value is image.log_ratio is image.rank is None


def test_what_is_known_of_the_data_set_becomes_reasons(items, outcomes):
    captions = [items[3].caption.upper(), *(item.caption for item in items)]
    twin = {items[4].path: Reason("twin_images", "x.png looks the same")}
    known = context(
        items, copies=unmeant_copies(captions)[0], twins=twin, tokens=lambda text: (5, 3), trigger="zrb"
    )
    images = summarise(outcomes, known)
    codes = {image.path: [reason.code for reason in image.reasons] for image in images}
    assert codes["003.png"] == ["caption_too_long", "trigger_missing", "duplicate_caption"]
    assert codes["004.png"][-1] == "twin_images"
    assert images[3].tokens_lost == 2
    shared = summarise(outcomes, context(items, copies=unmeant_copies([items[3].caption] * NUM)[0]))
    assert not shared[3].flagged


def test_edits_rank_and_what_was_confirmed_is_suggested(items, outcomes):
    own = outcomes[5].of("own")[:4]
    outcomes[5].edits = [Edit("a", "x"), Edit("b", "red", "blue"), Edit("c", "red", "green")]
    outcomes[5].edit_losses = numpy.stack([own * 0.5, own * 2, own * 0.8])
    image = summarise(outcomes, context(items))[5]
    assert [edit.caption for edit in image.edits] == ["a", "c", "b"]
    assert image.edit_contrast == pytest.approx(numpy.log(0.8))
    assert image.suggestion is None
    assert not image.flagged  # for ranking only
    # The contrast is that of what all images had.
    outcomes[5].edits[2] = Edit("c", "red", "green", further=True)
    assert summarise(outcomes, context(items))[5].edit_contrast == pytest.approx(numpy.log(2))
    draws, levels = numpy.random.default_rng(0).uniform(1, 2, 12), numpy.linspace(0.1, 1, 12)
    spread = numpy.linspace(0.99, 1.01, 12)
    tried = ((1.25, 2, 1.5, "green"), (0.8, 2, 1.5, None), (1.25, 0.9, 1.5, None), (1.25, 2, 0.9, None))
    for own, blank, less, found in tried:
        losses = draws * numpy.stack([numpy.ones(12), own * spread, blank * spread, less * spread])
        outcomes[5].suggestion = Suggestion(outcomes[5].edits[2], losses, levels)
        suggestion = summarise(outcomes, context(items))[5].suggestion
        assert (suggestion and suggestion.replacement) == found
        if suggestion:
            assert suggestion.log_ratio == pytest.approx(numpy.log(0.8))
            assert suggestion.confirmed.mean == pytest.approx(-numpy.log(own), rel=1e-3)
            assert suggestion.confirmed.low < suggestion.confirmed.mean < suggestion.confirmed.high < 0


def test_what_training_gained(items, outcomes):
    outcomes[4].base_losses = outcomes[4].of("own") * 2
    images = summarise(outcomes, context(items))
    assert images[4].base.log_ratio.mean == pytest.approx(numpy.log(2))
    assert dataset_report("d", NUM, images, seed=0).base_log_ratio.mean == pytest.approx(numpy.log(2))


def test_a_data_set_in_numbers(items, outcomes):
    images = summarise(outcomes, context(items))
    found = dataset_report("d", NUM, images, seed=0)
    assert found.mean_loss == pytest.approx(numpy.mean([image.loss for image in images]))
    assert found.share_helped == pytest.approx(numpy.mean([image.log_ratio.mean > 0 for image in images]))
    assert found.retrieval_top1 == pytest.approx(11 / 12)
    assert found.reasons == {"caption_hurts": 1, "caption_does_nothing": 1, "other_fits_better": 1}
    assert sum(point.num_draws for point in found.curve) == NUM * DRAWS
    t, own, blank = (
        numpy.concatenate([values(outcome) for outcome in outcomes])
        for values in (lambda o: o.t, lambda o: o.of("own"), lambda o: o.of("blank"))
    )
    for part, point in enumerate(found.curve):  # all ten parts of the schedule have draws here
        inside = (t > part / 10) & (t <= (part + 1) / 10)
        assert point.num_draws == inside.sum()
        assert point.t == pytest.approx(t[inside].mean())
        assert point.loss_with_caption == pytest.approx(own[inside].mean())
        assert point.loss_with_blank == pytest.approx(blank[inside].mean())
        assert point.log_ratio == pytest.approx(numpy.log(blank[inside] / own[inside]).mean())
    assert dataset_report("d", 0, [], seed=0).mean_loss is None


def test_captions_that_hurt_are_said_to_raise_the_loss(items, outcomes):
    hurt, help_ = outcome_of(items[0], -0.5, 0), outcome_of(items[1], 0.5, 0)
    for one, said in ((hurt, "raise the loss by 6"), (help_, "lower the loss by 3")):
        report = report_of(items, summarise([one], context(items)))
        assert any(said in line for line in summary_lines(report)), summary_lines(report)


def test_better_words_are_counted_and_shown_behind_what_is_flagged(items, outcomes):
    outcomes[7].edits = [Edit("b", "red", "blue <i>")]
    outcomes[7].edit_losses = outcomes[7].of("own")[None, :4] * 0.5
    losses = outcomes[7].of("own") * numpy.array([[0.5], [1], [2]])
    outcomes[7].suggestion = Suggestion(outcomes[7].edits[0], losses, outcomes[7].t)
    report = report_of(items, summarise(outcomes, context(items)))
    assert report.datasets[0].num_suggestions == 1
    assert any("another fits better: 1" in line for line in summary_lines(report))
    page = render(report)
    assert "Fits better: <b>blue &lt;i&gt;</b> for <b>red</b>" in page
    assert "(loss \N{MINUS SIGN}50.0 %)" in page
    codes = re.findall(r'data-codes="([^"]*)"', page)
    assert [name for name in codes if "another_word" in name] == [codes[3]]  # three are flagged


# -- the file --------------------------------------------------------------------------------------------


def test_the_published_schema_is_this_versions():
    """After a change: python -m tools.eval_dataset --schema > docs/eval_report.schema.json"""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == report_schema()


def test_a_report_keeps_to_the_schema(items, outcomes):
    outcomes[5].edits = [Edit("a", "x"), Edit("b", "red", "blue")]
    outcomes[5].edit_losses = numpy.stack([outcomes[5].of("own")[:4]] * 2) * 0.9
    outcomes[4].base_losses = outcomes[4].of("own") * 2
    one_draw = outcome_of(items[6], 1.0, 6, draws=1)  # its interval is unknown
    more = outcomes[5].of("own") * [[0.5], [1], [2]]
    outcomes[5].suggestion = Suggestion(outcomes[5].edits[1], more, outcomes[5].t)
    images = summarise([*outcomes[:6], one_draw], context(items))
    assert images[5].suggestion is not None
    report = report_of(items, images)
    written = json.loads(report.model_dump_json())
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert errors_in(written, schema, schema) == []
    assert Report.model_validate(written) == report
    assert written["images"][6]["log_ratio"]["se"] is None
    broken = written | {"schema_version": 2, "more": 1}
    del broken["run"]["model"]
    broken["images"][0]["caption"] = None
    assert len(errors_in(broken, schema, schema)) == 4


def test_the_name_of_a_report():
    assert report_name("job", 250) == "job_000000250.json"


# -- the page --------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, where they point to, and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        if tag not in ("meta", "input", "img", "link", "br", "rect", "line", "polyline"):
            self.open.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h3":
            self.headings.append(data)


def test_the_page_stands_alone_and_begins_with_the_worst(items, outcomes):
    outcomes[-1].names[2:], outcomes[-1].losses = [], outcomes[-1].losses[:2]
    text = render(report_of(items, summarise(outcomes, context(items))))
    page = Page(text)
    assert page.open == []
    assert page.opened.count("article") == page.opened.count("img") == NUM
    assert page.opened.count("script") == 1  # ours; that of the caption is text
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not re.search(r"https?:|@import|url\(", text)
    assert EVIL in "".join(page.headings)
    assert "job &lt;b&gt;" in text
    assert "width=device-width" in text
    shown = [int(name) for name in re.findall(r'<p class="soft">(\d+)\.png', text)]
    assert shown[:3] == [0, 1, 2]  # flagged ones, the worst gain first
    assert "own caption fits best of 3<" in text  # the last has none to compare with
    assert "Infinity" not in text


def test_a_page_of_many_images_shows_the_worst(items, outcomes, monkeypatch):
    monkeypatch.setattr(html_report, "MAX_SHOWN", 5)
    text = render(report_of(items, summarise(outcomes, context(items))))
    assert Page(text).opened.count("article") == 5
    assert "7 more images" in text


def test_a_page_of_nothing_and_of_pictures_that_are_gone(items, outcomes):
    assert "<article" not in render(report_of(items, []))
    images = summarise(outcomes[:1], context(items, dataset="/no/such/folder"))
    assert "the picture is gone" in render(report_of(items, images))


def test_a_share_is_told_with_its_sign():
    assert share(numpy.log(2)) == "\N{MINUS SIGN}50.0 %"
    assert share(-numpy.log(2)) == "+100.0 %"
    assert [share(-numpy.log(times)) for times in (9.99, 12, 1e5)] == ["+899.0 %", "×12", "×10000 or more"]
    assert share(-1e6) == "×10000 or more"


def test_each_image_is_read_once_for_a_report(items, outcomes, tmp_path, monkeypatch):
    """From the records and from what is kept of it, however many there are."""
    read, kept = [], ImageStore(tmp_path)
    many = Outcomes(items * 5, lambda item, num_draws: read.append(item) or outcomes[items.index(item)])
    parsed = []
    parse = ImageReport.model_validate_json
    monkeypatch.setattr(ImageReport, "model_validate_json", lambda data: parsed.append(data) or parse(data))
    images = summaries(many, context(items), kept)
    assert dataset_report("d", len(many), images, seed=0).num_measured == 5 * NUM
    assert read == items * 5 and len(parsed) == len(kept) == 5 * NUM


def test_captions_that_as_a_whole_do_not_help_are_told():
    whole = {"path": "pets", "num_images": 4, "num_measured": 4, "mean_loss": 1.0, "median_loss": 1.0}
    assert usefulness_note(DatasetReport(**whole, share_helped=0.75, median_log_ratio=0.1)) == ""
    assert usefulness_note(DatasetReport(**whole, share_helped=0.5, median_log_ratio=0.1)) == ""
    assert usefulness_note(DatasetReport(**whole)) == ""
    note = usefulness_note(DatasetReport(**whole, share_helped=0.25, median_log_ratio=-0.1))
    assert note.startswith("pets: 25% of the captions help") and "doing nothing" in note
