"""New, edited and cloned jobs: the form and the YAML, by what a browser sends without any script."""

from __future__ import annotations

import html
import re

import pytest
import yaml

from testing.web.pages_support import EVIL, HTML, inputs
from toolkit.paths import ROOT
from web import actions
from web.forms.fields import form_of, process_types
from web.forms.starts import example_text, free_name, list_examples
from web.queue.listing import JobQuery, list_jobs

FORM = {**HTML}


def post(client, values: dict, action: str, **changes: object):
    """Press a button of the form with some of its fields filled in."""
    sent = {**values, **changes, "action": action}
    return client.post("/jobs/edit", data={key: value for key, value in sent.items() if value is not None},
                       headers=FORM, follow_redirects=False)  # fmt: skip


def opened(client, path: str) -> dict:
    """The form of a page as a browser would send it."""
    page = client.get(path, headers=HTML)
    assert page.status_code == 200, page.text
    return inputs(page.text)


@pytest.fixture
def job(services, config):
    return actions.create_job(services, config(), devices=["cpu:0"])


def test_a_form_that_is_sent_back_unchanged_changes_nothing(client, services, job):
    before = services.store.config(job.id)
    values = opened(client, f"/jobs/{job.id}/edit")
    assert values["f:train.steps"] == ["4"] and values["f:datasets.0.resolution"] == ["32"]
    assert values["f:sample.prompts"] == ["a red circle\na blue square"] and values["device"] == ["cpu:0"]
    answer = post(client, values, "save")
    assert answer.status_code == 303 and answer.headers["location"] == f"/jobs/{job.id}"
    assert services.store.config(job.id) == before


@pytest.mark.parametrize("example", [each.name for each in list_examples()])
def test_every_example_opens_as_a_form_and_comes_back_as_it_is(client, services, example):
    values = opened(client, f"/jobs/new?example={example}")
    text = html.unescape(values["text"][0])
    assert post(client, values, "save").status_code == 303
    (stored,), _ = list_jobs(services.database, JobQuery())
    assert services.store.config(stored.id) == text
    assert stored.name == example and yaml.safe_load(text)["config"]["name"] == example


def test_what_is_filled_in_is_written_into_the_yaml_and_the_rest_stays(client, services):
    values = opened(client, "/jobs/new?example=train_lora_sd15")
    changes = {
        "f:config.name": "mine: a #1", "f:train.lr": "3e-5", "f:train.steps": "12",
        "f:train.ema_config.use_ema": "true",
        "f:train.gradient_checkpointing": None, "f:datasets.0.resolution": "512, 768", "f:network.conv": "8",
        "f:sample.prompts": "one\r\ntwo: x\r\n\r\n# three", "f:train.optimizer_params": "{weight_decay: 0.5}",
        "f:train.max_grad_norm": "", "f:train.lr_scheduler": "cosine",
    }  # fmt: skip
    page = post(client, values, "yaml", **changes)
    assert page.status_code == 200
    text = inputs(page.text)["text"][0]
    process = yaml.safe_load(text)["config"]["process"][0]
    assert yaml.safe_load(text)["config"]["name"] == "mine: a #1"
    assert process["train"]["lr"] == "3e-5" and "lr: 3e-5\n" in text and process["train"]["steps"] == 12
    assert process["train"]["ema_config"] == {"use_ema": True, "ema_decay": 0.99}
    assert process["train"]["gradient_checkpointing"] is False and "max_grad_norm" not in process["train"]
    assert process["train"]["optimizer_params"] == {"weight_decay": 0.5}
    assert process["train"]["lr_scheduler"] == "cosine" and process["network"]["conv"] == 8
    assert process["datasets"][0]["resolution"] == [512, 768]
    assert process["sample"]["prompts"] == ["one", "two: x", "# three"]
    before = example_text("train_lora_sd15")
    assert "# strength is linear_alpha / rank" in text and "# steps" in text  # comments stay where they were
    kept = set(before.splitlines()) & set(text.splitlines())
    assert len(kept) > 0.7 * len(before.splitlines())


def test_the_diff_is_shown_before_a_change_is_saved(client, services, job):
    values = opened(client, f"/jobs/{job.id}/edit")
    page = post(client, values, "review", **{"f:train.steps": "9"})
    assert (
        '<span class="removed">-        steps: 4' in page.text
        and '<span class="added">+        steps: 9' in page.text
    )
    assert "steps: 4" in services.store.config(job.id)
    assert post(client, inputs(page.text), "save").status_code == 303
    assert "steps: 9" in services.store.config(job.id)


def test_problems_stand_beside_their_fields_and_lines(client, services, job):
    values = opened(client, f"/jobs/{job.id}/edit")
    page = post(client, values, "form", **{"f:train.steps": "many", "f:datasets.0.resolution": "1"}).text
    for name in ("train.steps", "datasets.0.resolution"):
        found = re.search(rf'name="f:{name}"[^>]*>', page)[0]
        assert 'aria-invalid="true"' in found, name
    assert 'value="many"' in page
    text = post(client, values, "yaml", **{"f:train.steps": "many"}).text
    line = inputs(text)["text"][0].split("\n").index("        steps: many") + 1
    assert f'data-line="{line}"' in text


def test_unknown_keys_are_kept_and_told_and_cannot_be_queued(client, services, job):
    values = opened(client, f"/jobs/{job.id}/edit?view=yaml")
    text = values["text"][0].replace("        steps: 4", "        steps: 4\n        stepz: 5  # mine")
    page = post(client, values, "start", text=text)
    assert page.status_code == 422 and "stepz" in page.text and "Saved, but it cannot be queued" in page.text
    assert services.store.config(job.id) == text and services.store.get(job.id).status == "draft"
    form = post(client, inputs(page.text), "form")
    assert "stepz" in form.text and "did you mean" in form.text
    post(client, inputs(form.text), "save", **{"f:train.steps": "6"})
    assert "        stepz: 5  # mine" in services.store.config(
        job.id
    ) and "steps: 6" in services.store.config(job.id)


def test_text_that_is_no_yaml_is_kept(client, services):
    values = opened(client, "/jobs/new?empty=true&view=yaml")
    page = post(client, values, "form", text="job: train\nconfig: {name: [")
    assert page.status_code == 200 and "is not valid YAML" in page.text and "line 2" in page.text
    again = inputs(page.text)
    assert again["text"] == ["job: train\nconfig: {name: ["] and again["view"] == ["yaml"]
    answer = post(client, again, "save")
    job = services.store.get(answer.headers["location"].rsplit("/", 1)[-1])
    assert (job.name, services.store.config(job.id)) == ("untitled", again["text"][0])


def test_datasets_are_added_and_removed(client, job):
    values = opened(client, f"/jobs/{job.id}/edit")
    page = post(client, values, "add:datasets")
    values = inputs(page.text)
    assert values["f:datasets.1.folder_path"] == [""]
    page = post(client, values, "remove:datasets.0", **{"f:datasets.1.folder_path": "datasets/emoji"})
    values = inputs(page.text)
    assert (
        values["f:datasets.0.folder_path"] == ["datasets/emoji"] and "f:datasets.1.folder_path" not in values
    )
    assert post(client, values, "remove:datasets.7").status_code == 422
    assert post(client, values, "add:nothing").status_code == 422
    assert "f:datasets.0.folder_path" not in inputs(post(client, values, "remove:datasets.0").text)


def test_a_change_made_elsewhere_is_not_overwritten(client, services, config, job):
    values = opened(client, f"/jobs/{job.id}/edit")
    actions.edit_job(services, job.id, config(steps=7))
    page = post(client, values, "save", **{"f:train.steps": "9"})
    assert page.status_code == 412 and "has changed since it was read" in page.text
    assert "steps: 7" in services.store.config(job.id)
    assert "steps: 9" in html.unescape(inputs(page.text)["text"][0])  # what was typed is not lost


def test_a_review_against_a_newer_text_says_so_and_can_be_saved(client, services, config, job):
    values = opened(client, f"/jobs/{job.id}/edit")
    assert "was changed elsewhere" not in post(client, values, "review", **{"f:train.steps": "9"}).text
    actions.edit_job(services, job.id, config(steps=7))
    page = post(client, values, "review", **{"f:train.steps": "9"})
    assert page.status_code == 200 and "was changed elsewhere" in page.text
    assert '<span class="removed">-        steps: 7' in page.text
    assert post(client, inputs(page.text), "save").status_code == 303
    assert "steps: 9" in services.store.config(job.id)


@pytest.mark.parametrize("action", ["save", "start", "review", "yaml", "check"])
def test_what_was_typed_for_a_job_that_is_deleted_meanwhile_becomes_a_new_one(client, services, job, action):
    values = opened(client, f"/jobs/{job.id}/edit")
    actions.delete_job(services, job.id)
    page = post(client, values, action, **{"f:train.steps": "9"})
    assert page.status_code == 404 and "was deleted" in page.text and "<h1>New job</h1>" in page.text
    again = inputs(page.text)
    assert "steps: 9" in html.unescape(again["text"][0]) and again["job"] == [""] and again["etag"] == [""]
    assert not list_jobs(services.database, JobQuery())[0]  # nothing is stored before it is asked for
    answer = post(client, again, "save")
    assert answer.status_code == 303
    assert "steps: 9" in services.store.config(answer.headers["location"].rsplit("/", 1)[-1])


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("accelerate", "two", "a number up to 64"), ("device", "gpu", "is no device")],
)
def test_where_a_job_cannot_run_is_told_at_its_field_and_nothing_typed_is_lost(
    client, services, job, field, value, told
):
    values = opened(client, f"/jobs/{job.id}/edit")
    changes = {"f:train.steps": "9", field: value}
    for action in ("save", "start", "review", "check"):
        page = post(client, values, action, **changes)
        assert page.status_code == 422 and told in page.text, action
    for action in ("yaml", "add:datasets"):  # which ask for no device
        page = post(client, values, action, **changes)
        assert page.status_code == 200 and told in page.text, action
    again = inputs(page.text)
    assert "steps: 9" in html.unescape(again["text"][0])
    if field == "accelerate":
        assert again["accelerate"] == ["two"]
        assert 'aria-invalid="true"' in re.search(r'<input id="accelerate"[^>]*>', page.text)[0]
    assert "steps: 4" in services.store.config(job.id)


def test_a_taken_name_is_told_and_the_text_is_kept(client, services, config, job):
    actions.create_job(services, config("other"))
    page = post(client, opened(client, f"/jobs/{job.id}/edit"), "save", **{"f:config.name": "other"})
    assert page.status_code == 409 and "Job name already exists: other" in page.text
    assert inputs(page.text)["f:config.name"] == ["other"]
    for bad in ("../up", "-rf", "CON"):
        page = post(client, opened(client, f"/jobs/{job.id}/edit"), "save", **{"f:config.name": bad})
        assert page.status_code == 422, bad


def test_check_runs_run_py_and_shows_what_it_prints(client, job):
    values = opened(client, f"/jobs/{job.id}/edit")
    good = post(client, values, "check").text
    assert "nothing is wrong" in good
    bad = post(client, values, "check", **{"f:train.steps": "many"}).text
    assert "not in order" in bad and "must be a number" in bad and "/tmp/aitk-check" not in bad


def test_a_job_is_saved_and_started_in_one_go(client, services, config, tmp_path):
    values = opened(client, "/jobs/new?dataset=drawings") if (tmp_path / "datasets").exists() else None
    assert values is None
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "drawings").symlink_to(ROOT / "datasets" / "drawings")
    assert "drawings" in client.get("/jobs/new").text
    values = opened(client, "/jobs/new?dataset=drawings")
    assert values["device"] == ["gpu:0"] and values["f:config.name"] == ["drawings"]
    assert values["f:datasets.0.folder_path"] == [str(tmp_path / "datasets" / "drawings")]
    assert values["f:training_folder"] == [str(services.settings.output_root)]
    answer = post(client, values, "start")
    assert answer.status_code == 303, answer.text
    job = services.store.get(answer.headers["location"].rsplit("/", 1)[-1])
    assert job.status == "queued" and job.devices == ("gpu:0",)
    assert opened(client, "/jobs/new?dataset=drawings")["f:config.name"] == ["drawings_2"]


def test_captions_of_a_dataset_are_one_link_away(client, tmp_path):
    (tmp_path / "datasets" / "photos").mkdir(parents=True)
    page = html.unescape(client.get("/datasets/photos", headers=HTML).text)
    (link,) = re.findall(r'href="([^"]*example=caption_dataset[^"]*)"', page)
    values = opened(client, link)
    assert values["f:caption.dataset_path"] == [str(tmp_path / "datasets" / "photos")]
    assert values["f:config.name"] == ["photos"]


def test_a_clone_has_a_name_of_its_own_and_the_same_devices(client, services, job):
    values = opened(client, f"/jobs/new?clone={job.id}")
    assert (
        values["f:config.name"] == ["small_copy"] and values["device"] == ["cpu:0"] and values["job"] == [""]
    )
    assert post(client, values, "save").status_code == 303
    assert opened(client, f"/jobs/new?clone={job.id}")["f:config.name"] == ["small_copy_2"]


@pytest.mark.parametrize("name", ["x" * 96, "y" * 99 + "z", "é" * 75, "e. " * 33 + "e"])
def test_a_clone_of_a_job_with_a_long_name_has_a_name_that_fits_and_is_free(client, services, config, name):
    job = actions.create_job(services, config(name), devices=["cpu:0"])
    names = set()
    for _ in range(3):
        values = opened(client, f"/jobs/new?clone={job.id}")
        assert post(client, values, "save").status_code == 303
        names.add(values["f:config.name"][0])
    assert len(names) == 3 and all(re.search(r"_copy(_[23])?$", each) for each in names)


def test_devices_and_processes_are_stored(client, services, job):
    values = opened(client, f"/jobs/{job.id}/edit")
    post(client, values, "save", device=["gpu:0", "gpu:1"], accelerate="2")
    stored = services.store.get(job.id)
    assert stored.devices == ("gpu:0", "gpu:1") and stored.launcher["accelerate"] == 2
    values = opened(client, f"/jobs/{job.id}/edit")
    assert values["device"] == ["gpu:0", "gpu:1"] and values["accelerate"] == ["2"]
    assert post(client, values, "save", accelerate="many").status_code == 422
    assert post(client, values, "save", device=["gpu:7"]).status_code == 422


def test_what_is_typed_is_escaped(client):
    values = opened(client, "/jobs/new?empty=true")
    for action in ("form", "yaml"):
        page = post(
            client, values, action, **{"f:train.optimizer": EVIL, "f:sample.neg": f'"{EVIL}</textarea>'}
        ).text
        assert "<script>" not in page and EVIL.replace("<", "&lt;").replace(">", "&gt;") in page
    page = post(
        client, opened(client, "/jobs/new?empty=true&view=yaml"), "form", text=f"</textarea>{EVIL}: ["
    )
    assert "<script>" not in page.text


def test_a_job_that_waits_cannot_be_edited(client, services, job):
    values = opened(client, f"/jobs/{job.id}/edit")
    actions.enqueue_job(services, job.id)
    page = post(client, values, "save", **{"f:train.steps": "9"})
    assert page.status_code in (409, 412) and "steps: 4" in services.store.config(job.id)


def test_every_type_of_process_has_a_form():
    types = process_types()
    assert types[0] == "sd_trainer" and {"slider", "concept_slider", "vae", "to_folder"} <= set(types)
    for each in types:
        form = form_of(each)
        assert len(form.fields) > 10 and all(field.help for field in form.fields), each
    named = {field.name: field for field in form_of("sd_trainer").fields}
    assert named["network.linear"].spellings == ("rank",) and named["train.steps"].kind == "number"
    assert named["sample.prompts"].kind == "lines" and "arch" in named["model.arch"].name


def test_values_are_found_under_their_other_spellings(client, services, config):
    text = config().replace("{type: lora, linear: 4}", "{type: lora, rank: 4}")
    job = actions.create_job(services, text)
    values = opened(client, f"/jobs/{job.id}/edit")
    assert values["f:network.linear"] == ["4"]
    post(client, values, "save", **{"f:network.linear": "16"})
    assert "{type: lora, rank: 16}" in services.store.config(job.id)


def test_free_names_are_free():
    assert free_name("a", set()) == "a" and free_name("a", {"a", "a_2"}) == "a_3"
    assert free_name("a" * 120, {"a" * 100}) == "a" * 98 + "_2"
    assert free_name("a" * 99 + " b", ()) == "a" * 99
