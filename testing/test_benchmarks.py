"""The benchmarks run and print what they measured. How fast anything is, no test says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from testing.benchmarks import bench_latent_cache, bench_network, bench_step, bench_warm_start, bench_web
from testing.benchmarks.measuring import Times, make_row, ratio, take_turns


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.strip().rpartition("\n")[2])


def check(rows: list[dict[str, Any]], names: list[str]) -> None:
    assert [row["name"] for row in rows] == names
    for row in rows:
        assert row["ours_ms"] > 0 and row["bare_ms"] > 0
        for name in ("ratio", "wall_ratio", "control"):
            assert 0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"]


def test_a_step_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_step.main(["--quick", "--only", "LoRA, EMA"]) == 0
    check(last_line(capsys)["rows"], ["LoRA, EMA"])


@pytest.mark.slow
def test_every_kind_of_step_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_step.main(["--quick"]) == 0
    check(last_line(capsys)["rows"], [variant.name for variant in bench_step.VARIANTS])


def test_the_latent_cache_is_measured_and_gives_the_bytes_of_the_bare_loop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench_latent_cache.main(["--quick"]) == 0
    found = last_line(capsys)
    check(found["rows"], ["filling the latent cache (speed)"])
    assert found["latents_equal"] is True


def test_networks_are_measured_and_lokr_is_that_of_peft(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_network.main(["--quick"]) == 0
    found = last_line(capsys)
    names = ["LoRA, ours", "LoHa, ours", "LoKr, ours", "LoKr, peft", "LoKr, lycoris"]
    expected = [f"{name} / frozen layer" for name in names]
    check(found["rows"], [*expected, "LoKr of peft / ours", "LoKr of lycoris / ours"])
    assert found["lokr_difference"] < 1e-5


@pytest.mark.slow
def test_warm_starts_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_warm_start.main(["--quick"]) == 0
    found = last_line(capsys)
    for size in ("small", "large"):
        assert found[f"{size}_seconds"] > found[f"{size}_data_seconds"] > 0
        assert found[f"{size}_peak_mb"] > 100
    assert found["ratio_seconds"] > 0 and found["control"] > 0


def test_ratios_are_taken_round_by_round() -> None:
    found = ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0])
    assert (found.low, found.median, found.high) == (1.5, 2.0, 2.5)
    slow, fast = Times([2.0, 4.0], [2.0, 4.0]), Times([1.0, 2.0], [1.0, 2.0])
    time = make_row("time", slow, fast, fast, goal=1.9)
    assert time.ratio.median == 2.0 and time.verdict == "no" and time.control.median == 1.0
    speed = make_row("speed", slow, fast, fast, goal=0.4, speed=True)
    assert speed.ratio.median == 0.5 and speed.verdict == "yes"
    shaky = Times([1.2, 1.8], [1.2, 1.8])
    assert make_row("time", slow, fast, shaky, goal=1.95).verdict == "too close"


def test_variants_take_turns_in_rotating_order() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = take_turns(variants, rounds=2, warm_up=1)
    assert "".join(calls) == "abcbcacab"
    assert all(len(t.cpu) == len(t.wall) == 2 for t in times.values())


@pytest.mark.slow
def test_the_web_server_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_web.main(["--quick"]) == 0
    found = last_line(capsys)
    assert found["stream"]["listeners"] == 100
    names = [row["name"] for row in found["rows"]]
    assert names[0] == "requests per second of /api/jobs?limit=20" and names[-1] == "import web.app"
    assert len(names) == 15
    check(found["rows"], names)
