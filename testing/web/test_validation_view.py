"""What the page of a run says of its validation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from sqlalchemy import update

from testing.web.pages_support import HTML
from toolkit.evaluation.validation_record import Reading, ValidationRecord
from toolkit.text import percent
from web.runs.validation import validation_view
from web.schema import jobs

NUM = 12


def record(*shifts: tuple[float, float]) -> ValidationRecord:
    """A record of so many pictures; each later reading has its held-out and probe losses times these."""
    made = ValidationRecord(
        key={}, labels=["t"], files=[f"{i}.png" for i in range(NUM)], units=list(range(NUM)),
        probe_units=list(range(NUM)), planned=len(shifts),
    )  # fmt: skip
    draws = numpy.random.default_rng(0)
    first = 1 + draws.random((NUM, 1))
    for index, (held_out, probe) in enumerate(shifts):
        noise = 1 + 0.01 * draws.standard_normal((2, NUM, 1))
        made.add(Reading(10 * index, first * held_out * noise[0], first * probe * noise[1]))
    return made


def written(folder: Path, made: ValidationRecord) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    made.write(folder / "validation.json")
    return folder / "validation.json"


def test_it_says_what_the_record_says(tmp_path):
    made = record((1, 1), (0.8, 0.7), (0.75, 0.6))
    made.saved = {10: "a_000000010.safetensors"}
    found = validation_view(written(tmp_path, made))
    assert found is not None
    row = made.summary(made.readings[-1])
    mean, low, high = (percent(row[name]) for name in ("val_change", "val_change_low", "val_change_high"))
    expected = f"{mean} ({low} to {high})"
    assert found.held_out.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-") == expected
    assert (found.first, found.last, found.num_pictures, found.warning) == (0, 20, NUM, "")
    assert (found.best_step, found.best_file) == (10, "a_000000010.safetensors")


def test_overfitting_is_told_with_its_evidence(tmp_path):
    found = validation_view(written(tmp_path, record((1, 1), (0.8, 0.8), (1.2, 0.5))))
    assert found is not None and found.best_step is None
    assert found.warning.startswith(
        "Overfitting: from step 10 to 20 the loss of held-out pictures changed by +"
    )
    assert "taken for certain below" in found.warning


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"readings": []}', '{"readings": [{"step": 0}]}', "\xff"])
def test_nothing_is_said_of_what_is_no_record(tmp_path, text):
    (tmp_path / "validation.json").write_text(text, encoding="utf-8")
    assert validation_view(tmp_path / "validation.json") is None
    assert validation_view(tmp_path / "none.json") is None


def test_one_reading_is_no_change_yet(tmp_path):
    assert validation_view(written(tmp_path, record((1, 1)))) is None


def test_a_band_that_nobody_knows(tmp_path):
    path = written(tmp_path, record((1, 1), (0.5, 0.5)))
    content = json.loads(path.read_text(encoding="utf-8"))
    content["readings"][1] |= {"val_change_low": None, "val_change_high": None}
    path.write_text(json.dumps(content), encoding="utf-8")
    found = validation_view(path)
    assert found is not None and found.held_out.endswith("(no band: too few pictures)")


def test_the_page_shows_it(client, services, config):
    job = services.store.create("small", "train", config(), ("cpu:0",))
    folder = services.settings.output_root / "small"
    made = record((1, 1), (0.8, 0.8), (1.2, 0.5))
    made.saved = {10: "small_000000010.safetensors"}
    written(folder, made)
    rows = [{"step": step, "attempt": 1, "time": 1.0, "loss": 0.5} for step in (1, 10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with services.database.write() as tx:
        tx.execute(update(jobs).where(jobs.c.id == job.id).values(run_folders=json.dumps([str(folder)])))
    page = client.get(f"/jobs/{job.id}/loss", headers=HTML).text
    assert 'data-best="10"' in page and "Overfitting: from step 10 to 20" in page
    assert "small_000000010.safetensors" in page and "Gap between them" in page
