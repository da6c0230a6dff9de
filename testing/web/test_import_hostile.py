"""Databases and run folders that are damaged or made to do harm: told in a line, and they lead nowhere."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from testing.web.foreign_kit import job_config, make_database, make_run
from testing.web.import_support import entry_of, jobs_of
from toolkit.errors import UserError
from web.importing.service import import_ai_toolkit

HOSTILE_NAMES = [
    "../../etc/passwd", "/etc", "a/b", "nul", "", " ", ".", "..", "x" * 5000, "\u00fc" * 200, "a\nb\x00c",
    "<script>alert(1)</script>", "con.txt", "name.", "-", "\U0001f600",
]  # fmt: skip


def test_names_that_cannot_be_a_jobs_are_changed_and_lead_nowhere(services, foreign):
    rows = [{"name": name, "job_config": job_config(name)} for name in HOSTILE_NAMES]
    make_database(foreign / "aitk_db.db", rows)
    plan = import_ai_toolkit(services, foreign)
    found = jobs_of(services)
    assert len(found) == len(HOSTILE_NAMES) and all(job.run_folder is None for job in found.values())
    for entry in plan.entries:
        assert not set(entry.name) & set("/\\<>\n\x00") and entry.name.strip(" .") == entry.name
        assert len(entry.name) <= 100 and len(entry.name.encode()) <= 150
        assert entry.name == entry.origin or "the name cannot be a job's" in " ".join(entry.notes), entry.name
        assert not any(problem.key == "config.name" for problem in entry.problems)


BAD_CONFIGS = [
    ("[" * 100_000, "is nested too deeply"),
    ('{"a":\t' * 5000, "is nested too deeply"),
    ("{", "cannot be read"),
    ("[1]", "holds no mapping"),
    ("", "it has no config"),
    (json.dumps({"job": "extension", "x": "y" * 3_000_000}), "is too large (3000"),
    ('{"job": "\\ud800"}', "half of a letter"),
    (b"\xff\xfe", "cannot be read"),
]


@pytest.mark.parametrize(("text", "says"), BAD_CONFIGS, ids=range(len(BAD_CONFIGS)))
def test_a_config_that_cannot_be_imported_is_told_and_the_others_are(services, foreign, text, says):
    make_database(foreign / "aitk_db.db", [{"job_config": text}, {"name": "good"}])
    plan = import_ai_toolkit(services, foreign)
    assert says in plan.entries[0].skipped and set(jobs_of(services)) == {"good"}


NAMES = "abcdefgh"
SWELLS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip(NAMES, NAMES[1:], strict=False)
)


@pytest.mark.parametrize("depth", [100, 300, 450, 900])
def test_a_config_as_deep_as_can_be_breaks_nothing(services, foreign, depth):
    deep = '{"a":' * depth + "1" + "}" * depth
    make_database(foreign / "aitk_db.db", [{"job_config": deep}, {"name": "good"}])
    entry = import_ai_toolkit(services, foreign).entries[0]
    said = entry.skipped + " ".join(map(str, entry.problems))
    assert "too deeply" in said or "cannot say" in said
    assert "good" in jobs_of(services)


@pytest.mark.parametrize(
    ("text", "says"), [(SWELLS, "once its aliases are spelled out"), ("[" * 5000, "too deeply")]
)
def test_a_yaml_that_swells_is_not_read(services, foreign, text, says):
    run = make_run(foreign / "output" / "swollen")
    (run / "config.yaml").write_text(text)
    plan = import_ai_toolkit(services, foreign)
    assert says in plan.entries[0].notes[0]


def test_values_of_any_type_are_survived(services, foreign):
    database = make_database(foreign / "aitk_db.db", [{}, {}])
    with sqlite3.connect(database) as connection:
        connection.execute(
            "UPDATE Job SET name = x'ff41', status = 7, step = 'many', info = x'00ff', gpu_ids = 3.5,"
            " created_at = 'yesterday', updated_at = -1, total_steps = 1e300 WHERE name = 'job_0'"
        )
        connection.execute("UPDATE Job SET created_at = '2024-01-02 03:04:05' WHERE name = 'job_1'")
    plan = import_ai_toolkit(services, foreign)
    assert len(plan.imported) == 2
    assert jobs_of(services)["job_1"].created_at == 1704164645.0


def test_links_are_told_and_not_followed(services, foreign, tmp_path):
    real = make_run(tmp_path / "secret" / "run")
    (foreign / "output" / "linked").symlink_to(real)
    bait = make_run(foreign / "output" / "bait")
    for name in ("config.yaml", "log.txt", "loss_log.db"):
        (bait / name).unlink()
        (bait / name).symlink_to(real / name)
    plan = import_ai_toolkit(services, foreign)
    assert [entry.name for entry in plan.imported] == ["bait"]
    assert any("output/linked is a link" in note for note in plan.notes)
    assert "there is no config.yaml" in entry_of(plan, "bait").notes[0]


WRONG_DATABASES = [
    ("CREATE TABLE Job (id TEXT, name TEXT)", "no column gpu_ids, job_config, status of its table Job"),
    ("CREATE TABLE jobs (id TEXT)", "no table Job"),
    (
        "CREATE VIEW Job AS SELECT 1 AS id, 2 AS name, 3 AS gpu_ids, 4 AS job_config, 5 AS status",
        "no table Job",
    ),
]


@pytest.mark.parametrize(("sql", "says"), WRONG_DATABASES, ids=["columns", "other", "view"])
def test_another_database_is_one_line(services, foreign, sql, says):
    with sqlite3.connect(foreign / "aitk_db.db") as connection:
        connection.execute(sql)
    with pytest.raises(UserError, match=says) as caught:
        import_ai_toolkit(services, foreign)
    assert len(caught.value.problems) == 1 and jobs_of(services) == {}


def test_too_many_jobs_are_refused(services, foreign, monkeypatch):
    monkeypatch.setattr("web.importing.database.MOST_JOBS", 1)
    make_database(foreign / "aitk_db.db", [{}, {}])
    with pytest.raises(UserError, match="holds 2 jobs; at most 1"):
        import_ai_toolkit(services, foreign)


def test_only_folders_that_are_allowed_are_looked_at(services, foreign, tmp_path):
    make_database(foreign / "aitk_db.db", [{}])
    outside = [foreign, foreign / "aitk_db.db", tmp_path / "not_there", Path("/")]
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "link").symlink_to(foreign)
    for path in [*outside, tmp_path / "allowed" / "link", tmp_path / "allowed" / ".." / "ai-toolkit"]:
        with pytest.raises(UserError, match="lies outside the folders to import from"):
            import_ai_toolkit(services, path, roots=[tmp_path / "allowed"])
    with pytest.raises(UserError, match="lies outside"):
        import_ai_toolkit(
            services, tmp_path / "allowed", foreign / "aitk_db.db", roots=[tmp_path / "allowed"]
        )
    assert import_ai_toolkit(services, foreign, roots=[tmp_path]).imported


def test_a_config_with_ordered_dictionaries_is_read_and_nothing_else_is_made(services, foreign):
    from collections import OrderedDict

    import yaml

    run = make_run(foreign / "output" / "ordered")
    config = OrderedDict(job_config("ordered"))
    config["config"] = OrderedDict(config["config"])
    text = yaml.dump(config)
    assert "python/object/apply:collections.OrderedDict" in text
    (run / "config.yaml").write_text(text)
    evil = make_run(foreign / "output" / "evil")
    mark = foreign / "made"
    (evil / "config.yaml").write_text(f"!!python/object/apply:os.mkdir ['{mark}']\n")
    plan = import_ai_toolkit(services, foreign)
    assert "type: diffusion_trainer" in entry_of(plan, "ordered").text
    assert not mark.exists() and "could not determine a constructor" in entry_of(plan, "evil").notes[0]
