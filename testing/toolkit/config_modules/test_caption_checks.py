"""Settings of captions: what cannot go together, what has no effect, what a file may hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from testing.config_helpers import LORA, load, problems_of

LIST = json.dumps({"a.png": {"caption": "a", "caption_short": "b"}})


def job(process: dict | None = None, **dataset: object) -> str:
    """The LoRA job with changes to its dataset and its process."""
    data = yaml.safe_load(LORA)
    [entry] = data["config"]["process"]
    entry["datasets"][0] |= dataset
    entry |= process or {}
    return yaml.safe_dump(data, sort_keys=False)


def notes_on(key: str, text: str) -> list[str]:
    return [note for note in load(text).notes if note.startswith(f"datasets[0].{key}:")]


@pytest.fixture(autouse=True)
def in_folder(folder: Path) -> Path:
    (folder / "list.json").write_text(LIST)
    return folder


def test_short_captions_need_a_source_that_has_them():
    [problem] = problems_of(job(use_short_captions=True))
    assert problem.key == "datasets[0].use_short_captions"
    assert ".txt files hold no short captions" in problem.message
    load(job(use_short_captions=True, caption_ext="json"))
    load(job(use_short_captions=True, folder_path="list.json"))


def test_no_more_random_triggers_are_drawn_than_there_are():
    [problem] = problems_of(job(random_triggers=["a", "b"], random_triggers_max=3))
    assert "3 of 2" in problem.message
    load(job(random_triggers=["a", "b"], random_triggers_max=2))


def test_random_triggers_from_a_file(in_folder):
    (in_folder / "words.txt").write_text("one\n\n two \n", encoding="utf-8")
    [process] = load(job(random_triggers="words.txt")).config.process
    assert process.datasets[0].random_triggers == ["one", "two"]
    [problem] = problems_of(job(random_triggers="none.txt"))
    assert problem.key == "datasets[0].random_triggers"
    assert "cannot read the trigger file none.txt" in problem.message


def test_a_list_of_pictures_must_exist_and_replaces_caption_files():
    [problem] = problems_of(job(folder_path="gone.json"))
    assert (problem.code, problem.key) == ("config.dataset_folder", "datasets[0].folder_path")
    assert "file gone.json does not exist" in problem.message
    assert notes_on("caption_ext", job(folder_path="list.json", caption_ext="caption"))
    data = yaml.safe_load(job())
    entry = data["config"]["process"][0]["datasets"][0]
    entry["dataset_path"] = "list.json"
    del entry["folder_path"]
    load(yaml.safe_dump(data))


def test_a_replacement_has_two_sides():
    [problem] = problems_of(job(replacements=["a|b", "c"]))
    assert problem.key == "datasets[0].replacements[1]"
    assert "old|new" in problem.message


@pytest.mark.parametrize(
    ("key", "value", "with_effect"),
    [
        ("random_triggers_max", 2, {"random_triggers": ["a", "b"]}),
        ("keep_tokens", 1, {"shuffle_tokens": True}),
        ("keep_tokens", 1, {"token_dropout_rate": 0.1}),
        ("caption_variants", 4, {"shuffle_tokens": True, "cache_text_embeddings": True}),
        ("caption_variants", 4, {"random_triggers": ["a"], "cache_text_embeddings": True}),
    ],
)
def test_what_has_no_effect_is_told(key, value, with_effect):
    assert notes_on(key, job(**{key: value}))
    assert not notes_on(key, job(**{key: value}, **with_effect))


def test_strictness_of_the_process_is_that_of_datasets_without_their_own():
    def strict(text: str) -> bool:
        return load(text).config.process[0].datasets[0].strict

    assert not strict(job())
    assert strict(job({"strict": True}))
    assert not strict(job({"strict": True}, strict=False))
    assert strict(job(strict=True))


def test_the_other_spelling_of_caption_ext_is_tidied_too():
    data = yaml.safe_load(job(caption_type="json"))
    del data["config"]["process"][0]["datasets"][0]["caption_ext"]
    [process] = load(yaml.safe_dump(data)).config.process
    assert process.datasets[0].caption_ext == ".json"
