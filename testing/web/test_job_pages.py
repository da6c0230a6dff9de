"""The pages around one job, and the forms on them, without any script."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from testing.web.pages_support import EVIL, HTML, HTMX, ended_job, running_job, set_columns, write_run
from web import actions
from web.runs.logs import read_slice
from web.runs.sketch import sketch

TABS = [
    "",
    "/loss",
    "/samples",
    "/files",
    "/config",
    "/events",
    "/samples/view?step=40&prompt=1",
    "/head",
    "/delete",
]


@pytest.fixture
def ended(services, config):
    return ended_job(services, config())


def test_every_tab_is_a_page_of_its_own(client, ended):
    for tab in TABS:
        page = client.get(f"/jobs/{ended.id}{tab}", headers=HTML)
        assert page.status_code == 200, tab
        assert page.text.startswith("<!doctype html>") == (tab != "/head")
        assert page.headers["cache-control"] == "no-store"
        assert (
            "<script>" not in page.text
            and " style=" not in page.text
            and not re.findall(r"\son\w+=", page.text)
        )


def test_a_fragment_is_the_part_that_changes_and_no_whole_page(client, ended):
    for tab in ("", "/samples", "/files", "/events"):
        part = client.get(f"/jobs/{ended.id}{tab}", headers=HTMX).text
        assert "<!doctype" not in part and "<nav" not in part
        again = client.get(f"/jobs/{ended.id}{tab}", headers={**HTMX, "HX-History-Restore-Request": "true"})
        assert again.text.startswith("<!doctype html>") and "HX-Request" in again.headers["vary"]


def test_a_job_that_is_not_there_is_a_page_for_browsers_and_a_problem_for_programs(client):
    for path in (
        "/jobs/none",
        "/jobs/none/loss",
        "/jobs/none/edit",
        "/compare?job=none",
        "/jobs/new?clone=none",
    ):
        page = client.get(path, headers=HTML)
        assert page.status_code == 404 and "<h1>Not Found</h1>" in page.text, path
        assert client.get(path).json()["code"] == "web.not_found"


def test_the_overview_tells_state_reason_and_progress(client, services, config):
    job = running_job(services, config())
    page = client.get(f"/jobs/{job.id}").text
    for text in ("running", "step 12 of 40 (30.0 %)", "1 min 15 s", "2.50 it/s", "Save now", "Sample now",
                 "Kill", "small.safetensors", "Loading model"):  # fmt: skip
        assert text in page, text
    assert "/edit" not in page and 'id="do-start"' not in page
    set_columns(services, job, status="failed", reason="no space left on the disk", exit_code=1)
    page = client.get(f"/jobs/{job.id}/head").text
    assert "no space left on the disk" in page and "Resume from step 40" in page and "Kill" not in page


def test_a_job_resumes_from_the_step_of_its_newest_checkpoint(client, services, config):
    job = ended_job(services, config(), "failed", step=302, reason="killed")
    states = Path(job.run_folder) / "checkpoints"
    for step, parts in ((132, ["manifest.json"]), (200, [])):  # the second was never finished
        (states / f"step_{step:09d}").mkdir()
        for part in parts:
            (states / f"step_{step:09d}" / part).write_text("{}")
    (states / "damaged_step_000000300").mkdir()
    (states / "damaged_step_000000300" / "manifest.json").write_text("{}")
    assert "Resume from step 132<" in client.get(f"/jobs/{job.id}/head").text
    shutil.rmtree(states)
    page = client.get(f"/jobs/{job.id}/head").text
    assert "Resume" not in page and "Start again" in page
    shutil.rmtree(job.run_folder)
    page = client.get(f"/jobs/{job.id}/head").text
    assert "Resume" not in page and "Start again" in page
    set_columns(services, job, kind="eval")
    assert ">Go on<" in client.get(f"/jobs/{job.id}/head").text


def test_the_log_is_read_on_from_where_it_was(client, services, ended):
    page = client.get(f"/jobs/{ended.id}").text
    offset = int(re.search(r'data-offset="(\d+)"', page)[1])
    path = Path(ended.run_folder) / "log.txt"
    assert offset == path.stat().st_size
    with path.open("a") as log:
        log.write("10%\r20%\n30%")
    answer = client.get(f"/jobs/{ended.id}/log", params={"offset": offset, "of": "run"}).json()
    assert answer == {"text": "20%\n", "offset": offset + 8, "reset": False, "of": "run"}
    path.write_text("new\n")
    assert client.get(f"/jobs/{ended.id}/log", params={"offset": offset, "of": "run"}).json()["reset"]


def test_before_the_run_writes_a_log_the_output_of_the_attempt_is_shown(client, services, config):
    job = actions.create_job(services, config())
    assert "Nothing yet." in client.get(f"/jobs/{job.id}").text
    job = set_columns(services, job, status="failed", attempt=3, started_at=10.0)
    output = services.settings.jobs_root / job.id / "3" / "output.txt"
    output.parent.mkdir(parents=True)
    output.write_text("ImportError: no module named torch\n")
    assert "ImportError: no module named torch" in client.get(f"/jobs/{job.id}").text
    assert client.get(f"/jobs/{job.id}/log").json()["of"] == "attempt 3"
    assert read_slice(output, None).text == "ImportError: no module named torch\n"


def test_what_users_write_is_escaped_everywhere(client, services, config):
    job = ended_job(services, config())
    write_run(Path(job.run_folder), prompts=(EVIL, '"><img src=x onerror=1>'))
    (Path(job.run_folder) / "log.txt").write_text(f"{EVIL}\n")
    (Path(job.run_folder) / "<script>x.safetensors").write_bytes(b"x")
    set_columns(services, job, name=EVIL, reason=EVIL, info=EVIL, phase=EVIL)
    services.store.note(services.store.get(job.id), EVIL)
    pages = [f"/jobs/{job.id}{tab}" for tab in TABS] + [
        "/jobs",
        "/",
        f"/compare?job={job.id}",
        f"/jobs?q={EVIL}",
    ]
    for path in pages:
        text = client.get(path, headers=HTML).text
        assert "<script>" not in text and "<img src=x" not in text, path
    assert "&lt;script&gt;" in client.get(f"/jobs/{job.id}").text


def test_samples_show_prompts_steps_and_recipes(client, ended):
    grid = client.get(f"/jobs/{ended.id}/samples").text
    assert grid.count("<img") == 4 and "a red circle" in grid and grid.index(">40<") < grid.index(">0<")
    for url in re.findall(r'<img loading="lazy" src="([^"]+)"', grid):
        assert client.get(url).headers["content-type"].startswith("image/")
    view = client.get(f"/jobs/{ended.id}/samples/view", params={"step": 40, "prompt": 1, "against": 0}).text
    assert "a blue square" in view and "<dd>8</dd>" in view and 'id="wipe"' in view and 'id="other"' in view
    links = dict(re.findall(r'data-key="(\w+)" href="([^"]+)"', view))
    assert set(links) == {"Escape", "ArrowUp", "ArrowLeft"} or set(links) == {"ArrowUp", "ArrowLeft"}
    assert "step=0&" in links["ArrowUp"].replace("&amp;", "&") and "against=0" in links["ArrowUp"]
    for bad in ({"step": 41, "prompt": 1}, {"step": 40, "prompt": 9}):
        assert client.get(f"/jobs/{ended.id}/samples/view", params=bad).status_code == 404


def test_the_loss_is_drawn_without_scripts_too(client, ended):
    page = client.get(f"/jobs/{ended.id}/loss").text
    points = re.search(r'<polyline points="([^"]+)"', page)[1].split()
    assert len(points) == 40 and points[0] == "0.0,0.0" and points[-1] == "800.0,240.0"  # 1/step falls
    assert sketch([[1, 0.0, None], [2, 0.0, 3.0]]) is None
    flat = sketch([[1, 0.0, 3.0], [2, 0.0, 3.0]])
    assert flat is not None and flat.low == flat.high == 3.0


def test_files_can_be_downloaded(client, ended):
    page = client.get(f"/jobs/{ended.id}/files").text
    url = re.search(r'href="([^"]+small\.safetensors)"', page)[1]
    answer = client.get(url)
    assert answer.content == b"model" and "attachment" in answer.headers["content-disposition"]
    assert "training state" in page and "step_000000040" in page


def test_files_whose_names_are_no_text_are_left_out(client, ended):
    for name in (b"\xff/model_index.json", b"checkpoints/\xfe/manifest.json", b"\xfd.safetensors"):
        path = Path(ended.run_folder) / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for tab in ("", "/files"):
        page = client.get(f"/jobs/{ended.id}{tab}")
        assert page.status_code == 200 and "small.safetensors" in page.text
    assert client.get(f"/api/jobs/{ended.id}/files").status_code == 200


def test_the_config_tells_how_it_differs_from_what_ran(client, services, config, ended):
    assert "As the job was last queued" in client.get(f"/jobs/{ended.id}/config").text
    actions.edit_job(services, ended.id, config(steps=9))
    page = client.get(f"/jobs/{ended.id}/config").text
    assert (
        '<span class="removed">-        steps: 4' in page and '<span class="added">+        steps: 9' in page
    )


def test_forms_do_what_their_buttons_say(client, services, config):
    job = actions.create_job(services, config(), devices=["gpu:0"])

    def post(action: str, **data: str):
        return client.post(f"/jobs/{job.id}/{action}", data=data, headers=HTML, follow_redirects=False)

    def status() -> str:
        return services.store.get(job.id).status

    answer = post("start", next="/jobs")
    assert answer.status_code == 303 and answer.headers["location"] == "/jobs" and status() == "queued"
    assert post("start").status_code == 409  # it waits already
    assert post("leave").headers["location"] == f"/jobs/{job.id}" and status() == "draft"
    assert post("start", next="//evil.example/").headers["location"] == "/"
    set_columns(services, services.store.get(job.id), status="running", attempt=1)
    assert post("stop").status_code == 303 and status() == "stopping"
    assert post("stop", mode="save").status_code == 409  # asked for already
    assert post("stop", mode="kill").status_code == 303 and services.store.get(job.id).stop_mode == "kill"
    page = post("delete")
    assert page.status_code == 409 and "stop it first" in page.text and "<h1>Conflict</h1>" in page.text
    set_columns(services, services.store.get(job.id), status="stopped")
    assert post("delete").headers["location"] == "/jobs"
    assert client.get(f"/jobs/{job.id}", headers=HTML).status_code == 404


def test_save_and_sample_are_put_into_the_run_folder(client, services, config):
    job = running_job(services, config())
    for name in ("save", "sample"):
        assert (
            client.post(f"/jobs/{job.id}/command", data={"name": name}, follow_redirects=False).status_code
            == 303
        )
        assert (Path(job.run_folder) / "commands" / name).exists()
    assert client.post(f"/jobs/{job.id}/command", data={"name": "stop"}).status_code == 422


def test_a_run_is_deleted_only_if_that_is_asked_for(client, services, config, ended):
    folder = Path(ended.run_folder)
    assert "keep its files" in client.get(f"/jobs/{ended.id}/delete").text
    client.post(f"/jobs/{ended.id}/delete", data={"files": "false"})
    assert folder.is_dir()
    again = ended_job(services, config())
    client.post(f"/jobs/{again.id}/delete", data={"files": "true"})
    assert not folder.exists()


def test_a_config_with_problems_is_kept_but_not_queued(client, services):
    job = actions.create_job(
        services, "job: train\nconfig: {name: half, process: [{type: sd_trainer, stepz: 4}]}"
    )
    page = client.post(f"/jobs/{job.id}/start", headers=HTML)
    assert page.status_code == 422 and "stepz" in page.text and "line 2" in page.text
    assert services.store.get(job.id).status == "draft"
