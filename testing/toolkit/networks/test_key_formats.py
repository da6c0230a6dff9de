from __future__ import annotations

import pytest

from toolkit.networks.key_formats import (
    LoraTensors,
    canonical_path,
    group_modules,
    kohya_name,
    other_network_type,
    peft_name,
    split_key,
    to_kohya,
    to_peft,
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
        (f"{FLAT}.lora_down.weight", (FLAT, "down")),
        (f"{FLAT}.lora_up.weight", (FLAT, "up")),
        (f"{FLAT}.alpha", (FLAT, "alpha")),
        (f"{FLAT_TEXT}.lora_up.weight", (FLAT_TEXT, "up")),
        ("lora_te_encoder_layers_0_self_attn_q_proj.alpha", (FLAT_TEXT, "alpha")),
        (f"unet.{UNET}.lora_A.weight", (FLAT, "down")),
        (f"unet.{UNET}.lora_B.default.weight", (FLAT, "up")),
        (f"base_model.model.unet.{UNET}.lora_B.weight", (FLAT, "up")),
        (f"unet.{UNET}.lora.up.weight", (FLAT, "up")),
        (f"unet.{UNET}.alpha", (FLAT, "alpha")),
        (f"text_encoder.{TEXT}.lora_A.weight", (FLAT_TEXT, "down")),
        (f"text_encoder.text_model.{TEXT}.lora_A.weight", (FLAT_TEXT, "down")),
        (f"transformer.{UNET}.lora_A.weight", None),
        (f"{FLAT}.dora_scale", None),
        (f"{FLAT}.lora_mid.weight", None),
        (f"unet.{UNET}.weight", None),
        ("lora_A.weight", None),
        ("bundle_emb.ohwx.string_to_param.*", None),
    ],
)
def test_split_key(key: str, expected: tuple[str, str] | None) -> None:
    assert split_key(key) == expected


def test_round_trip() -> None:
    names = {FLAT: f"unet.{UNET}", FLAT_TEXT: f"text_encoder.text_model.{TEXT}"}
    peft = {f"{name}.lora_{half}.weight": f"{name} {half}" for name in names.values() for half in "AB"}
    kohya = to_kohya(peft, "3.0")
    assert kohya[f"{FLAT}.lora_down.weight"] == f"unet.{UNET} A"
    assert kohya[f"{FLAT_TEXT}.alpha"] == "3.0"
    assert list(kohya) == sorted(kohya) and len(kohya) == 6
    file = group_modules(kohya)
    assert not file.foreign_keys
    assert to_peft(file.modules, names) == peft
    assert to_kohya(to_peft(file.modules, names), "3.0") == kohya


def test_grouping_keeps_what_it_does_not_know() -> None:
    file = group_modules({f"{FLAT}.lora_up.weight": 1, f"{FLAT}.alpha": 2, "step": 3})
    assert file.modules == {FLAT: LoraTensors(down=None, up=1, alpha=2)}
    assert file.foreign_keys == ["step"]


def test_only_lora_tensors_become_kohya() -> None:
    with pytest.raises(ValueError, match="step"):
        to_kohya({"step": 1}, 2)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"{FLAT}.hada_w1_a", "LoHa"),
        (f"{FLAT}.lokr_w1", "LoKr"),
        (f"{FLAT}.dora_scale", "DoRA"),
        ("step", None),
    ],
)
def test_other_types_are_named(key: str, kind: str | None) -> None:
    assert other_network_type(["first", key]) == kind
