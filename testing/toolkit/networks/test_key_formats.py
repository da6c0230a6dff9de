from __future__ import annotations

import pytest

from toolkit.networks.key_formats import (
    DOWN,
    STYLES,
    UP,
    canonical_path,
    file_key,
    file_kind,
    group_modules,
    kohya_name,
    other_network_type,
    peft_name,
    split_key,
)

UNET = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0"
FLAT = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0"
TEXT = "encoder.layers.0.self_attn.q_proj"
FLAT_TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def test_names() -> None:
    assert kohya_name("unet", UNET) == FLAT
    assert peft_name("unet", UNET) == f"unet.{UNET}"


@pytest.mark.parametrize("path", [TEXT, f"text_model.{TEXT}"])
def test_text_model_is_there_once_whichever_transformers_named_the_module(path: str) -> None:
    assert canonical_path("text_encoder", path) == f"text_model.{TEXT}"
    assert kohya_name("text_encoder", path) == FLAT_TEXT
    assert peft_name("text_encoder", path) == f"text_encoder.text_model.{TEXT}"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (f"{FLAT}.lora_down.weight", (FLAT, DOWN)),
        (f"{FLAT}.lora_up.weight", (FLAT, UP)),
        (f"{FLAT}.alpha", (FLAT, "alpha")),
        (f"{FLAT_TEXT}.lora_up.weight", (FLAT_TEXT, UP)),
        ("lora_te_encoder_layers_0_self_attn_q_proj.alpha", (FLAT_TEXT, "alpha")),
        (f"unet.{UNET}.lora_A.weight", (FLAT, DOWN)),
        (f"unet.{UNET}.lora_B.default.weight", (FLAT, UP)),
        (f"base_model.model.unet.{UNET}.lora_B.weight", (FLAT, UP)),
        (f"unet.{UNET}.lora.up.weight", (FLAT, UP)),
        (f"unet.{UNET}.alpha", (FLAT, "alpha")),
        (f"text_encoder.{TEXT}.lora_A.weight", (FLAT_TEXT, DOWN)),
        (f"text_encoder.text_model.{TEXT}.lora_A.weight", (FLAT_TEXT, DOWN)),
        (f"transformer.{UNET}.lora_A.weight", (FLAT.replace("unet", "transformer", 1), DOWN)),
        (f"diffusion_model.{UNET}.lora_A.weight", (FLAT, DOWN)),
        (f"unet.{UNET}.lora_magnitude_vector", (FLAT, "dora_scale")),
        (f"{FLAT}.dora_scale", (FLAT, "dora_scale")),
        (f"{FLAT}.hada_w1_a", (FLAT, "hada_w1_a")),
        (FLAT.replace("lora_unet", "lycoris") + ".lokr_w1", (FLAT, "lokr_w1")),
        (FLAT_TEXT.replace("lora_te", "lora_te1") + ".alpha", (FLAT_TEXT, "alpha")),
        (FLAT_TEXT.replace("lora_te", "lora_te2") + ".alpha", (FLAT_TEXT.replace("te", "te2", 1), "alpha")),
        (f"vae.{UNET}.lora_A.weight", None),
        (f"{FLAT}.lora_mid.weight", None),
        (f"unet.{UNET}.weight", None),
        ("lora_A.weight", None),
        ("bundle_emb.ohwx.string_to_param.*", None),
    ],
)
def test_split_key(key: str, expected: tuple[str, str] | None) -> None:
    assert split_key(key) == expected


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("part", [DOWN, UP, "dora_scale", "hada_w1_a", "lokr_w2_b"])
@pytest.mark.parametrize("component", ["denoiser", "text_encoder", "text_encoder_2"])
def test_what_is_written_is_read_as_the_same_module(style: str, component: str, part: str) -> None:
    path = TEXT if component.startswith("text") else UNET
    denoiser = "transformer" if style == "peft" else "unet"
    component = denoiser if component == "denoiser" else component
    key = file_key(component, path, part, STYLES[style])
    assert split_key(key, denoiser) == (kohya_name(component, path), part)


def test_prefixes_are_literally_those_other_tools_match() -> None:
    assert file_key("text_encoder", TEXT, DOWN, STYLES["sd"]) == f"{FLAT_TEXT}.lora_down.weight"
    sdxl = [file_key(name, TEXT, DOWN, STYLES["sdxl"]) for name in ("text_encoder", "text_encoder_2")]
    assert [key.partition("_text_model_")[0] for key in sdxl] == ["lora_te1", "lora_te2"]
    assert file_key("transformer", UNET, UP, STYLES["peft"]) == f"transformer.{UNET}.lora_B.weight"
    assert file_key("transformer", UNET, "lokr_w1", STYLES["peft"]).startswith("lycoris_down_blocks_0")


def test_grouping_keeps_what_it_does_not_know() -> None:
    file = group_modules({f"{FLAT}.lora_up.weight": 1, f"{FLAT}.alpha": 2, "step": 3})
    assert file.modules == {FLAT: {UP: 1, "alpha": 2}}
    assert file.foreign_keys == ["step"]


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([DOWN, UP], "lora"),
        ([DOWN, UP, "dora_scale"], "dora"),
        (["hada_w1_a"], "loha"),
        (["lokr_w1"], "lokr"),
    ],
)
def test_the_parts_say_the_type(parts: list[str], kind: str) -> None:
    assert file_kind({FLAT: dict.fromkeys(parts, 0)}) == kind


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"{FLAT}.lora_mid.weight", "LoCon with Tucker decomposition"),
        (f"{FLAT}.lokr_t2", "LoKr with Tucker decomposition"),
        (f"{FLAT}.diff", "full difference"),
        ("step", None),
    ],
)
def test_other_types_are_named(key: str, kind: str | None) -> None:
    assert other_network_type(["first", key]) == kind
