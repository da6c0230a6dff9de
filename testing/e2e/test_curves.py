"""The graph of a run with validation: its change has a band, in percent, and the best save its mark."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
VENDOR = "/static/vendor/uplot-1.6.32/uPlot.iife.min.js"
DRAW = """async () => {
  const box = document.createElement("div");
  box.style.width = "600px";
  box.dataset.best = "20";
  document.getElementById("content").append(box);
  const at = (values) => values.map((value, index) => [10 * (index + 1), 1000 + index, value]);
  const series = {
    loss: [[1, 1000, 0.5], [10, 1001, 0.4], [20, 1002, 0.3], [30, 1003, 0.2]],
    val_change: at([-0.1, -0.2, -0.15]),
    val_change_low: at([-0.2, -0.3, null]), val_change_high: at([0, -0.1, null]),
  };
  const view = { smoothing: 0.9, across: "step", log: true, clip: false, raw: false, off: [] };
  const curves = new Curves(box, view), run = { name: "x", data: { keys: Object.keys(series), series } };
  curves.draw([run]);
  for (const _ of [1, 2]) await new Promise(requestAnimationFrame);  // uPlot draws when it is free
  const lines = curves.plot.series.slice(1).map((each, index) => ({
    label: each.label, width: each.width, values: [...curves.plot.data[index + 1]],
  }));
  return {
    keys: curves.keys([run]), lines, bands: curves.plot.bands.map((band) => band.series),
    shown: [...box.querySelectorAll(".u-legend .u-series")].filter((row) => row.offsetParent)
      .map((row) => row.querySelector(".u-label").textContent.trim()),
    pixel: (() => {
      const { ctx, bbox } = curves.plot, x = Math.round(curves.plot.valToPos(20, "x", true));
      const data = ctx.getImageData(x - 1, bbox.top, 3, bbox.height).data;
      let green = 0;
      for (let i = 0; i < data.length; i += 4) {
        const [r, g, b, a] = data.slice(i, i + 4);
        if (a && g > r + 40 && g > b + 20) green += 1;
      }
      return green > 20;
    })(),
  };
}"""


def test_a_change_has_its_band_and_the_best_save_its_mark(page: Any) -> None:
    page.goto("/jobs")
    for path in (VENDOR, "/static/bell.js", "/static/curves.js"):
        page.add_script_tag(url=path)
    page.add_style_tag(url="/static/vendor/uplot-1.6.32/uPlot.min.css")
    found = page.evaluate(DRAW)
    assert found["keys"] == ["loss", "val_change"]  # what bounds a band is no curve of its own
    assert [line["label"] for line in found["lines"]][::3] == ["loss", "val_change, %"]
    assert found["bands"] == [[2, 3]]
    high, low, change = (line["values"] for line in found["lines"][1:])
    assert change == [None, -10, -20, -15]  # in percent, not smoothed, on a scale that may fall below 0
    assert (high, low) == ([None, 0, -10, None], [None, -20, -30, None])
    assert found["shown"] == ["step", "loss", "val_change, %"]
    assert found["pixel"], "no line where the best save is"
