"""From a saved model to a job that draws with it, with the settings of the previews."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from testing.web.pages_support import HTML, ended_job, inputs, set_columns, write_run
from toolkit.config_modules.loading import load_job
from toolkit.config_modules.process import GenerateProcess
from toolkit.config_modules.sample import SampleConfig
from web import actions
from web.configs import check_config
from web.forms.drawing import drawable, drawing_text

NETWORK = "network: {type: lora, linear: 4}"
PREVIEWS = """
      trigger_word: zrb
      sample:
        sampler: ddim
        width: 64
        height: 32
        seed: 7
        walk_seed: true
        guidance_scale: 3.5
        sample_steps: 9
        neg: "blurry [trigger]"
        prompts: ["a [trigger] --w 40", "a fox --n ", "a box --cfg 2 --seed 1 --steps 3 --m 0.5"]
        samples:
          - {prompt: "a dog: [trigger]", height: 48, neg: dark}
          - {prompt: a cat, sampler: euler}
          - {prompt: a cow, neg: "dull --w 8"}
          - {prompt: a pig, sampler: euler, seed: 3}
"""


@pytest.fixture
def with_previews(config):
    """A config whose previews have every kind of setting: (what stands for its network) -> YAML."""

    def make(network: str = NETWORK) -> str:
        lines = config("foo").splitlines()
        return "\n".join([*lines[:-1], PREVIEWS.strip("\n"), ""]).replace(NETWORK, network)

    return make


def opened(client, job, file: str) -> dict:
    """The config of the form that the link behind a model opens."""
    listed = client.get(f"/jobs/{job.id}/files", headers=HTML).text
    link = f"/jobs/new?draw={job.id}&file={file}"
    assert f'href="{link}"' in listed.replace("&amp;", "&")
    page = client.get(link, headers=HTML)
    assert page.status_code == 200, page.text
    return inputs(page.text)


def test_a_lora_is_drawn_with_as_its_previews_were(client, services, settings, with_previews, tmp_path):
    job = ended_job(services, with_previews())
    values = opened(client, job, "foo.safetensors")
    text = values["text"][0]
    path = tmp_path / "drawing.yml"
    path.write_text(text)
    process = load_job(path).config.process[0]
    assert isinstance(process, GenerateProcess)
    assert process.generate.lora_path == f"{job.run_folder}/foo.safetensors"
    assert (process.model.name_or_path, process.dtype, process.device) == ("tiny-sd", "float32", "cpu")
    assert process.output_folder == str(settings.output_root / "foo_pictures")
    previews = yaml.safe_load(services.store.config(job.id))["config"]["process"][0]["sample"]
    wanted = SampleConfig.model_validate(previews).requests("zrb")
    listed = [each.generate.requests() for each in load_job(path).config.process]
    assert [len(requests) for requests in listed] == [4, 2, 1]  # a flag names no sampler, and no such neg
    assert sorted(map(str, sum(listed, []))) == sorted(map(str, wanted))
    sent = {**values, "action": "start"}
    made = client.post("/jobs/edit", data=sent, headers=HTML, follow_redirects=False)
    assert made.status_code == 303
    queued = services.store.get(made.headers["location"].rpartition("/")[2])
    assert (queued.kind, queued.name, queued.status) == ("generate", "foo_pictures", "queued")


def test_a_whole_model_takes_the_place_of_its_base(client, services, with_previews):
    job = ended_job(services, with_previews(network="strict: false"))
    process = yaml.safe_load(opened(client, job, "foo.safetensors")["text"][0])["config"]["process"][0]
    assert process["model"] == {"arch": "sd15", "name_or_path": f"{job.run_folder}/foo.safetensors"}
    assert "lora_path" not in process["generate"]


@pytest.mark.parametrize(("is_file", "kept"), [(True, {"te_name_or_path": "org/te"}), (False, {})])
def test_a_whole_model_has_weights_and_a_folder_its_own_text_encoders(config, tmp_path, is_file, kept):
    given = "tiny-sd, from_config: true, te_name_or_path: org/te, vae_path: null"
    text = config("foo").replace("tiny-sd", given).replace(NETWORK, "strict: false")
    trained = tmp_path / "foo"
    trained.touch() if is_file else trained.mkdir()
    made = drawing_text(text, check_config(text), 1, trained, name="drawn", output_root=tmp_path)
    model = yaml.safe_load(made)["config"]["process"][0]["model"]
    assert model == {"arch": "sd15", "name_or_path": str(trained)} | kept


@pytest.mark.parametrize(("is_file", "extras"), [(True, "org/base"), (False, None)])
def test_a_file_of_a_transformer_keeps_the_rest_of_its_base(config, tmp_path, is_file, extras):
    text = config("foo").replace("tiny-sd", "org/base, is_flux: true").replace(NETWORK, "strict: false")
    found = check_config(text)
    trained = tmp_path / ("foo.safetensors" if is_file else "foo")
    trained.touch() if is_file else trained.mkdir()
    made = drawing_text(text, found, 1, trained, name="drawn", output_root=tmp_path)
    process = yaml.safe_load(made)["config"]["process"][0]
    model = {"arch": "flux", "is_flux": True, "name_or_path": str(trained)}
    assert process["model"] == model | ({"extras_name_or_path": extras} if extras else {})
    assert check_config(made).problems == [] and process["generate"]["sampler"] == "flowmatch"


def test_a_run_without_previews_begins_with_its_trigger(client, services, config):
    text = config("foo").replace("prompts: [a red circle, a blue square], width: 32", "width: 64, seed: 5")
    job = ended_job(services, text.replace("device: cpu", "device: cpu\n      trigger_word: zrb"))
    process = yaml.safe_load(opened(client, job, "foo.safetensors")["text"][0])["config"]["process"][0]
    drawn = process["generate"]
    assert (drawn["prompts"], drawn["width"], drawn["height"], drawn["seed"]) == (["zrb"], 64, 32, 5)


def test_a_prompt_that_reads_as_flags_is_told(client, services, config):
    text = config("foo").replace("device: cpu", 'device: cpu\n      trigger_word: "zrb --w 8"')
    job = ended_job(services, text.replace("a red circle", '"a [trigger]"'))
    answer = client.get(f"/jobs/new?draw={job.id}&file=foo.safetensors", headers=HTML)
    assert answer.status_code == 409 and "reads as flags" in answer.text


def test_what_cannot_draw_is_told(client, services, with_previews):
    job = ended_job(services, with_previews())
    base = f"/jobs/new?draw={job.id}"
    for file in ("nothing.safetensors", "../foo/foo.safetensors", "config.yaml", "", "step_000000040"):
        assert client.get(f"{base}&file={file}", headers=HTML).status_code == 404, file
    assert client.get("/jobs/new?draw=none&file=foo.safetensors", headers=HTML).status_code == 404
    assert client.get(f"{base}&run=2&file=foo.safetensors", headers=HTML).status_code == 404
    embedding = with_previews(network="embedding: {trigger: zrb, tokens: 2}").replace(
        "name: foo", "name: word"
    )
    job = ended_job(services, embedding)
    (Path(job.run_folder) / "word.safetensors").touch()
    assert "draw pictures" not in client.get(f"/jobs/{job.id}/files", headers=HTML).text
    answer = client.get(f"/jobs/new?draw={job.id}&file=word.safetensors", headers=HTML)
    assert answer.status_code == 409 and "not with autoencoders and embeddings" in answer.text


def test_a_config_that_cannot_be_read_is_told(client, services, config, tmp_path):
    """As of an imported run: its folder is there, its config is of another program."""
    broken = config("foo").replace("linear: 4", "linear: many")
    job = actions.create_job(services, broken, devices=["cpu:0"])
    write_run(tmp_path / "output" / "foo")
    set_columns(services, job, run_folders=json.dumps([str(tmp_path / "output" / "foo")]))
    answer = client.get(f"/jobs/new?draw={job.id}&file=foo.safetensors", headers=HTML)
    assert answer.status_code == 409
    assert "cannot be read any more" in answer.text and "network.linear" in answer.text


@pytest.mark.parametrize(
    ("text", "number", "kinds"),
    [
        ("config: {process: [{training_folder: a, type: sd_trainer}]}", 1, ("model", "folder")),
        ("config: {process: [{training_folder: a, type: vae}]}", 1, ()),
        ("config: {process: [{training_folder: a, type: sd_trainer, embedding: {tokens: 2}}]}", 1, ()),
        (
            "config: {process: [{training_folder: a, type: vae}, {training_folder: a, network: {}}]}",
            2,
            ("model",),
        ),
        ("config: {process: [{training_folder: a, type: sd_trainer}]}", 2, ()),
        ("config: {process: [1]}", 1, ()),
        ("config: {process: 1}", 1, ()),
        ("config: [", 1, ()),
        ("- " * 5000, 1, ()),
        ("", 1, ()),
    ],
)
def test_a_link_to_draw_is_where_pictures_can_be_drawn(text, number, kinds):
    assert drawable(text, number) == kinds
