// The curves of one run, which grow while it trains.
"use strict";
(function () {
  const waiting = document.getElementById("no-curves");
  if (!waiting) return;
  onBell([`job-${waiting.dataset.job}`], async () => {
    const page = await fetch(location.href, { credentials: "same-origin", headers: { Accept: "text/html" } });
    if ((await page.text()).includes('id="chart"')) location.reload();
  }, 3000);
})();
(function () {
  const box = document.getElementById("chart");
  if (!box || typeof uPlot === "undefined") return;
  const key = `curves-${box.dataset.job}`;
  const view = remembered(key, { smoothing: 0.8, across: "step", log: false, clip: false, raw: true, off: ["lr", "grad_norm", "seconds", "epoch", "val_seconds", "val_loss", "probe_loss", "probe_change", "gap"] });
  const curves = new Curves(box, view);
  const run = { name: box.dataset.name, data: null };
  const redraw = () => { if (run.data) curves.draw([run]); };

  async function load() {
    if (!await readOn(run, box.dataset.source)) return;
    seriesBoxes(curves.keys([run]), view, key, redraw);
    redraw();
  }

  box.hidden = false;
  document.getElementById("sketch").hidden = true;
  chartControls(curves, view, key, redraw);
  onBell([`job-${box.dataset.job}`], load, 2000)();
})();
