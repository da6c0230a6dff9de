"""Plots as numbers: everything lies inside the frame and where it belongs."""

from __future__ import annotations

import math

from toolkit.training.svg import HEIGHT, MOST_POINTS, WIDTH, Line, bars, plot, thinned


def places(text: str) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def test_a_line_runs_over_the_whole_width_and_stays_inside():
    (curve,) = plot([Line("a", [(10, 1.0), (20, 3.0), (30, 2.0)], "first")]).curves
    found = places(curve.points)
    assert [x for x, _ in found] == [0, WIDTH / 2, WIDTH]
    assert all(0 <= y <= HEIGHT for _, y in found)
    assert found[1][1] < found[2][1] < found[0][1], "larger values stand higher"


def test_ticks_stand_where_their_numbers_are():
    chart = plot([Line("a", [(0, 0.0), (100, 50.0)], "first")], floor=0.0)
    (curve,) = chart.curves
    (_, low), (_, high) = places(curve.points)
    for y, text in chart.y_ticks:
        assert abs(y - (low + (high - low) * float(text) / 50)) < 0.1
    assert [text for _, text in chart.x_ticks] == ["0", "20", "40", "60", "80", "100"]


def test_a_band_goes_there_and_back_and_a_gap_is_left_out():
    line = Line("a", [(0, 0), (1, math.nan), (2, 2)], "x", low=[(0, -1), (2, 1)], high=[(0, 1), (2, 3)])
    (curve,) = plot([line]).curves
    assert len(places(curve.points)) == 2
    band = places(curve.band)
    assert [x for x, _ in band] == [0, WIDTH, WIDTH, 0]


def test_one_value_makes_a_plot():
    (curve,) = plot([Line("a", [(5, 0.3)], "first")]).curves
    assert len(places(curve.points)) == 1


def test_thinning_keeps_every_spike():
    points = [(float(i), math.sin(i)) for i in range(20_000)]
    points[12_345] = (12_345.0, 99.0)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS
    assert (12_345.0, 99.0) in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_bars_stand_on_the_ground_and_the_largest_fills_the_height():
    chart = bars(["a", "b"], [[1.0, None], [2.0, 4.0]], ["then", "now"])
    assert [bar.text for bar in chart.bars] == ["then: 1", "now: 2", "now: 4"]
    assert all(abs(bar.y + bar.height - HEIGHT) < 0.11 for bar in chart.bars)
    assert max(bar.height for bar in chart.bars) == HEIGHT
