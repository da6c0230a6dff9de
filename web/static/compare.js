// The curves of several runs over each other.
"use strict";
(function () {
  const box = document.getElementById("chart"), items = [...document.querySelectorAll("#chart-runs li")];
  if (!box || typeof uPlot === "undefined") return;
  const view = remembered("curves-compare", { smoothing: 0.8, across: "step", log: false, clip: false, raw: false, off: ["lr", "grad_norm", "seconds", "epoch", "val_seconds", "val_loss", "probe_loss", "probe_change", "gap"] });
  const runs = items.map((item) => ({ name: item.dataset.name, source: item.dataset.source, id: item.dataset.id, data: null }));
  const curves = new Curves(box, view);
  const loaded = () => runs.filter((run) => run.data && Object.keys(run.data.series).length);
  const redraw = () => { if (loaded().length) curves.draw(loaded()); };

  async function load() {
    const changed = await Promise.all(runs.map((run) => readOn(run, run.source).catch(() => false)));
    if (!changed.some(Boolean)) return;
    seriesBoxes(curves.keys(loaded()), view, "curves-compare", redraw);
    redraw();
  }

  box.hidden = false;
  chartControls(curves, view, "curves-compare", redraw);
  onBell(runs.map((run) => `job-${run.id}`), load, 3000)();
})();
