"""A server without a scheduler, in a folder of its own, and clients of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from web.app import create_app
from web.services import Services
from web.settings import WebSettings

BASE = "http://localhost:8675"
TOKEN = "a-token-that-nothing-else-contains"  # noqa: S105 - of the tests
ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> WebSettings:
    """Settings of a server with two GPUs and a CPU that starts no jobs."""
    return WebSettings(
        data_root=tmp_path / "data", output_root=tmp_path / "output", datasets_root=tmp_path / "datasets",
        devices=("gpu:0", "gpu:1", "cpu:0"), schedule=False,
    )  # fmt: skip


@pytest.fixture
def app(settings: WebSettings) -> FastAPI:
    """The app that everyone may use."""
    return create_app(settings)


@pytest.fixture
def services(app: FastAPI) -> Services:
    """Its parts."""
    return app.state.services


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """A client of it."""
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def locked(settings: WebSettings) -> Iterator[TestClient]:
    """A client of a server with a token, without credentials."""
    app = create_app(replace(settings, token=TOKEN))
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    """A function that writes a config which can run: (name, **what to replace) -> YAML."""

    def make(name: str = "small", **train: object) -> str:
        settings = {"steps": 4, "batch_size": 1, "lr": "1e-3", "dtype": "fp32", **train}
        lines = "".join(f"        {key}: {value}\n" for key, value in settings.items())
        return (
            f"job: train\nconfig:\n  name: {name}\n  process:\n    - type: sd_trainer\n"
            f"      training_folder: {tmp_path / 'output'}\n      device: cpu\n"
            "      model: {name_or_path: tiny-sd}\n"
            f"      datasets: [{{folder_path: {ROOT / 'datasets' / 'drawings'}, resolution: [32]}}]\n"
            f"      network: {{type: lora, linear: 4}}\n      train:\n{lines}"
            "      sample: {prompts: [a red circle, a blue square], width: 32, height: 32}\n"
        )

    return make


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """The folder of an ai-toolkit, with nothing in it."""
    folder = tmp_path / "ai-toolkit"
    (folder / "output").mkdir(parents=True)
    return folder
