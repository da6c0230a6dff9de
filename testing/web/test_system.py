"""GET /api/system, /api/gpu, /api/cpu and /api/models."""

from __future__ import annotations

import os

import psutil
import pytest

from toolkit.models.catalogue import ARCHITECTURES

NVIDIA = """#!/bin/sh
echo "0, NVIDIA H100, 45, 98, 20480, 81920, 401.55, 700.00, [N/A], 1980, 550.54"
"""


@pytest.fixture
def with_gpu(tmp_path, monkeypatch):
    """A machine whose nvidia-smi shows one GPU."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text(NVIDIA)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr("web.system.shutil.which", lambda _name: None)


def test_a_gpu_is_told_in_both_forms(with_gpu, client):
    (gpu,) = client.get("/api/system").json()["gpus"]
    assert (gpu["name"], gpu["driver"], gpu["memory_total"], gpu["fan"]) == (
        "NVIDIA H100", "550.54", 81920 * 2**20, None,
    )  # fmt: skip
    assert client.get("/api/gpu").json() == {
        "hasNvidiaSmi": True, "error": None,
        "gpus": [{
            "index": 0, "name": "NVIDIA H100", "driverVersion": "550.54", "temperature": 45.0,
            "utilization": {"gpu": 98.0, "memory": 25.0},
            "memory": {"total": 81920.0, "used": 20480.0, "free": 61440.0},
            "power": {"draw": 401.55, "limit": 700.0}, "clocks": {"graphics": 1980.0},
            "fan": {"speed": None},
        }],
    }  # fmt: skip


def test_no_gpu_is_no_error(without_gpu, client):
    assert client.get("/api/system").json()["gpus"] is None
    assert client.get("/api/gpu").json() == {"hasNvidiaSmi": False, "gpus": [], "error": "no nvidia-smi here"}


def test_processors_memory_and_disks(without_gpu, client, services):
    memory = psutil.virtual_memory()
    found = client.get("/api/cpu").json()
    assert found["cores"] == psutil.cpu_count() and 0 <= found["currentLoad"] <= 100
    assert found["totalMemory"] == memory.total / 2**20
    assert 0 < found["availableMemory"] < found["totalMemory"]
    system = client.get("/api/system").json()
    assert system["memory_total"] == memory.total
    disk = system["disks"][0]
    assert 0 < disk["free"] <= disk["total"]
    assert "runs" in disk["label"] and disk["path"] == str(services.settings.data_root)  # all on one


def test_models_are_those_that_can_be_trained_and_those_that_are_here(tmp_path, monkeypatch, client):
    monkeypatch.setenv("MODELS_PATH", str(tmp_path / "models"))
    assert client.get("/api/models").json()["local"] == ["tiny-sd"]
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "model_index.json").write_text("{}")
    (tmp_path / "models" / "one.safetensors").write_bytes(b"")
    (tmp_path / "models" / "notes.txt").write_text("")
    (tmp_path / "models" / "empty").mkdir()
    found = client.get("/api/models").json()
    assert found["local"] == ["tiny-sd", "mine", "one.safetensors"]
    names = [each["name"] for each in found["architectures"]]
    assert names == [name for name, entry in ARCHITECTURES.items() if entry.supported]
    assert "sdxl" in names and "qwen_image" not in names
