"""The API for jobs and the queue, as its clients see it."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from web import models


def make(client, config, name: str = "small", **extra) -> dict:
    """A draft over the API."""
    response = client.post("/api/jobs", json={"config_yaml": config(name), **extra})
    assert response.status_code == 201, response.text
    return response.json()


def test_a_job_is_made_read_listed_and_deleted(client, config):
    response = client.post("/api/jobs", json={"config_yaml": config(), "devices": ["gpu:1", "gpu:0"]})
    job = response.json()
    assert response.status_code == 201 and response.headers["location"] == f"/api/jobs/{job['id']}"
    assert (job["name"], job["kind"], job["status"], job["devices"]) == (
        "small",
        "train",
        "draft",
        ["gpu:0", "gpu:1"],
    )
    models.JobOut.model_validate(job)
    again = client.get(f"/api/jobs/{job['id']}")
    assert again.json() == job and again.headers["etag"] == response.headers["etag"]
    models.JobList.model_validate(client.get("/api/jobs").json())
    assert client.get("/api/jobs").json() == {"jobs": [job], "next_cursor": None}
    assert client.get(f"/api/jobs/{job['id']}/config").json()["config_yaml"] == config()
    assert client.delete(f"/api/jobs/{job['id']}").status_code == 204
    assert client.get(f"/api/jobs/{job['id']}").status_code == 404


def test_a_config_may_be_an_object_and_need_not_be_able_to_run(client):
    config = {"job": "generate", "config": {"name": "näme 1", "process": []}}
    job = client.post("/api/jobs", json={"config": config}).json()
    assert (job["name"], job["kind"], job["devices"]) == ("näme 1", "generate", ["gpu:0"])
    broken = client.post("/api/jobs", json={"name": "broken", "config_yaml": "job: [unclosed"})
    assert broken.status_code == 201
    refused = client.post(f"/api/jobs/{broken.json()['id']}/enqueue")
    assert refused.status_code == 422 and refused.json()["errors"][0]["line"] == 1
    assert client.get(f"/api/jobs/{broken.json()['id']}").json()["status"] == "draft"


def test_errors_are_problems_that_old_clients_can_read(client):
    for response, status in (
        (client.get("/api/jobs/nothing"), 404),
        (client.post("/api/jobs", json={}), 422),
        (client.post("/api/jobs", json={"config_yaml": "x", "what": 1}), 422),
        (client.get("/api/jobs?limit=0"), 422),
        (client.get("/api/nothing"), 404),
        (client.delete("/api/queue"), 405),
        (client.post("/api/jobs", content=b"{", headers={"Content-Type": "application/json"}), 422),
    ):
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        body = response.json()
        models.ProblemOut.model_validate(body)
        assert body["error"] == body["detail"] and body["status"] == status


def test_half_a_letter_is_refused_or_taken_but_breaks_nothing(client):
    half = '"\\ud800"'
    for body in (f'{{"config_yaml": {half}}}', f'{{"name": {half}, "config_yaml": "x"}}',
    f'{{"config": {{"job": {half}}}}}',
                 f'{{"config": {{{half}: 1}}}}', f'{{"name": "a", "config": {{"x": {half}}}}}'):  # fmt: skip
        for path in ("/api/jobs", "/api/config/validate"):
            response = client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code < 500, (path, body, response.text)
    for path, body in (
        ("/api/auth/login", f'{{"token": {half}}}'),
        ("/api/settings", f'{{"hf_token": {half}}}'),
    ):
        method = "PATCH" if "settings" in path else "POST"
        answer = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422


def test_only_json_is_taken_for_json(client, config):
    body = '{"config_yaml": "job: train"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        response = client.post("/api/jobs", content=body, headers={"Content-Type": kind})
        assert response.status_code == 422, kind
    assert client.get("/api/jobs").json()["jobs"] == []


def test_names_are_unique_and_fit_the_config(client, config):
    make(client, config)
    taken = client.post("/api/jobs", json={"config_yaml": config()})
    assert taken.status_code == 409 and taken.json()["error"].startswith("Job name already exists")
    assert client.post("/api/jobs", json={"config_yaml": config("a"), "name": "b"}).status_code == 422
    assert client.post("/api/jobs", json={"config_yaml": config("a"), "kind": "eval"}).status_code == 422
    assert (
        client.post("/api/jobs", json={"config_yaml": config("a"), "devices": ["gpu:7"]}).status_code == 422
    )
    assert (
        client.post("/api/jobs", json={"config_yaml": config("a"), "devices": ["0; rm"]}).status_code == 422
    )
    tagged = client.post("/api/jobs", json={"config_yaml": config("'[name]'"), "name": "tagged"})
    assert tagged.json()["name"] == "tagged"
    assert client.post(f"/api/jobs/{tagged.json()['id']}/enqueue").status_code == 202


def test_a_repeated_request_makes_one_job(client, config):
    headers = {"Idempotency-Key": "abc"}
    first = client.post("/api/jobs", json={"config_yaml": config()}, headers=headers)
    second = client.post("/api/jobs", json={"config_yaml": config()}, headers=headers)
    assert second.status_code == 201 and first.json() == second.json()
    assert len(client.get("/api/jobs").json()["jobs"]) == 1
    other = client.post("/api/jobs", json={"config_yaml": config("other")}, headers=headers)
    assert other.status_code == 422 and other.json()["code"] == "web.key_reused"


def test_an_edit_must_know_what_it_edits(client, config):
    job = make(client, config)
    path, tag = f"/api/jobs/{job['id']}", client.get(f"/api/jobs/{job['id']}").headers["etag"]
    edited = client.put(path, json={"config_yaml": config("renamed")}, headers={"If-Match": tag})
    assert edited.json()["name"] == "renamed" and edited.headers["etag"] != tag
    late = client.put(path, json={"config_yaml": config("late")}, headers={"If-Match": tag})
    assert late.status_code == 412
    client.post(f"{path}/enqueue")
    waiting = client.put(path, json={"config_yaml": config("late")})
    assert waiting.status_code == 409 and "queued" in waiting.json()["error"]
    assert client.delete(path).status_code == 409


def test_a_clone_has_the_config_under_another_name(client, config):
    job = make(client, config, devices=["cpu:0"])
    clone = client.post(f"/api/jobs/{job['id']}/clone").json()
    assert (clone["name"], clone["devices"], clone["status"]) == ("small_copy", ["cpu:0"], "draft")
    text = client.get(f"/api/jobs/{clone['id']}/config").json()["config_yaml"]
    assert text == config("small").replace("name: small", 'name: "small_copy"', 1)
    assert client.post(f"/api/jobs/{clone['id']}/enqueue").status_code == 202
    named = client.post(f"/api/jobs/{job['id']}/clone", json={"name": "third one"})
    assert named.json()["name"] == "third one"
    assert client.post(f"/api/jobs/{job['id']}/clone", json={"name": "third one"}).status_code == 409


def test_clones_have_names_that_fit_and_are_free_and_a_key_makes_one(client, config):
    job = make(client, config, "n" * 100)
    names = [client.post(f"/api/jobs/{job['id']}/clone").json()["name"] for _ in range(2)]
    assert names == ["n" * 95 + "_copy", "n" * 93 + "_copy_2"]
    other = make(client, config, "other")
    made = [client.post(f"/api/jobs/{other['id']}/clone", headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert made[0].status_code == 201 and made[0].json()["id"] == made[1].json()["id"]


def test_the_queue_is_entered_left_and_ordered(client, config):
    jobs = [make(client, config, name)["id"] for name in ("a", "b", "c")]
    for job_id in jobs:
        assert client.post(f"/api/jobs/{job_id}/enqueue", json={"start_queue": False}).status_code == 202
    queue = client.get("/api/queue").json()
    models.QueueOut.model_validate(queue)
    assert queue["order"] == jobs and [lane["waiting"] for lane in queue["lanes"]] == [3, 0, 0]
    assert not any(lane["started"] for lane in queue["lanes"])
    assert client.post(f"/api/jobs/{jobs[0]}/enqueue").status_code == 409
    moved = client.patch(
        "/api/queue/order", params={"rev": queue["rev"]}, json=[{"id": jobs[2], "after": None}]
    )
    assert moved.status_code == 200 and client.get("/api/queue").json()["order"] == [jobs[2], *jobs[:2]]
    stale = client.patch(
        "/api/queue/order", params={"rev": queue["rev"]}, json=[{"id": jobs[0], "after": None}]
    )
    assert stale.status_code == 409 and client.get("/api/queue").json()["order"] == [jobs[2], *jobs[:2]]
    assert client.post(f"/api/jobs/{jobs[2]}/dequeue").json()["status"] == "draft"
    assert client.post(f"/api/jobs/{jobs[2]}/dequeue").status_code == 409
    first = client.post(f"/api/jobs/{jobs[2]}/enqueue", json={"position": "first"})
    assert first.status_code == 202 and client.get("/api/queue").json()["order"][0] == jobs[2]
    gone = client.patch("/api/queue/order", json=[{"id": jobs[0], "after": "nothing"}])
    assert gone.status_code == 404
    assert client.patch("/api/queue/order", json=[{"id": jobs[0], "after": jobs[0]}]).status_code == 422


def test_enqueueing_starts_the_lanes_of_the_job(client, config):
    job = make(client, config, devices=["gpu:0", "gpu:1"])
    client.post(f"/api/jobs/{job['id']}/enqueue")
    started = {lane["device"]: lane["started"] for lane in client.get("/api/queue").json()["lanes"]}
    assert started == {"gpu:0": True, "gpu:1": True, "cpu:0": False}
    assert client.post("/api/queue/gpu:0/stop").json()["started"] is False
    assert client.post("/api/queue/gpu:0/start").json()["started"] is True
    assert client.post("/api/queue/gpu:9/start").status_code == 404


def test_a_lane_that_is_stopped_can_send_its_job_back(client, services, config):
    job = make(client, config)
    client.post(f"/api/jobs/{job['id']}/enqueue")
    services.lanes.claim()
    assert client.post("/api/queue/gpu:0/stop", json={"mode": "drain"}).json()["job_id"] == job["id"]
    assert client.get(f"/api/jobs/{job['id']}").json()["status"] == "starting"
    client.post("/api/queue/gpu:0/stop", json={"mode": "requeue"})
    after = client.get(f"/api/jobs/{job['id']}").json()
    assert (after["status"], after["stop_mode"], after["requeue"]) == ("stopping", "save", True)


def test_what_does_not_run_cannot_be_stopped_or_commanded(client, config):
    job = make(client, config)
    for action in ("stop", "save_now", "sample_now", "mark_stopped", "dequeue"):
        assert client.post(f"/api/jobs/{job['id']}/{action}").status_code == 409, action
        assert client.post(f"/api/jobs/nothing/{action}").status_code == 404, action


def test_only_a_job_that_is_dead_for_certain_is_marked_stopped(client, services, config):
    job = make(client, config)
    client.post(f"/api/jobs/{job['id']}/enqueue")
    services.lanes.claim()
    from toolkit.runs.process import this_process
    from web.launchers.attempt import AttemptFolder, Owners

    folder = AttemptFolder(services.settings.jobs_root, job["id"], 1)
    folder.path.mkdir(parents=True)
    folder.claim(Owners(shim=this_process()))
    assert client.post(f"/api/jobs/{job['id']}/mark_stopped").status_code == 409
    from dataclasses import replace

    folder.write_owners(Owners(shim=replace(this_process(), started="0")))
    marked = client.post(f"/api/jobs/{job['id']}/mark_stopped")
    assert (marked.status_code, marked.json()["status"]) == (200, "stopped")
    assert client.get("/api/queue").json()["lanes"][0]["job_id"] is None


def test_every_change_of_state_is_an_event(client, config):
    job = make(client, config)
    client.post(f"/api/jobs/{job['id']}/enqueue")
    client.post(f"/api/jobs/{job['id']}/dequeue")
    events = client.get(f"/api/jobs/{job['id']}/events").json()
    models.EventList.model_validate(events)
    assert [event["to_status"] for event in events["events"]] == ["draft", "queued", "draft"]
    assert all(event["reason"] and event["who"] == "user" for event in events["events"])
    rest = client.get(f"/api/jobs/{job['id']}/events", params={"after": events["events"][1]["id"]})
    assert len(rest.json()["events"]) == 1


def test_the_snapshot_is_that_of_the_moment(client, config):
    job = make(client, config)
    client.post(f"/api/jobs/{job['id']}/enqueue")
    client.post(f"/api/jobs/{job['id']}/dequeue")
    client.put(f"/api/jobs/{job['id']}", json={"config_yaml": config(steps=9)})
    found = client.get(f"/api/jobs/{job['id']}/config").json()
    assert found["config_yaml"] == config(steps=9) and found["snapshot_yaml"] == config()


def test_lists_are_filtered_sorted_and_cut_into_pages(client, config):
    names = ["alpha", "beta_1", "beta 2", "gamma"]
    for name in names:
        make(client, config, name, devices=["gpu:0", "gpu:1"] if name == "gamma" else ["cpu:0"])

    def found(**params) -> list[str]:
        response = client.get("/api/jobs", params=params)
        assert response.status_code == 200, response.text
        return [job["name"] for job in response.json()["jobs"]]

    assert found(sort="name") == ["alpha", "beta 2", "beta_1", "gamma"]
    assert found(sort="oldest") == names and found() == names[::-1]
    assert found(q="BETA", sort="oldest") == ["beta_1", "beta 2"]
    assert found(lane="gpu:1") == ["gamma"] and found(lane="gpu:10") == []
    assert found(status=["draft", "queued"], kind="train", limit=1) == ["gamma"]
    assert found(status="running") == [] and found(kind="eval") == []
    pages, cursor = [], None
    while True:
        page = client.get(
            "/api/jobs", params={"limit": 3, "sort": "name", **({"cursor": cursor} if cursor else {})}
        )
        pages.append([job["name"] for job in page.json()["jobs"]])
        cursor = page.json()["next_cursor"]
        if cursor is None:
            break
    assert pages == [["alpha", "beta 2", "beta_1"], ["gamma"]]


@pytest.mark.parametrize(
    "text", ["' OR 1=1--", "%", "_", "\\", '"; DROP TABLE jobs;--', "x' UNION SELECT * FROM settings--"]
)
def test_a_search_is_text_and_no_query(client, config, text):
    make(client, config, "plain")
    make(client, config, "with_line")
    expected = ["with_line"] if text == "_" else []
    assert [job["name"] for job in client.get("/api/jobs", params={"q": text}).json()["jobs"]] == expected
    assert client.get("/jobs", params={"q": text}).status_code == 200


@pytest.mark.parametrize("params", [{"sort": "name; drop table jobs"}, {"status": "x"}, {"cursor": "?"},
{"cursor": "WzEsMl0"},
                                    {"cursor": "bnVsbA"}, {"limit": "501"}, {"limit": "x"}])  # fmt: skip
def test_a_list_that_cannot_be_asked_for_is_refused(client, params):
    assert client.get("/api/jobs", params=params).status_code == 422


def test_configs_are_checked_with_lines_and_remedies(client, config):
    good = client.post("/api/config/validate", json={"config_yaml": config()}).json()
    models.CheckOut.model_validate(good)
    assert good["ok"] and good["normalized"]["process"][0]["train"]["steps"] == 4
    bad = client.post(
        "/api/config/validate", json={"config_yaml": config().replace("steps:", "stepz:")}
    ).json()
    error = bad["errors"][0]
    assert not bad["ok"] and bad["normalized"] is None
    assert error["pointer"] == "train.stepz" and error["line"] == 12 and "steps" in error["remedy"]
    assert "/tmp" not in str(bad["errors"])
    assert client.get("/api/config/schema").json()["title"] == "AI Toolkit job"


def test_runs_must_lie_in_the_folder_of_runs(client, config, tmp_path):
    text = config().replace(str(tmp_path / "output"), str(tmp_path / "elsewhere"))
    found = client.post("/api/config/validate", json={"config_yaml": text}).json()
    assert [error["code"] for error in found["errors"]] == ["web.run_folder"]
    link = tmp_path / "output"
    link.mkdir()
    (link / "away").symlink_to(tmp_path / "elsewhere")
    text = config().replace(str(tmp_path / "output"), str(link / "away"))
    assert not client.post("/api/config/validate", json={"config_yaml": text}).json()["ok"]


def test_settings_are_changed_and_the_token_is_never_shown(client, tmp_path):
    (tmp_path / "runs").mkdir()
    changed = client.patch(
        "/api/settings", json={"training_folder": str(tmp_path / "runs"), "hf_token": "hf_abc"}
    )
    assert changed.json()["training_folder"] == str(tmp_path / "runs") and changed.json()["hf_token_set"]
    assert "hf_abc" not in changed.text + client.get("/api/settings").text
    assert client.patch("/api/settings", json={"datasets_folder": "/no/such"}).status_code == 422
    assert client.patch("/api/settings", json={"datasets_folder": "relative"}).status_code == 422
    back = client.patch("/api/settings", json={"hf_token": None, "training_folder": None}).json()
    assert not back["hf_token_set"] and back["training_folder"] == str(tmp_path / "output")


def test_half_a_letter_that_yaml_spells_out_is_no_error_of_the_server(client):
    made = client.post("/api/jobs", json={"config_yaml": 'job: "\\ud800"\nconfig: {name: half}\n'})
    assert made.status_code == 201 and made.json()["kind"] == "?"


def test_the_page_of_jobs_is_whole_or_a_fragment(client, config):
    make(client, config, "shown")
    whole = client.get("/jobs")
    assert "<!doctype html>" in whole.text and "shown" in whole.text and "HX-Request" in whole.headers["vary"]
    part = client.get("/jobs", headers={"HX-Request": "true"})
    assert "<!doctype" not in part.text and "shown" in part.text
    restored = client.get("/jobs", headers={"HX-Request": "true", "HX-History-Restore-Request": "true"})
    assert "<!doctype html>" in restored.text
    assert TypeAdapter(dict).validate_python(client.get("/openapi.json").json())["openapi"].startswith("3.1")
