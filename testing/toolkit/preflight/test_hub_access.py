"""What the hub is asked and what its answers mean: a fake hub on loopback, asked by the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from toolkit.models.hub_cache import cached_snapshot, is_hub_id, missing_parts
from toolkit.paths import ROOT
from toolkit.preflight.hub_access import matching_files, pipeline_files

FILES = {
    "model_index.json": 500,
    "README.md": 9_000,
    "v1-5.safetensors": 4_000_000_000,
    "scheduler/scheduler_config.json": 300,
    "tokenizer/tokenizer.json": 2_000,
    "tokenizer/merges.txt": 1_000,
    "text_encoder/config.json": 600,
    "text_encoder/model.safetensors": 490_000_000,
    "text_encoder/model.fp16.safetensors": 245_000_000,
    "text_encoder/pytorch_model.bin": 490_000_000,
    "unet/config.json": 700,
    "unet/diffusion_pytorch_model.safetensors.index.json": 1_000,
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors": 2_000_000_000,
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors": 1_440_000_000,
    "unet/model.onnx": 3_000_000_000,
    "vae/config.json": 500,
    "vae/diffusion_pytorch_model.bin": 335_000_000,
    "safety_checker/model.safetensors": 1_200_000_000,
}
EXPECTED = {
    name
    for name in FILES
    if name not in ("README.md", "v1-5.safetensors", "unet/model.onnx", "text_encoder/pytorch_model.bin")
    and not name.startswith("safety_checker")
    and ".fp16." not in name
}


def test_one_set_of_weights_of_each_part_is_downloaded():
    assert set(pipeline_files(FILES)) == EXPECTED
    assert matching_files(FILES, ["vae/*", "config.json"]) == [
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b", True),
        ("a-1/b.c_d", True),
        ("a", False),
        ("a/b/c", False),
        ("a/b.safetensors", False),
        ("a b/c", False),
    ],
)
def test_what_can_be_a_hub_id(name, expected):
    assert is_hub_id(name) is expected


def make_cache(root: Path, repo_id: str, files: dict[str, int]) -> Path:
    """A cached snapshot with these files."""
    folder = root / f"models--{repo_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    index = {
        "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None], "requires_safety_checker": True,
    }  # fmt: skip
    for name in files:
        path = folder / "snapshots" / "abc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(index) if name == "model_index.json" else "{}")
    shards = {"weight_map": {name: name.rpartition("/")[2] for name in FILES if "-of-0000" in name}}
    sharded = folder / "snapshots" / "abc" / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    if sharded.exists():
        sharded.write_text(json.dumps(shards))
    return folder / "snapshots" / "abc"


def test_a_cached_model_is_found_and_judged(tmp_path):
    assert cached_snapshot("org/sd", tmp_path) is None
    snapshot = make_cache(tmp_path, "org/sd", dict.fromkeys(EXPECTED, 0))
    assert cached_snapshot("org/sd", tmp_path) == snapshot
    assert missing_parts(snapshot) == []
    (snapshot / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    (snapshot / "vae" / "diffusion_pytorch_model.bin").unlink()
    assert missing_parts(snapshot) == ["unet", "vae"]
    (snapshot / "model_index.json").unlink()
    assert missing_parts(snapshot) == ["model_index.json"]


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """Answers as the hub does for a few repositories; org/secret is gated for everybody without a token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/models/")
            token = "Authorization" in self.headers
            if path.endswith("/auth-check"):
                return self.answer(200 if token else 403, {}, None if token else "GatedRepo")
            if path in ("org/sd", "org/secret", "org/file"):
                files = {"weights.safetensors": 5} if path == "org/file" else FILES
                siblings = [{"rfilename": name, "size": size} for name, size in files.items()]
                gated = "manual" if path == "org/secret" else False
                return self.answer(200, {"id": path, "modelId": path, "gated": gated, "siblings": siblings})
            if path == "org/down":
                return self.answer(503, {})
            return self.answer(404, {}, "RepoNotFound")

        def answer(self, code: int, body: Any, error: str | None = None) -> None:
            text = json.dumps(body).encode()
            self.send_response(code)
            if error is not None:
                self.send_header("X-Error-Code", error)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: Any) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    thread.join()
    web.server_close()


def ask(hub: str, tmp_path: Path, *repositories: str, **environment: str) -> list[dict[str, Any]]:
    """What ask_hub says of repositories, in a process of its own: offline mode is read at import."""
    script = (
        "import json, sys; from dataclasses import asdict; from toolkit.preflight.hub_access import ask_hub\n"
        "answers = [ask_hub(name, key='model.name_or_path') for name in sys.argv[1:]]\n"
        "print(json.dumps([asdict(answer) for answer in answers]))\n"
    )
    own = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}
    result = subprocess.run(
        [sys.executable, "-c", script, *repositories], cwd=ROOT, env=os.environ | own | environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_the_hubs_answers(hub, tmp_path):
    found, secret, none, file, down = ask(
        hub, tmp_path, "org/sd", "org/secret", "org/none", "org/file", "org/down"
    )
    assert (found["where"], found["problem"]) == ("hub", None)
    assert found["download_bytes"] == sum(FILES[name] for name in EXPECTED)
    assert [each["where"] for each in (secret, none, file, down)] == ["unknown"] * 4
    assert [each["certain"] for each in (secret, none, file, down)] == [True, True, True, False]
    assert "is gated: its owner wants its terms accepted first" in secret["problem"]["message"]
    assert "set HF_TOKEN" in secret["problem"]["remedy"]
    assert "no such model on the hub, or it is private" in none["problem"]["message"]
    assert "is not a diffusers model (no model_index.json)" in file["problem"]["message"]
    assert {each["problem"]["code"] for each in (secret, none, file, down)} == {"model.hub"}
    assert {each["problem"]["key"] for each in (secret, none, file)} == {"model.name_or_path"}


def test_a_token_opens_a_gated_model_and_the_cache_saves_a_download(hub, tmp_path):
    make_cache(
        tmp_path / "hf" / "hub", "org/secret", {"unet/diffusion_pytorch_model-00001-of-00002.safetensors": 0}
    )
    (secret,) = ask(hub, tmp_path, "org/secret", HF_TOKEN="hf_test")
    assert (secret["where"], secret["gated"], secret["problem"]) == ("hub", True, None)
    assert secret["download_bytes"] == sum(FILES[name] for name in EXPECTED) - 2_000_000_000


def test_offline_the_cache_alone_counts(hub, tmp_path):
    make_cache(tmp_path / "hf" / "hub", "org/sd", dict.fromkeys(EXPECTED, 0))
    cached, absent = ask(hub, tmp_path, "org/sd", "org/none", HF_HUB_OFFLINE="1")
    assert (cached["where"], cached["download_bytes"], cached["problem"]) == ("cache", 0, None)
    assert (absent["where"], absent["certain"]) == ("unknown", False)
    assert "is not in the local cache, and HF_HUB_OFFLINE forbids a download" in absent["problem"]["message"]


def test_nobody_answers(tmp_path):
    (answer,) = ask("http://127.0.0.1:9", tmp_path, "org/sd")
    assert (answer["where"], answer["certain"]) == ("unknown", False)
    assert "the hub cannot be reached" in answer["problem"]["message"]
