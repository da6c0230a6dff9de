"""The pages of many jobs: by lane, the dashboard, runs side by side, settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from testing.web.pages_support import HTML, HTMX, ended_job, running_job, set_columns
from web import actions
from web.system import parse_gpus, read_disks, read_gpus


def waiting(services, config, names: str, device: str = "gpu:0") -> dict[str, str]:
    """Jobs that wait, by name."""
    found = {}
    for name in names:
        job = actions.create_job(services, config(name), devices=[device])
        found[name] = actions.enqueue_job(services, job.id, start_queue=False).id
    return found


def order(services, ids: dict[str, str]) -> str:
    names = {job_id: name for name, job_id in ids.items()}
    return "".join(names[job.id] for job in services.lanes.order() if job.id in names)


def test_jobs_stand_in_their_lanes_in_order(client, services, config):
    waiting(services, config, "abc")
    waiting(services, config, "xy", "gpu:1")
    running_job(services, config("runs"))
    failed = actions.create_job(services, config("broken"))
    set_columns(services, failed, status="failed", reason="out of memory")
    page = client.get("/jobs").text
    lanes = re.split(r'<section class="lane"', page)
    zero = next(lane for lane in lanes if ">gpu:0</h2>" in lane)
    assert re.findall(r'class="name"><a [^>]*>(\w+)<', zero) == ["runs", "a", "b", "c"]
    assert "3 waiting" in zero and "12 / 40" in zero and "1 min 15 s" in zero
    assert "out of memory" in lanes[-1]
    part = client.get("/jobs", headers=HTMX).text
    assert part.lstrip().startswith('<section class="lane"') and "out of memory" in part


@pytest.mark.parametrize(
    ("name", "to", "expected"),
    [("c", "up", "acbd"), ("a", "up", "abcd"), ("b", "down", "acbd"), ("d", "down", "abcd"),
     ("d", "first", "dabc"), ("a", "last", "bcda"), ("b", "up", "bacd")],
)  # fmt: skip
def test_a_job_moves_past_its_neighbour(client, services, config, name, to, expected):
    ids = waiting(services, config, "abcd")
    answer = client.post(f"/jobs/{ids[name]}/move", data={"to": to}, follow_redirects=False)
    assert answer.status_code == 303 and order(services, ids) == expected


def test_a_neighbour_is_one_on_the_same_devices(client, services, config):
    first = waiting(services, config, "a")
    other = waiting(services, config, "x", "gpu:1")
    ids = first | other | waiting(services, config, "b")
    client.post(f"/jobs/{ids['b']}/move", data={"to": "up"})
    assert order(services, ids) == "bax"


def test_jobs_of_a_device_that_is_gone_are_shown_and_told(client, services, config):
    (job_id,) = waiting(services, config, "w").values()
    waits = set_columns(services, services.store.get(job_id), devices="gpu:7")
    runs = set_columns(services, running_job(services, config("runs")), devices="gpu:0,gpu:7")
    for headers in (HTML, HTMX):
        text = client.get("/jobs", headers=headers).text
        assert "Devices that are not here" in text
        stranded = text.partition("Devices that are not here")[2].partition('id="others"')[0]
        assert all(f"/jobs/{job.id}" in stranded for job in (waits, runs))
        assert "This machine has gpu:0" in stranded
    for job in (waits, runs):
        set_columns(services, job, devices="gpu:0")
    assert "Devices that are not here" not in client.get("/jobs", headers=HTML).text


def test_a_queue_is_started_and_stopped(client, services, config):
    waiting(services, config, "a")
    assert "start the queue to run them" in client.get("/jobs").text

    def started() -> bool:
        return next(lane.started for lane in services.lanes.all() if lane.device == "gpu:0")

    assert client.post("/lanes/gpu:0/start", follow_redirects=False).status_code == 303 and started()
    client.post("/lanes/gpu:0/stop")
    assert not started()
    assert client.post("/lanes/gpu:9/start", headers=HTML).status_code == 404
    job = running_job(services, config("runs"))
    client.post("/lanes/gpu:0/stop", data={"requeue": "true"})
    stopping = services.store.get(job.id)
    assert stopping.status == "stopping" and stopping.requeue


def test_jobs_are_searched_and_paged(client, services, config):
    for number in range(60):
        actions.create_job(services, config(f"job {number}"))
    page = client.get("/jobs").text
    link = re.search(r'href="([^"]*cursor=[^"]*)"', page)[1].replace("&amp;", "&")
    older = client.get(link).text
    names = [re.findall(r'class="name"><a [^>]*>(job \d+)<', text) for text in (page, older)]
    assert len(names[0]) == 50 and len(names[1]) == 10 and not set(names[0]) & set(names[1])
    found = client.get("/jobs", params={"q": "job 4"}).text
    assert "job 41" in found and "job 5" not in found and 'value="job 4"' in found
    assert "No jobs." in client.get("/jobs", params={"status": "failed"}).text
    assert client.get("/jobs", params={"status": "odd"}, headers=HTML).status_code == 422


def test_the_dashboard_works_without_gpus(client, services, config):
    running_job(services, config("runs"))
    page = client.get("/").text
    assert "runs" in page and "Processor" in page and "free of" in page
    assert "<!doctype" not in client.get("/", headers=HTMX).text


def test_gpus_are_read_from_what_nvidia_smi_prints(tmp_path):
    text = (
        "0, NVIDIA H100, 45, 98, 20480, 81559, 401.55, 700.00, [N/A], 1980, 550.54\n"
        "1, NVIDIA H100, 30, [Not Supported], 0, 81559, 70.1, 700.00, 35, 345, 550.54\nnonsense\n"
    )
    first, second = parse_gpus(text)
    assert (first.index, first.name, first.temperature, first.load, first.fan) == (
        0,
        "NVIDIA H100",
        45,
        98,
        None,
    )
    assert first.memory_used == 20480 * 1024**2 and second.load is None and second.fan == 35
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\necho 'no devices were found'; exit 6\n")
    broken.chmod(0o755)
    assert read_gpus(str(broken)) == (None, "nvidia-smi: no devices were found")
    assert read_gpus(str(tmp_path / "none"))[0] is None


def test_folders_on_one_disk_are_told_once(tmp_path):
    disks = read_disks([("runs", tmp_path), ("data", tmp_path / "not" / "yet")])
    assert [disk.label for disk in disks] == ["runs, data"] and disks[0].total > disks[0].free > 0


def test_runs_are_compared(client, services, config):
    assert "No job has run yet" in client.get("/compare").text
    one, two = ended_job(services, config("one")), ended_job(services, config("two", steps=9))
    page = client.get("/compare", params={"job": [one.id, two.id]}).text
    assert '<span class="added">+        steps: 9' in page and page.count('<img loading="lazy"') == 4
    assert page.count("data-source") == 2 and "step 40" in page
    early = client.get("/compare", params={"job": [one.id, two.id], "step": 0}).text
    assert early.count("<small>step 0</small>") == 4
    assert client.get("/compare", params={"job": list("abcde")}, headers=HTML).status_code == 422


def test_settings_are_changed_and_the_token_is_never_shown(client, services, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    data = {"training_folder": str(runs), "datasets_folder": "", "hf_token": "hf_secret_value"}
    answer = client.post("/settings", data=data)
    assert (
        "Saved." in answer.text
        and "hf_secret_value" not in answer.text
        and "leave empty to keep it" in answer.text
    )
    assert services.preferences.output_root == runs and services.preferences.hf_token == "hf_secret_value"
    client.post("/settings", data={"training_folder": str(services.settings.output_root.resolve())})
    assert services.preferences.output_root == services.settings.output_root.resolve()
    assert services.preferences.hf_token == "hf_secret_value"
    client.post("/settings", data={"forget_token": "true"})
    assert services.preferences.hf_token is None
    wrong = client.post(
        "/settings", data={"training_folder": "not/whole", "datasets_folder": ""}, headers=HTML
    )
    assert wrong.status_code == 422 and "is no folder" in wrong.text and 'value="not/whole"' in wrong.text


def test_every_page_has_labels_and_one_heading(client, services, config):
    job = ended_job(services, config())
    running_job(services, config("runs"))
    for path in ("/", "/jobs", "/compare", f"/compare?job={job.id}", "/settings", "/jobs/new",
                 f"/jobs/{job.id}", f"/jobs/{job.id}/loss",
                 f"/jobs/{job.id}/samples/view?step=40&prompt=0&against=0",
                 f"/jobs/{job.id}/edit", f"/jobs/{job.id}/edit?view=yaml"):  # fmt: skip
        text = re.sub(r"<template.*?</template>", "", client.get(path, headers=HTML).text, flags=re.DOTALL)
        assert text.count("<h1>") == 1, path
        ids = re.findall(r'\sid="([^"]+)"', text)
        assert len(ids) == len(set(ids)), (path, [each for each in ids if ids.count(each) > 1][:3])
        labelled = set(re.findall(r'<label[^>]*\sfor="([^"]+)"', text))
        inside = "".join(re.findall(r"<label.*?</label>", text, re.DOTALL))
        for tag in re.findall(r"<(?:input|select|textarea)\b[^>]*>", text):
            if 'type="hidden"' in tag or tag in inside:
                continue
            found = re.search(r'\sid="([^"]+)"', tag)
            assert found and found[1] in labelled, (path, tag)
        for tag in re.findall(r"<img\b[^>]*>", text):
            assert ' alt="' in tag, (path, tag)


def test_a_page_under_another_root_leads_to_pages_there(settings, config):
    from dataclasses import replace

    from starlette.testclient import TestClient

    from web.app import create_app

    app = create_app(replace(settings, root_path="/tools"))
    with TestClient(app, base_url="http://localhost:8675", root_path="/tools") as client:
        job = ended_job(app.state.services, config())
        for path in ("/", "/jobs", "/compare", "/settings", "/jobs/new", f"/jobs/{job.id}",
                     f"/jobs/{job.id}/edit", f"/jobs/{job.id}/samples"):  # fmt: skip
            text = client.get(f"/tools{path}", headers=HTML).text
            for url in re.findall(r'(?:href|src|action|hx-get|data-source|data-url)="(/[^"]*)"', text):
                assert url.startswith("/tools/"), (path, url)
        answer = client.post(f"/tools/jobs/{job.id}/start", follow_redirects=False)
        assert answer.headers["location"] == f"/tools/jobs/{job.id}"
    assert Path(job.run_folder).is_dir()
