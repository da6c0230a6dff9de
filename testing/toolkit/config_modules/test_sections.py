"""Sections one by one: coercion, aliases, defaults, tables of keys that are not honoured, descriptions."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from toolkit.config_modules.base import AnyOf, Section, is_default, subsections
from toolkit.config_modules.datasets import DatasetConfig
from toolkit.config_modules.explain import idle_notes
from toolkit.config_modules.generate import GenerateConfig
from toolkit.config_modules.job import job_schema
from toolkit.config_modules.loop import EMAConfig, LoopConfig
from toolkit.config_modules.model import ModelConfig
from toolkit.config_modules.network import LoggingConfig, NetworkConfig, NetworkKwargs, SaveConfig
from toolkit.config_modules.process import GenerateProcess, TrainProcess, VaeProcess
from toolkit.config_modules.sample import SampleConfig, SampleItem
from toolkit.config_modules.train import TrainConfig
from toolkit.config_modules.validation import ValidationItem, ValidationItemsConfig

REQUIRED: dict[type[Section], dict[str, Any]] = {
    ModelConfig: {"name_or_path": "tiny-sd"},
    DatasetConfig: {"folder_path": "pictures"},
    SampleItem: {"prompt": "a fox"},
    TrainProcess: {
        "type": "sd_trainer",
        "training_folder": "output",
        "model": {"name_or_path": "tiny-sd"},
        "datasets": [{"folder_path": "pictures"}],
    },
    GenerateConfig: {"prompts": ["a fox"]},
    ValidationItem: {"image_path": "fox.png"},
    ValidationItemsConfig: {"validation_items": [{"image_path": "a.png"}, {"image_path": "b.png"}]},
    VaeProcess: {
        "type": "vae",
        "training_folder": "output",
        "model": {"name_or_path": "tiny-sd"},
        "datasets": [{"folder_path": "pictures"}],
    },
    GenerateProcess: {
        "type": "to_folder",
        "output_folder": "output",
        "model": {"name_or_path": "tiny-sd"},
        "generate": {"prompts": ["a fox"]},
    },
}


def all_sections() -> list[type[Section]]:
    """Every section class that a job file can contain."""
    found: dict[type[Section], None] = {}

    def visit(section: type[Section]) -> None:
        found.setdefault(section)
        for inner in subsections(section).values():
            visit(inner)

    for process in (TrainProcess, VaeProcess, GenerateProcess):
        visit(process)
    return list(found)


SECTIONS = all_sections()


def parse(section: type[Section], **values: Any) -> Any:
    """A section from raw values and what it cannot do without."""
    return section.model_validate(REQUIRED.get(section, {}) | values)


def away_from(default: Any) -> Any:
    """A raw value that differs from a default."""
    if isinstance(default, AnyOf):
        default = default.values[0]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 2
    return "something"


NOT_YET = [(section, key) for section in SECTIONS for key in section.NOT_YET]
IDLE = [(section, key) for section in SECTIONS for key in section.IDLE]


def name_of(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


def test_every_section_is_visited():
    assert {TrainConfig, EMAConfig, NetworkKwargs, SaveConfig, LoggingConfig, SampleItem} <= set(SECTIONS)
    assert len(NOT_YET) > 100


@pytest.mark.parametrize(("section", "key"), NOT_YET, ids=name_of)
def test_a_key_that_is_not_honoured_passes_at_its_default_only(section, key):
    default = section.NOT_YET[key]
    plain = parse(section)
    for value in default.values if isinstance(default, AnyOf) else (default, None):
        assert parse(section, **{key: value}) == plain
    with pytest.raises(ValidationError) as caught:
        parse(section, **{key: away_from(default)})
    assert [error["loc"][-1] for error in caught.value.errors()] == [key]


@pytest.mark.parametrize(("section", "key"), IDLE, ids=name_of)
def test_a_key_without_effect_passes_and_is_noted_when_set(section, key):
    default = section.IDLE[key][0]
    usual = default.values[0] if isinstance(default, AnyOf) else default
    changed = "something" if default == {} or isinstance(default, list) else away_from(default)
    assert parse(section, **{key: changed}) == parse(section)
    assert idle_notes(section, {key: usual}) == []
    if isinstance(default, AnyOf) and set(default.values) == {True, False}:
        return
    (note,) = idle_notes(section, {key: changed})
    assert note.startswith(f"{key}: ")
    assert "has no effect" in note


@pytest.mark.parametrize("section", SECTIONS, ids=name_of)
def test_every_field_and_section_is_described(section):
    assert section.__doc__
    for name, field in section.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert len(field.description) > 10, name


@pytest.mark.parametrize("section", SECTIONS, ids=name_of)
def test_a_key_has_one_meaning_in_a_section(section):
    keys = section.known_keys()
    assert len(keys) == len(set(keys))
    assert set(section.ALIASES.values()) <= set(section.model_fields)


@pytest.mark.parametrize("section", SECTIONS, ids=name_of)
def test_null_is_the_same_as_left_out(section):
    optional = [name for name, field in section.model_fields.items() if not field.is_required()]
    nulls = {name: None for name in optional if name not in section.NULL_MEANS}
    assert parse(section, **nulls) == parse(section)


def test_an_unknown_key_is_an_error_even_when_null():
    with pytest.raises(ValidationError):
        TrainConfig.model_validate({"learning_rate": None})


@pytest.mark.parametrize("written", ["1e-4", 1e-4, "0.0001", "1.0E-4"])
def test_numbers_may_be_text(written):
    assert LoopConfig.model_validate({"lr": written}).lr == 1e-4


@pytest.mark.parametrize("written", [2000, 2000.0, "2000", "2000.0", "2e3"])
def test_whole_numbers_may_be_floats(written):
    steps = LoopConfig.model_validate({"steps": written}).steps
    assert (steps, type(steps)) == (2000, int)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (LoopConfig, {"steps": 2000.5}),
        (LoopConfig, {"steps": True}),
        (LoopConfig, {"steps": 0}),
        (LoopConfig, {"lr": -1e-4}),
        (LoopConfig, {"lr": float("nan")}),
        (LoopConfig, {"lr": float("inf")}),
        (LoopConfig, {"lr": "fast"}),
        (LoopConfig, {"batch_size": 0}),
        (LoopConfig, {"gradient_accumulation": 0}),
        (LoopConfig, {"gradient_accumulation_steps": -2}),
        (LoopConfig, {"gradient_accumulation_steps": 2, "gradient_accumulation": 4}),
        (LoopConfig, {"max_grad_norm": -1}),
        (LoopConfig, {"dtype": "float8"}),
        (LoopConfig, {"optimizer": "automagic"}),
        (LoopConfig, {"lr_scheduler": "linar"}),
        (LoopConfig, {"num_threads": 0}),
        (LoopConfig, {"on_non_finite": "ignore"}),
        (LoopConfig, {"gradient_checkpointing": "perhaps"}),
        (EMAConfig, {"ema_decay": 1.0}),
        (TrainConfig, {"loss_type": "stepped"}),
        (TrainConfig, {"timestep_type": "next_sample"}),
        (TrainConfig, {"noise_scheduler": "lcm"}),
        (TrainConfig, {"min_snr_gamma": 0}),
        (NetworkConfig, {"linear": 0}),
        (NetworkConfig, {"rank": 8, "linear": 4}),
        (NetworkConfig, {"dropout": 1}),
        (NetworkConfig, {"type": "lorm"}),
        (NetworkConfig, {"network_kwargs": {"only_contains": []}}),
        (SaveConfig, {"max_step_saves_to_keep": 0}),
        (SaveConfig, {"save_format": "ckpt"}),
        (LoggingConfig, {"log_every": 0}),
        (SampleConfig, {"format": "bmp"}),
        (SampleConfig, {"sampler": "mean_flow"}),
        (SampleConfig, {"prompts": "one"}),
        (SampleConfig, {"prompts": ["a fox --w wide"]}),
        (SampleConfig, {"width": 0}),
        (SampleConfig, {"seed": -2}),
        (DatasetConfig, {"resolution": []}),
        (DatasetConfig, {"resolution": [4]}),
        (DatasetConfig, {"caption_dropout_rate": 1.5}),
        (DatasetConfig, {"alpha_color": [0, 0, 256]}),
        (DatasetConfig, {"alpha_color": [0, 0]}),
        (DatasetConfig, {"replacements": ["a"]}),
        (DatasetConfig, {"replacements": ["|a"]}),
        (DatasetConfig, {"replacements": ["a|b|c"]}),
        (DatasetConfig, {"random_triggers": "no_such_file.txt"}),
        (DatasetConfig, {"random_triggers": [""]}),
        (DatasetConfig, {"random_triggers_max": 0}),
        (DatasetConfig, {"token_dropout_rate": 1.5}),
        (DatasetConfig, {"keep_tokens": -1}),
        (DatasetConfig, {"caption_variants": 0}),
        (ModelConfig, {"arch": "cogview4"}),
        (ModelConfig, {"is_v2": True}),
        (ModelConfig, {"is_xl": True, "arch": "sd15"}),
        (ModelConfig, {"is_xl": True, "is_ssd": True}),
        (ModelConfig, {"is_flux": True, "arch": "sd15"}),
        (ModelConfig, {"is_v_pred": True, "prediction_type": "epsilon"}),
        (ModelConfig, {"name_or_path": ""}),
        (TrainProcess, {"datasets": []}),
        (TrainProcess, {"device": "gpu 0"}),
        (TrainProcess, {"trigger_word": True}),
    ],
)
def test_impossible_values_are_refused(section, values):
    parse(section)
    with pytest.raises(ValidationError):
        parse(section, **values)


@pytest.mark.parametrize(
    ("section", "values", "attribute", "expected"),
    [
        (NetworkConfig, {"rank": 8}, "linear", 8),
        (NetworkConfig, {"rank": 8, "linear": 8}, "rank", 8),
        (NetworkConfig, {"alpha": 8}, "linear_alpha", 8.0),
        (NetworkConfig, {"alpha": 8}, "alpha", 8.0),
        (NetworkConfig, {}, "linear_alpha", 1.0),
        (DatasetConfig, {"caption_ext": "caption"}, "caption_ext", ".caption"),
        (DatasetConfig, {"caption_type": "json"}, "caption_ext", ".json"),
        (DatasetConfig, {"resolution": 64}, "resolution", [64]),
        (DatasetConfig, {"resolution": [64, 96.0]}, "resolution", [64, 96]),
        (LoopConfig, {"gradient_accumulation_steps": 4}, "gradient_accumulation", 4),
        (LoopConfig, {"gradient_accumulation_steps": -1}, "gradient_accumulation", -1),
        (
            LoopConfig,
            {"gradient_accumulation_steps": 4, "gradient_accumulation": 4},
            "gradient_accumulation",
            4,
        ),
        (LoopConfig, {"optimizer": "AdamW8Bit"}, "optimizer", "adamw8bit"),
        (LoopConfig, {"dtype": "bf16"}, "dtype", "bfloat16"),
        (SaveConfig, {"dtype": "half"}, "dtype", "float16"),
        (SaveConfig, {"save_every": None}, "save_every", 0),
        (LoggingConfig, {"performance_log_every": 5}, "log_every", 5),
        (SampleConfig, {"sample_every": None}, "sample_every", 0),
        (SampleConfig, {"neg": False}, "neg", ""),
        (SampleConfig, {"width": 517, "height": 5}, "width", 512),
        (SampleConfig, {"width": 517, "height": 5}, "height", 8),
        (SampleConfig, {"format": ".JPEG".lower().strip(".")}, "format", "jpg"),
        (ModelConfig, {"arch": "sd1"}, "arch", "sd15"),
        (ModelConfig, {"arch": "sd15:turbo"}, "arch", "sd15"),
        (ModelConfig, {"is_xl": True}, "arch", "sdxl"),
        (ModelConfig, {"is_xl": True, "arch": "xl"}, "arch", "sdxl"),
        (ModelConfig, {"is_xl": "false"}, "arch", "sd15"),
        (ModelConfig, {"is_ssd": True}, "arch", "ssd"),
        (ModelConfig, {"is_vega": True}, "arch", "vega"),
        (ModelConfig, {"is_v_pred": True}, "prediction_type", "v_prediction"),
        (TrainConfig, {"noise_scheduler": "ddim"}, "noise_scheduler", "ddpm"),
        (TrainConfig, {}, "timestep_type", "linear"),
        (TrainConfig, {"timestep_type": "sigmoid"}, "timestep_type", "sigmoid"),
        (TrainConfig, {"noise_scheduler": "flowmatch"}, "timestep_type", "sigmoid"),
        (TrainConfig, {"lr": 1e-4}, "denoiser_lr", 1e-4),
        (TrainConfig, {"lr": 1e-4, "unet_lr": 1e-5}, "denoiser_lr", 1e-5),
        (TrainConfig, {"lr": 1e-4, "text_encoder_lr": 0}, "encoder_lr", 0.0),
        (TrainConfig, {"ema_config": None}, "ema_config", EMAConfig()),
        (TrainProcess, {"training_folder": 7}, "training_folder", "7"),
    ],
)
def test_spellings_and_defaults(section, values, attribute, expected):
    assert getattr(parse(section, **values), attribute) == expected


def test_defaults_are_those_of_ai_toolkit():
    train, sample, save = TrainConfig(), SampleConfig(), SaveConfig()
    assert (train.steps, train.batch_size, train.lr, train.optimizer) == (1000, 1, 1e-6, "adamw")
    assert (train.max_grad_norm, train.dtype, train.gradient_checkpointing) == (1.0, "float32", True)
    assert (train.train_unet, train.train_text_encoder, train.loss_type) == (True, False, "mse")
    assert (train.ema_config.use_ema, train.ema_config.ema_decay) == (False, 0.999)
    assert (sample.sampler, sample.sample_every, sample.width, sample.height) == ("ddpm", 100, 512, 512)
    assert (sample.guidance_scale, sample.sample_steps, sample.format) == (7.0, 20, "jpg")
    assert (save.save_every, save.dtype, save.max_step_saves_to_keep) == (1000, "float16", 5)
    assert (NetworkConfig().linear, NetworkConfig().transformer_only) == (4, True)


def test_settings_are_handed_down():
    process = parse(
        TrainProcess,
        trigger_word="zwx",
        train={"dtype": "bf16", "cache_text_embeddings": True, "noise_scheduler": "flowmatch"},
        datasets=[
            {"folder_path": "a"},
            {"folder_path": "b", "trigger_word": "", "cache_text_embeddings": False},
        ],
        sample={"prompts": ["a fox"]},
    )
    assert [dataset.trigger_word for dataset in process.datasets] == ["zwx", ""]
    assert [dataset.cache_text_embeddings for dataset in process.datasets] == [True, True]
    assert process.model.dtype == "bfloat16"
    assert process.sample.sampler == "flowmatch"


def test_what_a_section_says_itself_is_not_overruled():
    process = parse(
        TrainProcess,
        trigger_word="zwx",
        train={"dtype": "bf16", "noise_scheduler": "flowmatch"},
        model={"name_or_path": "tiny-sd", "dtype": "fp32"},
        datasets=[{"folder_path": "a", "trigger_word": "other"}],
        sample={"sampler": "euler"},
    )
    assert process.model.dtype == "float32"
    assert process.datasets[0].trigger_word == "other"
    assert process.sample.sampler == "euler"


def test_sections_cannot_be_changed():
    with pytest.raises(ValidationError):
        TrainConfig().steps = 5


@pytest.mark.parametrize(
    ("value", "default", "expected"),
    [
        (0, False, True),
        ("0.0", 0.0, True),
        ("false", False, True),
        ([], None, True),
        ("", None, True),
        (1000, AnyOf(999, 1000), True),
        (998, AnyOf(999, 1000), False),
        (True, False, False),
        ("x", 0.0, False),
        (1, 0.0, False),
        ({"a": 1}, None, False),
        (0, None, False),
    ],
)
def test_what_counts_as_the_default(value, default, expected):
    assert is_default(value, default) is expected


def test_the_schema_knows_every_key():
    definitions = job_schema()["$defs"]
    for section in SECTIONS:
        assert set(section.known_keys()) == set(definitions[section.__name__]["properties"]), section.__name__
    assert definitions["TrainConfig"]["properties"]["do_prior_divergence"]["default"] is False
    assert "lora" in definitions["NetworkConfig"]["properties"]["type"]["enum"]
    assert "sd15" in definitions["ModelConfig"]["properties"]["arch"]["enum"]
