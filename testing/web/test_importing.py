"""What becomes of the jobs and runs of ai-toolkit: states, names, folders, problems of their configs."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from testing.web.foreign_kit import CREATED, add_job, job_config, make_database, make_run, tree
from testing.web.import_support import entry_of, jobs_of
from web import actions
from web.importing.service import import_ai_toolkit
from web.problems import ApiError

STATES = [
    # status, stop, step, info -> state, part of the reason
    ("completed", 0, 500, "Training completed", "completed", "finished in ai-toolkit: Training completed"),
    ("error", 0, 120, "CUDA out of memory", "failed", "failed in ai-toolkit: CUDA out of memory"),
    ("queued", 0, 0, "Job queued", "draft", "waited in ai-toolkit's queue"),
    ("running", 0, 40, "Training", "stopped", "was running in ai-toolkit when it was imported"),
    ("running", 1, 40, "Stopping job...", "stopped", "was stopping in ai-toolkit"),
    ("stopped", 0, 40, "Job stopped", "stopped", "stopped in ai-toolkit: Job stopped"),
    ("stopped", 0, 0, "", "draft", "never ran in ai-toolkit"),
    ("paused", 0, 40, "", "stopped", "was 'paused' in ai-toolkit, a state that is not known here"),
]


def test_states_become_ours_with_their_reason(services, foreign):
    rows = [
        {"name": f"job_{n}", "status": s, "stop": stop, "step": step, "info": info, "total_steps": 500}
        for n, (s, stop, step, info, *_) in enumerate(STATES)
    ]
    make_database(foreign / "aitk_db.db", rows)
    import_ai_toolkit(services, foreign)
    found = jobs_of(services)
    assert len(found) == len(STATES)
    for number, (_, _, step, _, state, reason) in enumerate(STATES):
        job = found[f"job_{number}"]
        assert (job.status, job.step, job.total_steps, job.attempt) == (state, step, 500, 0)
        assert reason in job.reason
        assert (job.ended_at is None) == (state == "draft")
    assert found["job_0"].created_at == CREATED / 1000 and found["job_0"].updated_at == CREATED / 1000 + 5
    event = services.store.events(found["job_3"].id)[0]
    assert (event["who"], event["from_status"], event["to_status"]) == ("import", None, "stopped")
    assert f"imported from {foreign}" in event["reason"]


@pytest.mark.parametrize("upstream", [False, True], ids=["fork", "upstream"])
def test_both_versions_of_the_schema_are_read(services, foreign, upstream):
    row = {"status": "stopped", "step": 10, "gpu_ids": "1,0"}
    make_database(
        foreign / "aitk_db.db", [{**row, "total_steps": 77} if upstream else row], upstream=upstream
    )
    import_ai_toolkit(services, foreign)
    job = jobs_of(services)["job_0"]
    assert job.total_steps == (77 if upstream else 500)  # else its config says
    assert job.devices == ("gpu:0", "gpu:1") and job.kind == "train"


@pytest.mark.parametrize("gpu_ids", ["7", "", "mps", "0,x"])
def test_a_gpu_that_is_not_here_is_told(services, foreign, gpu_ids):
    make_database(foreign / "aitk_db.db", [{"gpu_ids": gpu_ids}])
    plan = import_ai_toolkit(services, foreign)
    assert jobs_of(services)["job_0"].devices == ("gpu:0",)
    assert any("are not all here: it gets gpu:0" in note for note in plan.entries[0].notes)


def test_importing_twice_adds_nothing_and_what_is_new_is_added(services, foreign):
    database = make_database(foreign / "aitk_db.db", [{}, {"status": "completed", "name": "second"}])
    make_run(foreign / "output" / "second")
    make_run(foreign / "output" / "alone")
    first = import_ai_toolkit(services, foreign)
    assert {entry.name for entry in first.imported} == {"job_0", "second", "alone"}
    before = jobs_of(services)
    again = import_ai_toolkit(services, foreign)
    assert again.imported == [] and jobs_of(services) == before
    assert entry_of(again, "second").skipped == "it was imported before, as second"
    # By the folder of runs alone they are known too, and a job that was renamed here keeps its place.
    assert import_ai_toolkit(services, foreign / "output").imported == []
    with sqlite3.connect(database) as connection:
        add_job(connection, 9, {"name": "third"})
        connection.execute("UPDATE Job SET status = 'error' WHERE name = 'second'")
    assert [entry.name for entry in import_ai_toolkit(services, foreign).imported] == ["third"]
    assert jobs_of(services)["second"] == before["second"]


def test_a_job_that_was_deleted_here_can_be_imported_again(services, foreign):
    make_database(foreign / "aitk_db.db", [{}])
    import_ai_toolkit(services, foreign)
    services.store.delete(jobs_of(services)["job_0"].id)
    assert [entry.name for entry in import_ai_toolkit(services, foreign).imported] == ["job_0"]


def test_names_that_are_taken_get_another_in_the_config_too(services, foreign, config):
    actions.create_job(services, config("same"))
    make_database(foreign / "aitk_db.db", [{"name": "same"}])
    make_run(foreign / "output" / "same_imported", config=job_config("same"))
    plan = import_ai_toolkit(services, foreign)
    assert [entry.name for entry in plan.imported] == ["same_imported", "same_imported_2"]
    assert "imported as same_imported: a job of this name is here" in plan.entries[0].notes
    found = jobs_of(services)
    assert "name: same_imported_2" in services.store.config(found["same_imported_2"].id)
    assert found["same_imported_2"].run_folder == str(foreign / "output" / "same_imported")


def test_the_run_folder_of_a_job_is_found_by_its_config_or_its_name(services, foreign):
    rows = [
        {"name": "a", "job_config": job_config("real_a"), "status": "stopped", "step": 10},
        {"name": "b", "status": "stopped"},
    ]
    make_database(foreign / "aitk_db.db", rows)
    make_run(foreign / "output" / "real_a")
    make_run(foreign / "output" / "b", finished=False)
    plan = import_ai_toolkit(services, foreign)
    found = jobs_of(services)
    assert set(found) == {"a", "b"}
    assert found["a"].run_folder == str(foreign / "output" / "real_a")
    assert found["b"].run_folder == str(foreign / "output" / "b")
    assert (found["b"].status, found["b"].step) == ("stopped", 250)  # the folder knows of more than the row
    assert "its config calls it 'real_a', the database 'a'" in entry_of(plan, "a").notes
    assert "name: a\n" in services.store.config(found["a"].id)


def test_runs_without_a_database(services, foreign):
    output = foreign / "output"
    make_run(output / "done", steps=(250, 500))
    make_run(output / "half", steps=(250,), finished=False, losses=False)
    make_run(output / "lost", steps=(100,), finished=False)
    (output / "lost" / "config.yaml").unlink()
    (output / "no_run").mkdir()
    before = tree(foreign)
    plan = import_ai_toolkit(services, output)
    found = jobs_of(services)
    assert {name: (job.status, job.step, job.total_steps) for name, job in found.items()} == {
        "done": ("completed", 500, 500), "half": ("stopped", 250, 500), "lost": ("stopped", 100, None),
    }  # fmt: skip
    assert found["half"].reason == "ended in ai-toolkit at step 250; 1 models, 2 previews"
    assert "there is no config.yaml: the job's config holds its name only" in entry_of(plan, "lost").notes
    assert tree(foreign) == before


def test_a_single_run_folder_can_be_imported(services, foreign):
    run = make_run(foreign / "output" / "one")
    assert [entry.name for entry in import_ai_toolkit(services, run).imported] == ["one"]


def test_a_run_that_went_on_after_it_had_finished_has_not_finished(services, foreign):
    import os

    run = make_run(foreign / "output" / "on", steps=(250, 750))
    os.utime(run / "on.safetensors", (CREATED / 1000, CREATED / 1000))
    import_ai_toolkit(services, run)
    assert jobs_of(services)["on"].status == "stopped"


def test_what_our_check_says_is_told_and_the_config_is_kept(services, foreign):
    config = job_config("odd", "/elsewhere/output")
    config["config"]["process"][0]["train"]["no_such_key"] = 3
    make_database(foreign / "aitk_db.db", [{"name": "odd", "job_config": config}])
    entry = import_ai_toolkit(services, foreign).entries[0]
    text = services.store.config(jobs_of(services)["odd"].id)
    assert "no_such_key: 3" in text and "training_folder: /elsewhere/output" in text
    said = " ".join(str(problem) for problem in entry.problems)
    assert "no_such_key" in said
    with pytest.raises(ApiError, match="no_such_key"):
        actions.enqueue_job(services, jobs_of(services)["odd"].id)


def test_settings_are_shown_and_not_taken(services, foreign):
    settings = {"HF_TOKEN": "hf_secret", "DATASETS_FOLDER": "/data/sets", "TRAINING_FOLDER": "/data/runs",
                "OTHER_KEY": "another_secret"}  # fmt: skip
    make_database(foreign / "aitk_db.db", [{}], settings=settings)
    before = services.preferences.output_root, services.preferences.datasets_root
    plan = import_ai_toolkit(services, foreign)
    assert plan.settings == {"HF_TOKEN": "set", "DATASETS_FOLDER": "/data/sets",
                             "TRAINING_FOLDER": "/data/runs", "OTHER_KEY": "set"}  # fmt: skip
    assert any("lies outside" in note and "--db" in note for note in plan.notes)
    assert (services.preferences.output_root, services.preferences.datasets_root) == before
    assert services.preferences.hf_token is None


def test_the_training_folder_is_read_where_it_lies_below_and_with_db_elsewhere(services, foreign, tmp_path):
    make_run(foreign / "runs" / "inside")
    make_database(foreign / "aitk_db.db", [], settings={"TRAINING_FOLDER": str(foreign / "runs")})
    assert [entry.name for entry in import_ai_toolkit(services, foreign).imported] == ["inside"]
    make_run(tmp_path / "far" / "job_0")
    database = make_database(tmp_path / "db" / "aitk_db.db", [{"status": "completed"}])
    plan = import_ai_toolkit(services, tmp_path / "far", database)
    assert [(entry.name, entry.folder) for entry in plan.imported] == [("job_0", tmp_path / "far" / "job_0")]


def test_a_run_that_is_found_later_is_shown_by_the_job_that_was_imported(services, foreign, tmp_path):
    run = make_run(tmp_path / "far" / "job_0")
    make_database(foreign / "aitk_db.db", [{"status": "completed"}])
    import_ai_toolkit(services, foreign)
    assert jobs_of(services)["job_0"].run_folder is None
    plan = import_ai_toolkit(services, run.parent, foreign / "aitk_db.db")
    assert plan.imported == [] and plan.entries[0].skipped.endswith("its run is shown there now")
    job = jobs_of(services)["job_0"]
    assert job.run_folder == str(run) and len(jobs_of(services)) == 1
    assert services.store.events(job.id)[-1]["reason"] == f"its run is shown from {run}"
    again = import_ai_toolkit(services, run.parent, foreign / "aitk_db.db")
    assert (
        again.entries[0].skipped == "it was imported before, as job_0" and jobs_of(services)["job_0"] == job
    )


def test_runs_of_ours_are_left_out(services, foreign, config):
    mine = make_run(foreign / "output" / "mine")
    (mine / "status.json").write_text("{}")
    plan = import_ai_toolkit(services, foreign)
    assert plan.imported == [] and any("is a run of this toolkit" in note for note in plan.notes)
    job = actions.create_job(services, config("user"))
    used = make_run(Path(services.settings.output_root) / "used")
    services.store.enqueue(job.id, config("user"), [str(used)])
    assert import_ai_toolkit(services, used.parent).entries[0].skipped == "its folder is that of the job user"


def test_a_dry_run_changes_nothing(services, foreign):
    make_database(foreign / "aitk_db.db", [{}])
    plan = import_ai_toolkit(services, foreign, dry_run=True)
    assert [entry.name for entry in plan.imported] == ["job_0"] and jobs_of(services) == {}


def test_a_live_database_is_read_beside_its_writer(services, foreign):
    database = make_database(foreign / "aitk_db.db", [{}])
    writer = sqlite3.connect(database)
    with writer:
        add_job(writer, 5, {"name": "just_made"})
    before = tree(foreign)
    assert (foreign / "aitk_db.db-wal").stat().st_size > 0
    plan = import_ai_toolkit(services, foreign)
    assert set(jobs_of(services)) == {"job_0", "just_made"}
    assert any("aitk_db.db is in use" in note for note in plan.notes)
    assert {name: before[name] for name in before if not name.endswith("-shm")} == {
        name: value for name, value in tree(foreign).items() if not name.endswith("-shm")
    }
    writer.close()


def test_two_imports_at_once_make_each_job_once(services, foreign):
    make_database(foreign / "aitk_db.db", [{}] + [{"name": f"n{n}"} for n in range(20)])
    refused = []

    def go() -> None:
        try:
            import_ai_toolkit(services, foreign)
        except ApiError as error:
            refused.append(error.status)

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(jobs_of(services)) == 21 and set(refused) <= {409}
