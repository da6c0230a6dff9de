"""Databases and run folders that are damaged or made to do harm: told in a line, and they lead nowhere."""

from __future__ import annotations

import json
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from testing.web.foreign_kit import job_config, make_database, make_run
from testing.web.import_support import entry_of, jobs_of
from toolkit.errors import UserError
from web.importing.__main__ import lines
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


AT_THE_EDGE = ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00", 1e14 - 1, 99999999999999]


@pytest.mark.parametrize("time", AT_THE_EDGE)
def test_a_time_at_the_edge_of_all_times_can_be_listed(client, services, foreign, time):
    make_database(foreign / "aitk_db.db", [{"created_at": time, "updated_at": time}])
    import_ai_toolkit(services, foreign)
    assert client.get("/api/jobs").status_code == 200
    assert client.get("/jobs").status_code == 200


def test_numbers_in_names_and_configs_that_no_column_holds(client, services, foreign):
    run = make_run(foreign / "output" / "cat")
    many = "9" * 23
    (run / f"cat_{many}.safetensors").write_bytes(b"model")
    sample = next((run / "samples").iterdir())
    sample.rename(sample.with_name(f"{many}__000000250_0.jpg"))
    next((run / "samples").iterdir()).rename(run / "samples" / f"1__{many}_0.jpg")
    (run / "config.yaml").write_text(yaml.dump(job_config("cat", steps=10**25)))
    make_database(foreign / "aitk_db.db", [{"job_config": job_config("job_0", steps=10**25)}])
    assert len(import_ai_toolkit(services, foreign).imported) == 2
    for job in jobs_of(services).values():
        for page in ("", "/samples", "/files"):
            assert client.get(f"/jobs/{job.id}{page}").status_code == 200
    assert client.get("/api/jobs").status_code == 200


def test_a_name_that_is_no_text_is_told_without_harm(services, foreign, capsys):
    for name in (b"caf\xe9", b"evil\x1b[2J\x1b]0;x\x07"):
        make_run(foreign / "output" / "x").rename(foreign / "output" / os.fsdecode(name))
    (foreign / "output" / os.fsdecode(b"l\xefnk")).symlink_to(foreign)
    make_run(foreign / "output" / "good")
    plan = import_ai_toolkit(services, foreign)
    assert [entry.name for entry in plan.imported] == ["good"] and len(plan.notes) == 3
    said = "\n".join(lines(plan, dry_run=False))
    assert said.encode("utf-8") and "\x1b" not in said and "\x07" not in said
    assert all(note.isprintable() for note in plan.notes)


def test_a_folder_that_may_not_be_read_is_told_and_the_others_are(services, foreign, monkeypatch):
    for name in ("good", "locked"):
        make_run(foreign / "output" / name)
    plain = Path.is_file

    def refused(path: Path) -> bool:  # what a folder of mode 700 of another user does; root can read it
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(Path, "is_file", refused)
    plan = import_ai_toolkit(services, foreign)
    assert [entry.name for entry in plan.imported] == ["good"]
    (note,) = plan.notes
    assert "output/locked cannot be read: Permission denied" in note


def test_runs_on_another_disk_are_found_or_told(services, foreign, tmp_path):
    (foreign / "output").rmdir()
    elsewhere = tmp_path / "disk" / "runs"
    make_run(elsewhere / "cat")
    (foreign / "output").symlink_to(elsewhere)
    plan = import_ai_toolkit(services, foreign, roots=[foreign], dry_run=True)
    assert plan.imported == []
    assert any("is a link to" in note and str(elsewhere) in note for note in plan.notes)
    for roots in ([foreign, tmp_path / "disk"], None):
        plan = import_ai_toolkit(services, foreign, roots=roots, dry_run=True)
        assert [entry.folder for entry in plan.imported] == [elsewhere / "cat"]


def test_a_run_goes_to_the_job_of_its_name(services, foreign):
    make_run(foreign / "output" / "a")
    rows = [{"name": "b", "job_config": job_config("a")}, {"name": "a"}]
    make_database(foreign / "aitk_db.db", rows)
    plan = import_ai_toolkit(services, foreign)
    assert entry_of(plan, "a").folder == foreign / "output" / "a"
    assert entry_of(plan, "b").folder is None


def test_pages_show_nothing_of_a_folder_that_has_become_a_link(client, services, foreign, tmp_path):
    run = make_run(foreign / "output" / "cat")
    import_ai_toolkit(services, foreign)
    (job,) = jobs_of(services).values()
    assert "cat_000000250" in client.get(f"/jobs/{job.id}/files").text
    secret = make_run(tmp_path / "secret" / "TOP-SECRET", steps=(77,))
    (secret / "log.txt").write_text("TOP-SECRET-LOG")
    run.rename(run.with_name("moved"))
    run.symlink_to(secret)
    for page in ("", "/log", "/loss", "/samples", "/files"):
        text = client.get(f"/jobs/{job.id}{page}", headers={"Accept": "text/html"}).text
        for secret_text in ("TOP-SECRET", "000000077", "step 0 to 77"):
            assert secret_text not in text, page
    text = client.get(f"/compare?job={job.id}").text
    assert "TOP-SECRET" not in text
    assert "cannot be shown" in client.get(f"/jobs/{job.id}/files").text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_in_a_run_is_not_waited_for(client, services, foreign):
    run = make_run(foreign / "output" / "cat", losses=False)
    for name in ("log.txt", "validation.json", "metrics.jsonl"):
        (run / name).unlink(missing_ok=True)
        if name != "metrics.jsonl":
            os.mkfifo(run / name)
    import_ai_toolkit(services, foreign)
    os.mkfifo(run / "metrics.jsonl")
    (job,) = jobs_of(services).values()
    for path in ("/jobs/{}/loss", "/jobs/{}/log", "/jobs/{}", "/api/jobs/{}/log", "/api/jobs/{}/metrics"):
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.get, path.format(job.id))
            try:
                assert answer.result(timeout=20).status_code == 200, path
            finally:
                for name in ("log.txt", "validation.json", "metrics.jsonl"):  # who waits is let go
                    os.close(os.open(run / name, os.O_RDWR | os.O_NONBLOCK))
