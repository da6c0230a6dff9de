"""The report of a run: one file, everything inside, made from what lies in the folder."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
from PIL import Image

from toolkit.evaluation.validation_record import Reading, ValidationRecord
from toolkit.runs.layout import RunFolder
from toolkit.runs.levels import by_level
from toolkit.runs.metrics import MetricsWriter
from toolkit.training.run_report import notes, write_run_report

CONFIG = """\
config:
  name: cats
  process:
  - type: sd_trainer
    model: {name_or_path: tiny-sd}
    network: {type: lora, linear: 16}
    datasets: [{folder_path: my/cats}]
    train: {steps: 60, batch_size: 4, lr: 0.0001, optimizer: adamw}
    note: ${SECRET} <script>alert(1)</script>
"""


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run of 60 steps with everything a run can leave."""
    folder = RunFolder(tmp_path, "cats")
    folder.create()
    folder.config_path.write_text(CONFIG)
    folder.log_path.write_text("note: a thing\nstep\nwarning: overfitting: x\nnote: a thing\n")
    rng = numpy.random.default_rng(0)
    with MetricsWriter(folder.metrics_path) as metrics:
        for step in range(1, 61):
            levels = by_level(rng.random(40), rng.random(40)) if step % 10 == 0 else {}
            metrics.write(step, loss=1 / step, lr=1e-4, seconds=0.25, **levels)
    held, probe = rng.gamma(4, 0.1, (6, 2)), rng.gamma(4, 0.1, (6, 2))
    record = ValidationRecord(
        {}, ["0\u20130.5", "0.5\u20131"], [str(i) for i in range(6)], list(range(6)), list(range(6)), 4
    )
    for index, (up, down) in enumerate([(1, 1), (0.9, 0.9), (1.3, 0.7)]):
        spread = 1 + 0.004 * rng.normal(size=(6, 2))
        record.add(Reading(30 * index, held * up * spread, probe * down * spread))
    record.saved = {30: "cats_000000030.safetensors", 60: "cats.safetensors"}
    record.write(folder.validation_path)
    for index in range(2):
        picture = Image.new("RGB", (32, 32), (200, 60 * index, 30))
        picture.save(folder.samples / folder.sample_name(1, 60, index, "png"))
    Image.new("RGB", (1900, 800), "red").save(folder.contact_sheet_path)
    coverage = {"exact": True, "pictures": 6, "min": 0, "median": 2.0, "max": 3, "never": ["a/b.png"]}
    folder.coverage_path.write_text(json.dumps(coverage))
    return folder


def page_of(run: RunFolder, prompts: list[str]) -> Page:
    path: Path = write_run_report(run, prompts)
    assert path.name == "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_needs_no_other_file_and_no_network(run):
    source = write_run_report(run, []).read_text(encoding="utf-8")
    page = Page(source)
    links = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href")]
    assert links and all(link.startswith("data:image/webp;base64,") for link in links)
    assert {"script", "link", "iframe"} & {tag for tag, _ in page.tags} == set()
    assert "url(" not in source and "http" not in source
    assert "prefers-color-scheme: dark" in source and "width=device-width" in source


def test_it_tells_the_run(run):
    page = page_of(run, ["a cat", "a <dog>"])
    for said in (
        "tiny-sd", "lora of rank 16", "my/cats", "60 of 60", "a cat", "a <dog>", "best on held-out pictures",
        "cats_000000030.safetensors", "overfitting: since step 30", "0.25 s", "Never: b.png", "${SECRET}",
    ):  # fmt: skip
        assert said in page.text, said
    shapes = [attrs["class"] for tag, attrs in page.tags if tag in ("polyline", "polygon")]
    assert shapes == [
        "curve faint", "curve first", "curve second", "band first", "curve first", "band second",
        "curve second",
    ]  # fmt: skip
    assert sum(tag == "rect" for tag, _ in page.tags) == 20


def test_the_table_holds_every_reading(run):
    page = page_of(run, [])
    cells = re.findall(r"\b(0|30|60)\n?\s*([\d.]+)\s", page.text)
    assert {"0", "30", "60"} <= {step for step, _ in cells}


def test_an_empty_folder_makes_a_page_too(tmp_path):
    folder = RunFolder(tmp_path, "none")
    folder.create()
    page = page_of(folder, [])
    assert "none" in page.text
    assert not any(tag == "svg" for tag, _ in page.tags)


def test_notes_are_told_once():
    assert notes("note: a\nx\nwarning: b\nnote: a\n") == ["note: a", "warning: b"]
