from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from toolkit.errors import ModelError
from toolkit.metadata import TrainedFile, build_metadata, read_header, read_metadata, seal, training_info

FACTS = TrainedFile(
    name="cat_v1",
    architecture="sd15",
    step=250,
    epoch=3,
    resolution=512,
    base_model="/home/alice/models/dreamy.safetensors",
    rank=16,
    alpha=8.0,
    network_args={"only_if_contains": ["attn"]},
    num_images=12,
    trigger_word="ohwx cät",
    seed=42,
    date=dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
    user={"name": "cat_v1", "version": 1.5, "tags": ["a", "b"]},
)


def test_what_other_tools_look_for() -> None:
    metadata = build_metadata(FACTS)
    assert all(isinstance(value, str) and value for value in metadata.values())
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_v2"] == "False"
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_network_dim"] == "16" and float(metadata["ss_network_alpha"]) == 8
    assert json.loads(metadata["ss_network_args"]) == {"only_if_contains": ["attn"]}
    assert metadata["ss_output_name"] == "cat_v1"
    assert json.loads(metadata["ss_tag_frequency"]) == {"1_ohwx cät": {"ohwx cät": 12}}
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.implementation"] and metadata["modelspec.title"] == "cat_v1"
    assert metadata["modelspec.resolution"] == "512x512"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["modelspec.trigger_phrase"] == "ohwx cät"
    assert dt.datetime.fromisoformat(metadata["modelspec.date"]) == FACTS.date
    assert metadata["format"] == "pt" and json.loads(metadata["software"])["name"]
    assert training_info(metadata) == (250, 3)


def test_the_users_words_are_kept_and_facts_are_ours() -> None:
    user = {
        "version": 1.5,
        "tags": ["ä"],
        "modelspec.author": "me",
        "modelspec.title": "My cat",
        "ss_network_dim": "999",
    }
    metadata = build_metadata(
        TrainedFile(name="x", architecture="sd15", step=1, epoch=0, resolution=64, user=user)
    )
    assert metadata["version"] == "1.5" and json.loads(metadata["tags"]) == ["ä"]
    assert metadata["modelspec.author"] == "me" and metadata["modelspec.title"] == "My cat"
    assert metadata["ss_network_dim"] == "0"
    assert "modelspec.trigger_phrase" not in metadata and "ss_tag_frequency" not in metadata


def test_no_path_of_this_computer() -> None:
    for base_model in (
        "/home/alice/m/dreamy.safetensors",
        r"C:\Users\alice\dreamy.safetensors",
        "org/dreamy/",
    ):
        facts = TrainedFile(
            name="x", architecture="sd15", step=1, epoch=0, resolution=64, base_model=base_model
        )
        metadata = build_metadata(facts)
        assert metadata["ss_sd_model_name"].startswith("dreamy")
        assert not any("alice" in value or "org/" in value for value in metadata.values())


def test_full_weights_and_v_prediction() -> None:
    facts = TrainedFile(
        name="x",
        architecture="sd15",
        step=1,
        epoch=0,
        resolution=64,
        network_type=None,
        prediction_type="v_prediction",
    )
    metadata = build_metadata(facts)
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.prediction_type"] == "v"
    assert not any(key.startswith("ss_network") for key in metadata)


@pytest.mark.parametrize("text", ["{", "[]", '{"step": "many"}', "null"])
def test_training_info_of_strange_files(text: str) -> None:
    assert training_info({"training_info": text}) == (0, 0)
    assert training_info({}) == (0, 0)


def kohya_hashes(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> tuple[str, str]:
    """The two hashes as kohya defines them, over the library's own serialisation with ss_* alone."""
    file = io.BytesIO(save(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")}))
    length = int.from_bytes(file.read(8), "little")
    file.seek(8 + length)
    model_hash = hashlib.sha256(file.read()).hexdigest()
    file.seek(0x100000)
    return model_hash, hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


@pytest.mark.parametrize("num_values", [10, 265_000, 300_000])  # below, across and beyond the hashed slice
def test_hashes_are_kohyas(num_values: int) -> None:
    tensors = {
        "b.lora_up.weight": torch.randn(num_values, generator=torch.Generator().manual_seed(0)),
        "a.alpha": torch.tensor(3.0),
        "c": torch.ones(3, dtype=torch.float16),
    }
    metadata = build_metadata(FACTS)
    data = seal(save(tensors), metadata)
    with_header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    model_hash, legacy_hash = kohya_hashes(tensors, metadata)
    assert with_header["sshs_model_hash"] == model_hash
    assert with_header["sshs_legacy_hash"] == legacy_hash
    assert with_header["modelspec.hash_sha256"] == f"0x{model_hash}"
    assert metadata.items() <= with_header.items()


def test_a_sealed_file_is_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {"x": torch.arange(5.0), "y": torch.ones(2, 3, dtype=torch.bfloat16), "empty": torch.zeros(0)}
    data = seal(save(tensors, {"old": "gone"}), {"ss_note": "größer"})
    loaded = load(data)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    (tmp_path / "a.safetensors").write_bytes(data)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        theirs = file.metadata()
    assert read_metadata(tmp_path / "a.safetensors") == theirs
    assert theirs["ss_note"] == "größer" and "old" not in theirs
    assert int.from_bytes(data[:8], "little") % 8 == 0
    assert seal(data, {"ss_note": "größer"}) == data


def test_only_the_header_is_read(tmp_path: Path) -> None:
    size = 4 << 30  # a sparse file
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    tracemalloc.start()
    try:
        assert read_header(tmp_path / "big.safetensors")["x"]["shape"] == [size]
        assert read_metadata(tmp_path / "big.safetensors") == {}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"<" + data[9:],
        lambda data: (2).to_bytes(8, "little") + b"[]",
        lambda data: (8).to_bytes(8, "little") + b'{"x": 1}',
    ],
)
def test_damaged_files_are_named(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(damage(save({"x": torch.zeros(4)})))  # type: ignore[operator]
    with pytest.raises(ModelError, match=r"a\.safetensors: is not a safetensors file"):
        read_metadata(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_metadata(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match=r"cannot be read"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("architecture", ["sd1", "sd15", "sd1.5"])
def test_every_spelling_of_stable_diffusion_1_is_known(architecture: str) -> None:
    facts = TrainedFile(name="x", architecture=architecture, step=1, epoch=0, resolution=64)
    metadata = build_metadata(facts)
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"


@pytest.mark.parametrize("architecture", ["sdxl", "ssd", "vega"])
def test_interfaces_take_files_of_the_sdxl_family_for_such(architecture: str) -> None:
    """A1111 lists what begins with "sdxl_" beside SDXL models, anything else beside SD 1."""
    facts = TrainedFile(name="x", architecture=architecture, step=1, epoch=0, resolution=64)
    metadata = build_metadata(facts)
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
