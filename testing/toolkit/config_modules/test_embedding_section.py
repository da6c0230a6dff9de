"""The embedding section: its keys, its trigger, and what it does not go with."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from testing.config_helpers import load, problems_of
from toolkit.config_modules.process import TrainProcess
from toolkit.errors import Problem

pytestmark = pytest.mark.usefixtures("folder")


def text(**changes: Any) -> str:
    base = {
        "type": "sd_trainer", "training_folder": "output", "model": {"name_or_path": "some/model"},
        "datasets": [{"folder_path": "pictures"}], "embedding": {"trigger": "zwx"},
    }  # fmt: skip
    entry = {key: value for key, value in (base | changes).items() if value is not None}
    return yaml.safe_dump({"job": "train", "config": {"name": "run", "process": [entry]}}, sort_keys=False)


def process(**changes: Any) -> TrainProcess:
    found = load(text(**changes)).config.process[0]
    assert isinstance(found, TrainProcess)
    return found


def only(**changes: Any) -> Problem:
    (problem,) = problems_of(text(**changes))
    return problem


def test_defaults_are_ai_toolkits():
    embedding = process(embedding={"trigger": "zwx"}).embedding
    assert (embedding.tokens, embedding.init_words, embedding.save_format) == (4, "*", "safetensors")
    assert process(embedding={"tokens": 2}).embedding.trigger == "custom_embedding"
    assert process(embedding={"trigger": "zwx", "save_format": ".pt"}).embedding.save_format == "pt"


def test_the_trigger_is_the_trigger_word():
    found = process()
    assert (found.trigger_word, found.datasets[0].trigger_word) == ("zwx", "zwx")
    assert process(embedding={"tokens": 2}).trigger_word == "custom_embedding"
    problem = only(trigger_word="other")
    assert problem.key == "trigger_word" and "'other' is not the embedding's trigger 'zwx'" in problem.message
    problem = only(datasets=[{"folder_path": "pictures", "trigger_word": "other"}])
    assert problem.key == "datasets[0].trigger_word"
    assert process(datasets=[{"folder_path": "pictures", "trigger_word": "x", "is_reg": True}])


def test_an_embeddings_own_learning_rate():
    assert process(train={"lr": 1e-3}).train.vectors_lr == 1e-3
    assert process(train={"lr": 1e-3, "embedding_lr": 5e-3}).train.vectors_lr == 5e-3


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"embedding": {"trigger": "two words"}}, "embedding.trigger"),
        ({"embedding": {"trigger": "Zwx"}}, "embedding.trigger"),
        ({"embedding": {"trigger": "a/b"}}, "embedding.trigger"),
        ({"embedding": {"trigger": "zwx", "tokens": 0}}, "embedding.tokens"),
        ({"embedding": {"trigger": "zwx", "init_words": " "}}, "embedding.init_words"),
        ({"embedding": {"trigger": "zwx", "save_format": "ckpt"}}, "embedding.save_format"),
        ({"embedding": {"trigger": "zwx", "trigger_class_name": "cat"}}, "embedding.trigger_class_name"),
        ({"train": {"train_text_encoder": True}}, "train.train_text_encoder"),
        ({"train": {"cache_text_embeddings": True}}, "train.cache_text_embeddings"),
        ({"datasets": [{"folder_path": "pictures", "cache_text_embeddings": True}]},
         "datasets[0].cache_text_embeddings"),
        ({"save": {"save_format": "diffusers"}}, "save.save_format"),
        ({"type": "textual_inversion_trainer", "embedding": None}, "embedding"),
        ({"type": "concept_slider", "network": {}, "slider": {"positive_prompt": "old"}}, "embedding"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(changes, key):
    assert only(**changes).key == key


def test_beside_a_network_the_text_encoder_may_learn_too():
    assert process(network={"linear": 4}, train={"train_text_encoder": True}).embedding


def test_alone_an_embedding_is_enough_to_train():
    assert process(train={"train_unet": False}).embedding
    assert only(train={"train_unet": False}, network={"linear": 4}).code == "config.nothing_to_train"


def test_ai_toolkits_own_trainer_of_embeddings_is_known():
    assert process(type="textual_inversion_trainer").embedding.trigger == "zwx"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"embedding": None, "train": {"embedding_lr": 1e-3}}, "train.embedding_lr"),
        ({"train": {"unet_lr": 1e-3}}, "train.unet_lr"),
        ({"train": {"text_encoder_lr": 1e-3}}, "train.text_encoder_lr"),
    ],
)
def test_rates_of_what_is_not_trained_are_told(changes, key):
    assert any(note.startswith(f"{key}: 0.001 has no effect") for note in load(text(**changes)).notes)
    assert not any("has no effect" in note for note in load(text(train={"embedding_lr": 1e-3})).notes)
