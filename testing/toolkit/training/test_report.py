"""Contact sheet and loss plot, looked at pixel by pixel where it matters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from toolkit.errors import RunError
from toolkit.runs.images import save_image
from toolkit.runs.layout import RunFolder
from toolkit.training import report
from toolkit.training.report import contact_sheet, loss_plot, smooth, thin, wrap

COLOURS = {0: (220, 30, 30), 1: (30, 60, 220)}


def run_with_samples(root: Path, steps: list[int], size: tuple[int, int] = (32, 32)) -> RunFolder:
    run = RunFolder(root, "foo")
    run.create()
    for step in steps:
        for index, colour in COLOURS.items():
            picture = Image.new("RGB", size, colour)
            save_image(
                picture, run.samples / run.sample_name(step, step, index, "png"), {"prompt": f"p{index}"}
            )
    return run


def colours_of(path: Path) -> set[tuple[int, int, int]]:
    with Image.open(path) as image:
        counted = image.convert("RGB").getcolors(1 << 24)
    assert counted is not None
    return {colour for count, colour in counted if count > 500}  # type: ignore[misc]


def test_a_sheet_shows_every_preview_enlarged(tmp_path: Path) -> None:
    run = run_with_samples(tmp_path, [0, 250])
    path = contact_sheet(run, run.contact_sheet_path, ["a red thing", "a blue thing " * 40])
    with Image.open(path) as opened:
        sheet = opened.convert("RGB")
    pixels = list(sheet.get_flattened_data())
    for colour in COLOURS.values():  # two steps of 128 x 128 pixels each, less the hairline
        assert pixels.count(colour) == 2 * 126 * 126
    assert sheet.width < 600 and sheet.height < 450


def test_gaps_and_broken_pictures_stay_gaps(tmp_path: Path) -> None:
    run = run_with_samples(tmp_path, [0, 250, 500])
    (run.samples / run.sample_name(250, 250, 0, "png")).unlink()
    (run.samples / run.sample_name(500, 500, 0, "png")).write_bytes(b"\x89PNG half")
    (run.samples / run.sample_name(500, 500, 1, "png")).write_bytes(b"")
    path = contact_sheet(run, tmp_path / "sheet.png")
    with Image.open(path) as opened:
        pixels = list(opened.convert("RGB").get_flattened_data())
    assert pixels.count(COLOURS[0]) == 126 * 126
    assert pixels.count(COLOURS[1]) == 2 * 126 * 126
    assert pixels.count((243, 244, 246)) > 3 * 120 * 120


def test_large_pictures_are_reduced_and_keep_their_shape(tmp_path: Path) -> None:
    run = run_with_samples(tmp_path, [1], (512, 1024))
    path = contact_sheet(run, tmp_path / "sheet.png")
    with Image.open(path) as opened:
        pixels = list(opened.convert("RGB").get_flattened_data())
    assert pixels.count(COLOURS[0]) == 126 * 254


def test_prompts_come_from_the_recipes_if_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_samples(tmp_path, [0, 1])
    labels: list[str] = []
    real = report._write_wrapped
    monkeypatch.setattr(report, "_write_wrapped", lambda *given: (labels.append(given[2]), real(*given)))
    contact_sheet(run, tmp_path / "a.png")
    contact_sheet(run, tmp_path / "b.png", ["own"])
    assert labels == ["p0", "p1", "own", "p1"]
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_without_previews_it_says_so(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "foo")
    run.create()
    with pytest.raises(RunError, match="no previews"):
        contact_sheet(run, run.contact_sheet_path)
    assert not run.contact_sheet_path.exists()


@pytest.mark.parametrize("count", [1, 2, 12, 13, 21, 24, 101, 997])
def test_thinning_keeps_the_ends_and_is_even(count: int) -> None:
    steps = [250 * place for place in range(count)]
    kept = thin(steps, 12)
    assert len(kept) == min(count, 12) or 8 <= len(kept) < 12
    assert kept[0] == steps[0] and kept[-1] == steps[-1]
    assert kept == sorted(set(kept))
    gaps = [b - a for a, b in zip(kept, kept[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 250


def test_thinning_prefers_round_steps() -> None:
    assert thin(list(range(0, 1001, 50)), 12) == list(range(0, 1001, 100))
    assert thin([3, 1, 2], 1) == [3]


def test_wrapping_never_exceeds_the_width() -> None:
    lines = wrap("a bb " + "c" * 25 + " dd", 10, len)
    assert max(map(len, lines)) <= 10
    assert "".join(lines).replace(" ", "") == "abb" + "c" * 25 + "dd"
    assert wrap("", 10, len) == [""]


def test_smoothing_has_no_bias_at_the_start() -> None:
    assert smooth([3.0] * 5, 0.99) == pytest.approx([3.0] * 5)
    assert smooth([1.0, 2.0], 0.5) == pytest.approx([1.0, (0.5 * 1 * 0.5 + 0.5 * 2) / 0.75])
    assert smooth([1.0, 5.0], 0.0) == [1.0, 5.0]


def rows(losses: list[float | None], attempt: int = 1, start: int = 1) -> list[dict[str, object]]:
    return [
        {"attempt": attempt, "step": step, "loss": loss, "lr": 1e-4}
        for step, loss in enumerate(losses, start)
    ]


def drawn_axes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    seen: list[object] = []
    real = report._draw_loss
    monkeypatch.setattr(report, "_draw_loss", lambda axes, *given: (seen.append(axes), real(axes, *given)))
    return seen


def test_a_plot_shows_the_live_losses_and_marks_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = drawn_axes(monkeypatch)
    first = rows([0.5, 0.4, 0.3, 0.9, 0.9])[:5]
    second = rows([0.25, None], attempt=2, start=4)
    path = loss_plot(
        [*first[:3], *second, {"attempt": 1, "step": 9, "loss": 7.0}], tmp_path / "loss.png", "foo"
    )
    with Image.open(path) as image:
        assert image.size == (1300, 728)
    axes = seen[0]
    lines = axes.get_lines()  # type: ignore[attr-defined]
    assert list(lines[0].get_xdata()) == [1, 2, 3, 4]
    assert list(lines[0].get_ydata()) == [0.5, 0.4, 0.3, 0.25]
    assert [text.get_text() for text in axes.texts] == ["attempt 2"]  # type: ignore[attr-defined]
    assert axes.get_yscale() == "linear"  # type: ignore[attr-defined]


def test_a_wide_range_is_drawn_on_a_log_scale_and_a_spike_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = drawn_axes(monkeypatch)
    loss_plot(rows([10 * 0.9**step for step in range(100)]), tmp_path / "a.png", "a")
    spiky = [0.1] * 1000
    spiky[500] = 50.0
    loss_plot(rows(spiky), tmp_path / "b.png", "b")
    assert [axes.get_yscale() for axes in seen] == ["log", "linear"]  # type: ignore[attr-defined]
    assert seen[1].get_ylim()[1] < 0.2  # type: ignore[attr-defined]


@pytest.mark.parametrize("losses", [[0.5], [0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]])
def test_odd_losses_are_drawn(tmp_path: Path, losses: list[float | None]) -> None:
    assert loss_plot(rows(losses), tmp_path / "loss.png", "x").stat().st_size > 5000


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no loss"):
        loss_plot(rows([None]), tmp_path / "loss.png", "x")


def test_reports_and_runs_need_no_torch() -> None:
    code = (
        "import sys, toolkit.training.report, toolkit.training.progress\n"
        "from toolkit.runs import commands, images, lock, logfile, status\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3], check=True)
