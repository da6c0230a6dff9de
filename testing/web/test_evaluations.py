"""Evaluations: asked for over the API or by the form, queued as jobs, their reports read and shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from testing.web.dataset_kit import make_dataset, report, write_report
from web.queue.states import STATES

URL = "/api/eval_dataset"
HTML = {"Accept": "text/html"}


@pytest.fixture
def pets(settings):
    """A dataset of two pictures."""
    return make_dataset(settings.datasets_root)


def section(client, identifier):
    """The process of an evaluation's config."""
    text = client.get(f"/api/jobs/{identifier}/config").json()["snapshot_yaml"]
    return yaml.safe_load(text)["config"]["process"][0]


def ask(client, **body):
    return client.post(URL, json={"dataset_path": "pets", "model": "tiny-sd", **body})


def finish(services, identifier, body):
    """What the evaluator leaves: its report, and a job that is done."""
    job = services.store.get(identifier)
    services.lanes.claim()
    services.store.finish(services.store.get(identifier), "completed", "finished")
    return write_report(services.preferences.output_root, body, job.name)


# -- asked for ---------------------------------------------------------------------------------------------


def test_every_setting_reaches_the_job(client, pets, services):
    body = {
        "batch_size": 4,
        "sample_fraction": 0.5,
        "max_samples": 6,
        "samples_per_image": 3,
        "fixed_noise_std": 0.6,
        "debug_captions": True,
        "ablation_compare": False,
        "seed": 7,
        "eval_resolution": 64,
        "device": "gpu:1",
        "model_config": {"dtype": "fp32"},
    }
    response = ask(client, **body)
    assert response.status_code == 200 and response.json()["status"] == "queued"
    identifier = response.json()["id"]
    process = section(client, identifier)
    assert process["type"] == "eval_dataset" and process["model"] == {
        "name_or_path": "tiny-sd",
        "dtype": "fp32",
    }
    assert process["eval"] == {
        "dataset_path": [str(pets)],
        "batch_size": 4,
        "sample_fraction": 0.5,
        "max_samples": 6,
        "samples_per_image": 3,
        "fixed_noise_std": 0.6,
        "debug_captions": True,
        "caption_ablation_compare": False,
        "seed": 7,
        "eval_resolution": 64,
    }
    job = services.store.get(identifier)
    assert (job.kind, job.status, job.devices) == ("eval", "queued", ("gpu:1",))
    assert Path(job.run_folders[0]) == services.preferences.output_root / job.name


def test_the_page_of_its_job_leads_to_the_report_and_shows_nothing_of_a_training(client, pets):
    identifier = ask(client).json()["id"]
    page = client.get(f"/jobs/{identifier}", headers=HTML).text
    assert f'href="/evaluations/{identifier}"' in page
    tabs = re.findall(rf'href="/jobs/{identifier}(/?\w*)"', page[page.index('class="tabs"') :])
    assert tabs[:3] == ["", "/config", "/events"]
    assert "Learning rate" not in page and "Newest files" not in page
    assert client.get(f"/evaluations/{identifier}", headers=HTML).status_code == 200


def test_what_is_left_out_has_the_defaults(client, pets):
    process = section(client, ask(client).json()["id"])
    assert process["eval"] == {
        "dataset_path": [str(pets)],
        "batch_size": 1,
        "sample_fraction": 1.0,
        "samples_per_image": 8,
        "debug_captions": False,
        "caption_ablation_compare": True,
    }


@pytest.mark.parametrize(
    "body",
    [
        {"batch_size": 0},
        {"sample_fraction": 0},
        {"sample_fraction": 1.5},
        {"max_samples": 0},
        {"samples_per_image": 0},
        {"fixed_noise_std": 0},
        {"fixed_noise_std": 1.1},
        {"fixed_noise_std": "loud"},
        {"model": None},
        {"model": ""},
        {"model_config": {"arch": "sd99"}},
        {"model_config": {"nme": "x"}},
        {"device": "gpu:9"},
        {"device": "x y"},
        {"unknown": 1},
        {"lora": "none.safetensors"},
        {"dataset_path": ""},
        {"model": "${AI_TOOLKIT_AUTH}"},
    ],
)
def test_a_setting_that_cannot_be_is_told_and_leaves_no_job(client, pets, body):
    response = ask(client, **body)
    assert response.status_code == 422 and response.json()["error"], response.text
    assert client.get("/api/jobs").json()["jobs"] == []


def test_the_dataset_may_be_named_or_pointed_at(client, pets, services):
    for text in ("pets", str(pets)):
        assert ask(client, dataset_path=text).status_code == 200
    assert {job["dataset"] for job in client.get(URL).json()["jobs"]} == {"pets"}
    assert len({job["name"] for job in client.get(URL).json()["jobs"]}) == 2


def test_ai_toolkits_devices_are_understood(client, pets, services):
    for device, lane in (("cuda", "gpu:0"), ("cuda:1", "gpu:1"), ("cpu", "cpu:0")):
        assert services.store.get(ask(client, device=device).json()["id"]).devices == (lane,)


def test_a_repeated_request_makes_one_job(client, pets):
    made = [
        client.post(URL, json={"dataset_path": "pets", "model": "tiny-sd"}, headers={"Idempotency-Key": "k"})
        for _ in range(2)
    ]
    assert made[0].json()["id"] == made[1].json()["id"] and len(client.get(URL).json()["jobs"]) == 1
    other = client.post(URL, json={"dataset_path": "pets", "model": "x/y"}, headers={"Idempotency-Key": "k"})
    assert other.status_code in (409, 422)


def test_a_model_address_stays_a_text(client, pets):
    """The server fetches nothing; whoever runs the job says what the model is."""
    response = ask(client, model="http://169.254.169.254/latest")
    assert response.status_code in (200, 422)
    if response.status_code == 200:
        assert (
            section(client, response.json()["id"])["model"]["name_or_path"] == "http://169.254.169.254/latest"
        )


# -- followed ----------------------------------------------------------------------------------------------


def test_an_evaluation_is_followed_to_its_report(client, pets, services):
    identifier = ask(client).json()["id"]
    job = client.get(f"{URL}/{identifier}/status").json()["job"]
    assert (job["status"], job["model"], job["out_json"]) == ("queued", "tiny-sd", None)
    assert json.loads(job["params"])["samples_per_image"] == 8
    early = client.get(f"{URL}/{identifier}/result")
    assert early.status_code == 404 and early.json()["error"] == "Result not yet available"
    body = report(pets, {"cat.png": {}})
    path = finish(services, identifier, body)
    assert client.get(f"{URL}/{identifier}/result").json() == body
    done = client.get(f"{URL}/{identifier}/status").json()["job"]
    assert (done["status"], done["out_json"]) == ("finished", str(path))
    path.write_text("{")
    assert client.get(f"{URL}/{identifier}/result").status_code == 500
    path.write_text('{"kind": "eval_dataset", "run": {}, "datasets": [3], "images": []}')
    assert client.get(f"{URL}/{identifier}/result").status_code == 500


def test_every_state_has_a_word_of_ai_toolkit():
    from web.evaluations.status import STATUS

    assert set(STATUS) == set(STATES)
    assert set(STATUS.values()) == {"queued", "running", "finished", "error", "stopped"}


def test_an_evaluation_is_cancelled(client, pets, services):
    waiting, running = ask(client).json()["id"], ask(client, device="gpu:1").json()["id"]
    assert client.post(f"{URL}/{waiting}/cancel").json()["job"]["status"] == "stopped"
    assert client.post(f"{URL}/{waiting}/cancel").status_code == 409
    services.lanes.claim()
    assert client.post(f"{URL}/{running}/cancel").json()["job"]["job_status"] == "stopping"


def test_other_jobs_are_no_evaluations(client, config):
    made = client.post("/api/jobs", json={"config_yaml": config()}).json()["id"]
    for path in (
        f"{URL}/{made}/status",
        f"{URL}/{made}/result",
        f"{URL}/none/status",
        f"/evaluations/{made}",
    ):
        assert client.get(path).status_code == 404
    assert client.post(f"{URL}/{made}/cancel").status_code == 404 and client.get(URL).json() == {"jobs": []}


def test_a_config_that_leads_elsewhere_has_no_report(client, pets, services, settings):
    """A job of kind eval made by hand whose folder lies outside."""
    outside = settings.output_root.parent / "outside"
    write_report(outside, report(pets, {"cat.png": {}}), "x")
    text = (
        "job: eval\nconfig:\n  name: x\n  process:\n    - type: eval_dataset\n"
        f"      training_folder: {outside}\n"
        f"      model: {{name_or_path: tiny-sd}}\n      eval: {{dataset_path: [{pets}]}}\n"
    )
    job = services.store.create("x", "eval", text, ("cpu:0",))
    assert client.get(f"{URL}/{job.id}/result").status_code == 404
    for broken in ("job: [", "job: eval", "- 1", "job: eval\nconfig: {name: y, process: [3]}"):
        made = services.store.create(broken, "eval", broken, ("cpu:0",))
        assert client.get(f"{URL}/{made.id}/status").status_code == 200
        assert client.get(f"/evaluations/{made.id}").status_code == 200


# -- report files ------------------------------------------------------------------------------------------


def test_report_files_are_listed_and_read(client, pets, settings):
    body = report(pets, {"cat.png": {}})
    write_report(settings.output_root, body, "run")
    write_report(settings.output_root / "eval", body, "tool")
    write_report(settings.datasets_root, report(pets.parent / "other", {}), "pets")
    (pets / "junk_000000000.json").write_text("{}")
    (pets / "cat.json").write_text('{"caption": "x"}')
    files = client.get(f"{URL}/files").json()["files"]
    assert sorted(each["path"] for each in files) == [
        "datasets/pets/pets_000000000.json",
        "output/eval/tool/tool_000000000.json",
        "output/run/run_000000000.json",
    ]
    assert all(each["modelName"] == "tiny-sd" and each["mtimeMs"] > 1e12 for each in files)
    own = client.get(f"{URL}/files?dataset=pets").json()["files"]
    assert len(own) == 2 and client.get(f"{URL}/files?dataset=none").status_code == 404
    assert client.get(f"{URL}/file", params={"path": own[0]["path"]}).json() == body
    for bad in (
        "",
        "x",
        "output/../output/run/run_000000000.json",
        "/etc/passwd",
        "data/web.sqlite",
        "output/run/x.json",
        "datasets/pets/cat.json",
        str(settings.output_root / "run/run_000000000.json"),
    ):
        assert client.get(f"{URL}/file", params={"path": bad}).status_code in (400, 404), bad
    assert client.get(f"{URL}/file", params={"path": "datasets/pets/junk_000000000.json"}).status_code == 500


def test_reports_with_numbers_and_signs_that_json_cannot_send(client, pets, settings):
    path = write_report(settings.output_root, report(pets, {"cat.png": {}}))
    text = (
        path.read_text()
        .replace('"mean_loss": 0.1', '"mean_loss": NaN')
        .replace("a cat", "\\ud800 \\ud83d\\ude00")
    )
    path.write_text(text)
    body = client.get(f"{URL}/file", params={"path": "output/measured/measured_000000000.json"}).json()
    assert body["datasets"][0]["mean_loss"] is None and body["images"][0]["caption"] == "? 😀"


def test_links_to_reports_are_not_followed(client, pets, settings, tmp_path):
    outside = write_report(tmp_path / "elsewhere", report(pets, {}), "secret")
    (settings.output_root / "run").mkdir(parents=True)
    (settings.output_root / "run" / "x_000000000.json").symlink_to(outside)
    (settings.output_root / "linked").symlink_to(outside.parent)
    assert client.get(f"{URL}/files").json()["files"] == []
    assert client.get(f"{URL}/file", params={"path": "output/run/x_000000000.json"}).status_code == 404


def test_a_linked_folder_of_evaluations_is_not_followed(client, pets, settings, tmp_path):
    write_report(tmp_path / "elsewhere", report(pets, {}), "tool")
    settings.output_root.mkdir(parents=True, exist_ok=True)
    (settings.output_root / "eval").symlink_to(tmp_path / "elsewhere")
    assert client.get(f"{URL}/files").json()["files"] == []


# -- pages -------------------------------------------------------------------------------------------------


def test_an_evaluation_is_run_from_the_datasets_page(client, pets):
    """The words that end-to-end scripts look for."""
    page = client.get("/datasets/pets").text
    assert "Dataset: pets" in page and "Run Evaluation" in page and "Recent Evaluations" in page
    form = client.get("/datasets/pets/evaluate").text
    assert "Run Dataset Evaluation" in form and "<button>Run</button>" in form
    sent = client.post(
        "/datasets/pets/evaluate", data={"model": "tiny-sd", "max_samples": "", "ablation_compare": "true"}
    )
    assert (
        sent.url.path == "/datasets/pets" and '<td><span class="badge queued">queued</span></td>' in sent.text
    )
    assert "View JSON" not in sent.text
    assert "queued" in client.get("/datasets/pets/evaluations").text


def test_the_form_keeps_what_was_typed_and_tells_what_is_wrong(client, pets):
    data = {
        "model": "my<model>",
        "batch_size": "0",
        "sample_fraction": "lots",
        "arch": "sd15",
        "debug_captions": "true",
    }
    response = client.post("/datasets/pets/evaluate", data=data)
    assert response.status_code == 422 and 'role="alert"' in response.text
    for text in ("my&lt;model&gt;", "batch_size", "sample_fraction", 'value="lots"'):
        assert text in response.text
    wrong = client.post("/datasets/pets/evaluate", data={"model": "tiny-sd", "arch": "sd99"})
    assert wrong.status_code == 422 and "unknown architecture" in wrong.text and 'value="sd99"' in wrong.text


def test_a_report_is_a_page(client, pets, services):
    identifier = ask(client).json()["id"]
    assert "not there yet" in client.get(f"/evaluations/{identifier}").text
    images = {
        "cat.png": {"gain": -0.25, "flagged": True, "reasons": [{"code": "hurts", "message": "it hurts"}]},
        "dog.png": {"gain": 1.0},
    }
    path = finish(services, identifier, report(pets, images))
    path.with_suffix(".html").write_text("<script>alert(1)</script>")
    page = client.get(f"/evaluations/{identifier}").text
    assert "raises the loss by 28%" in page and "lowers the loss by 63%" in page and "it hurts" in page
    assert page.index("cat.png") < page.index("dog.png") and "View JSON" in page and "<polyline" in page
    assert "dog.png" not in client.get(f"/evaluations/{identifier}?flagged=true").text
    by_loss = client.get(f"/evaluations/{identifier}?metric=loss").text
    assert by_loss.count("<strong>0.1</strong>") == 2
    beside = client.get(f"/api/files/output/{path.parent.name}/{path.stem}.html")
    assert beside.headers["content-disposition"].startswith("attachment")
    assert f"output/{path.parent.name}/{path.stem}.html" in page
    listed = client.get("/evaluations").text
    assert "View JSON" in listed and "Report files" in listed and path.name in listed
    on_page = client.get("/datasets/pets?sort=worst").text
    assert "-0.25" in on_page and "flagged" in on_page and on_page.index("cat.png") < on_page.index("dog.png")
    detail = client.get("/datasets/pets/picture/cat.png").text
    assert "it hurts" in detail


@pytest.mark.parametrize(
    "damage",
    [
        {"run": {}},
        {"notes": 3},
        {"datasets": [{}]},
        {"images": [{}]},
        {"images": [{"path": 3, "caption": None, "loss": "x", "log_ratio": 3, "reasons": 5, "hints": [3]}]},
        {"datasets": [{"path": "x", "curve": [{"t": None}, 3], "log_ratio": 3, "reasons": []}]},
        {"datasets": [{"path": "\0", "mean_loss": "x"}]},
        {"images": [{"dataset": "\0", "log_ratio": {"mean": 1e400}}]},
    ],
)
def test_a_report_of_another_make_never_breaks_a_page(client, pets, settings, damage):
    path = write_report(settings.output_root, {**report(pets, {"cat.png": {}}), **damage})
    for page in (
        "/evaluations",
        "/datasets",
        "/datasets/pets",
        "/datasets/pets/picture/cat.png",
        "/evaluations/report?path=output/measured/measured_000000000.json",
    ):
        response = client.get(page, headers=HTML)
        assert response.status_code in (200, 500), page
        assert response.status_code == 200 or response.json()["code"] != "web.internal" or page, response.text
        assert "something went wrong" not in response.text, (page, damage)
    path.unlink()


def test_a_page_of_a_cancelled_evaluation(client, pets):
    identifier = ask(client).json()["id"]
    response = client.post(f"/evaluations/{identifier}/cancel")
    assert response.url.path == f"/evaluations/{identifier}" and "stopped" in response.text
