"""The API asked by schemathesis for what its committed description allows, and for much that it does not.

No answer may be a 5xx, and each must be one that docs/openapi.json tells of, with the body it tells of.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
import uvicorn
from hypothesis import strategies
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from testing.web.conftest import ROOT
from web.app import create_app
from web.settings import WebSettings

DESCRIPTION = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
]  # fmt: skip
ENDLESS = {"/api/events"}  # a stream: testing/web/test_server.py reads it
schema = schemathesis.openapi.from_dict(DESCRIPTION)
OPERATIONS = [each.ok() for each in schema.get_all_operations() if each.ok().path not in ENDLESS]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a server that starts no job, and what exists there by the name of its path parameter."""
    root = tmp_path_factory.mktemp("fuzzed")
    (root / "datasets" / "cats").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "datasets" / "cats" / "one.png")
    app = create_app(WebSettings(
        data_root=root / "data", output_root=root / "output", datasets_root=root / "datasets",
        devices=("cpu:0",), schedule=False,
    ))  # fmt: skip
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    address = "http://{}:{}".format(*server.servers[0].sockets[0].getsockname())
    made = httpx.post(
        f"{address}/api/jobs", json={"config_yaml": "job: train\nconfig: {name: one}"}, trust_env=False
    )
    yield address, {"job_id": made.json()["id"], "name": "cats", "item": "one.png"}
    server.should_exit = True
    thread.join(20)


@pytest.mark.parametrize("num_examples", [4, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method.upper()} {each.path}")
def test_every_answer_is_one_of_the_description(served: Any, operation: Any, num_examples: int) -> None:
    address, known = served

    @hypothesis.settings(
        max_examples=num_examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(case=operation.as_strategy(), exists=strategies.booleans())
    def ask(case: Any, exists: bool) -> None:
        if exists:
            there = {key: value for key, value in known.items() if key in (case.path_parameters or {})}
            case.path_parameters = {**(case.path_parameters or {}), **there}
        answer = case.call_and_validate(base_url=address, checks=CHECKS)
        assert answer.status_code < 500

    ask()


def test_an_answer_that_is_not_described_fails(served: Any) -> None:
    address, _ = served
    operation = next(each for each in OPERATIONS if each.path == "/api/jobs" and each.method == "get")
    case = operation.Case()
    response = case.call_and_validate(base_url=address, checks=CHECKS)
    response.status_code = 418
    with pytest.raises(FailureGroup, match="Undocumented status code"):
        case.validate_response(response, checks=CHECKS)
