// Curves of one or more runs with uPlot: smoothing, log scale, clipped outliers, zoom, across steps or time.
"use strict";

// The debiased moving average of TensorBoard: y = m / (1 - w^n) with m = w m + (1 - w) x. Gaps stay gaps.
function smoothed(values, weight) {
  let mean = 0, count = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    mean = mean * weight + (1 - weight) * value;
    count += 1;
    return mean / (1 - weight ** count);
  });
}

// [low, high] of the values without the outermost 2 % at each end.
function withoutOutliers(values) {
  const sorted = values.filter((value) => value !== null && value !== undefined).sort((a, b) => a - b);
  if (!sorted.length) return [null, null];
  const at = (part) => sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))];
  return [at(0.02), at(0.98)];
}

// Okabe and Ito's colours, which people who see colours differently can tell apart.
const INKS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a00", "#7a5195"];

function inks() {
  const theme = document.documentElement.dataset.theme;
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  return dark ? ["#56b4e9", "#e69f00", "#2bbf8d", "#e58fbe", "#ff7f3f", "#6fa8dc", "#c9c94a", "#b18ae0"] : INKS;
}

// Changes against the start, each with its 95 % band: key -> the series that bound it. In percent, never smoothed.
const BANDS = { val_change: ["val_change_low", "val_change_high"], probe_change: ["probe_change_low", "probe_change_high"], gap: ["gap_low", "gap_high"] };
const BOUNDS = new Set(Object.values(BANDS).flat());

class Curves {
  // runs: [{name, data}], data as /api/jobs/{id}/metrics answers: series of [step, time, value]; view: {smoothing, across, log, clip, raw, off: [keys]}
  constructor(box, view) {
    this.box = box;
    this.view = view;
    this.plot = null;
    this.range = null;
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(box);
    document.addEventListener("theme", () => this.draw(this.runs));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw(this.runs));
  }

  size() { return { width: Math.max(200, this.box.clientWidth), height: Math.max(240, Math.min(480, innerHeight - 200)) }; }

  keys(runs) {
    const all = new Set(["loss", ...runs.flatMap((run) => run.data.keys)]);
    return [...all].filter((key) => !BOUNDS.has(key) && runs.some((run) => run.data.series[key]));
  }

  // One curve for each key of each run, put onto one common axis.
  draw(runs) {
    this.runs = runs;
    const { across, smoothing, log, clip, raw } = this.view;
    const lines = [], shown = this.keys(runs).filter((key) => !this.view.off.includes(key));
    runs.forEach((run, index) => {
      const start = Math.min(...Object.values(run.data.series).filter((points) => points.length).map((points) => points[0][1]));
      for (const key of shown) {
        const points = run.data.series[key];
        if (!points?.length) continue;
        const xs = points.map(([step, time]) => (across === "time" ? (time - start) / 60 : step));
        const values = points.map((point) => point[2]);
        const ink = inks()[(runs.length > 1 ? index : shown.indexOf(key)) % INKS.length];
        const label = runs.length > 1 ? `${run.name}: ${key}` : key;
        if (BANDS[key]) {
          const percent = (name) => (run.data.series[name] ?? []).map((point) => (point[2] === null ? null : 100 * point[2]));
          const [low, high] = BANDS[key].map(percent);
          if (low.length === xs.length && high.length === xs.length) {
            for (const bound of [high, low]) lines.push({ key, label: `${label}, bound`, ink: "transparent", xs, values: bound, width: 0, percent: true, bound: true });
          }
          lines.push({ key, label: `${label}, %`, ink, xs, values: percent(key), width: 2, percent: true });
          continue;
        }
        if (smoothing > 0) lines.push({ key, label, ink, xs, values: smoothed(values, smoothing), width: 2 });
        if (raw || smoothing === 0) {
          lines.push({ key, label: smoothing > 0 ? `${label} (raw)` : label, ink: smoothing > 0 ? `${ink}66` : ink, xs, values, width: 1 });
        }
      }
    });
    const grid = [...new Set(lines.flatMap((line) => line.xs))].sort((a, b) => a - b);
    const place = new Map(grid.map((x, index) => [x, index]));
    const columns = lines.map((line) => {
      const column = new Array(grid.length).fill(undefined);
      line.xs.forEach((x, index) => {
        const value = line.values[index];
        column[place.get(x)] = value === null || (log && !line.percent && value <= 0) ? null : value;
      });
      return column;
    });
    this.build(lines, [grid, ...columns], { log, clip, across });
  }

  build(lines, data, { log, clip, across }) {
    const keys = [...new Set(lines.map((line) => line.key))];
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--soft").trim(), line = style.getPropertyValue("--line").trim();
    const number = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString());
    const limits = (key) => (plot, low, high) => {
      let [from, to] = [low, high];
      if (clip) [from, to] = withoutOutliers(lines.flatMap((each, index) => (each.key === key ? data[index + 1] : [])));
      if (from === null || from === undefined) return [log ? 0.1 : 0, 1];
      if (log && !straight.has(key)) return uPlot.rangeLog(from, to === from ? from * 10 : to, 10, false);
      const room = (to - from || Math.abs(to) || 1) * 0.05;
      return [from - room, to + room];
    };
    const straight = new Set(lines.filter((each) => each.percent).map((each) => each.key));  // they fall below zero
    const scales = { x: { time: false, range: (plot, low, high) => this.range ?? [low, high] } };
    for (const key of keys) scales[key] = { distr: log && !straight.has(key) ? 3 : 1, range: limits(key) };
    const bands = lines.flatMap((each, index) => (each.bound && lines[index + 1]?.bound ? [{ series: [index + 1, index + 2], fill: `${lines[index + 2].ink}2e` }] : []));
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const options = {
      ...this.size(), scales, bands,
      cursor: { drag: { x: true, y: false } },
      legend: { live: true },
      series: [
        { label: across === "time" ? "minutes" : "step", value: (plot, value) => number(value) },
        ...lines.map((each) => ({
          label: each.label, class: each.bound ? "bound" : undefined, scale: each.key, stroke: each.ink, width: each.width, spanGaps: true,
          points: { show: !each.bound && (data[0].length < 3 || each.percent) }, value: (plot, value) => number(value),
        })),
      ],
      axes: [
        { ...axis, label: across === "time" ? "minutes since the start" : "step", size: 44, labelSize: 22 },
        ...keys.slice(0, 2).map((key, index) => ({
          ...axis, scale: key, label: straight.has(key) ? `${key}, %` : key, side: index ? 1 : 3, size: 64, labelSize: 22,
          grid: index ? { show: false } : axis.grid, values: (plot, values) => values.map((value) => (value === null ? "" : number(value))),
        })),
      ],
      hooks: {
        setSelect: [(plot) => {
          if (plot.select.width < 4) return;
          this.range = [plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")];
        }],
        draw: [(plot) => this.mark(plot, across)],
        ready: [(plot) => plot.over.addEventListener("dblclick", () => this.whole())],
      },
    };
    this.plot?.destroy();
    this.plot = new uPlot(options, data, this.box);
  }

  // A dashed line at the step of the best save.
  mark(plot, across) {
    const best = Number(this.box.dataset.best || NaN);
    if (across !== "step" || !(best >= plot.scales.x.min && best <= plot.scales.x.max)) return;
    const { ctx } = plot, x = Math.round(plot.valToPos(best, "x", true));
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--good").trim();
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(x, plot.bbox.top);
    ctx.lineTo(x, plot.bbox.top + plot.bbox.height);
    ctx.stroke();
    ctx.font = `${12 * devicePixelRatio}px sans-serif`;
    const right = x > plot.bbox.left + plot.bbox.width * 0.8;
    ctx.textAlign = right ? "right" : "left";
    ctx.fillText("best save", x + (right ? -6 : 6) * devicePixelRatio, plot.bbox.top + 14 * devicePixelRatio);
    ctx.restore();
  }

  whole() { this.range = null; this.draw(this.runs); }

  // Keyboard: zoom by a factor around the middle, or move by a part of what is shown.
  zoom(factor, shift) {
    const { min, max } = this.plot.scales.x;
    const [all] = this.plot.data, width = Math.min((max - min) * factor, all.at(-1) - all[0]);
    const middle = (min + max) / 2 + shift * (max - min);
    const from = Math.max(all[0], Math.min(middle - width / 2, all.at(-1) - width));
    this.range = [from, from + width];
    this.plot.setScale("x", { min: from, max: from + width });
  }
}

// Ties the controls of _chart_controls.html to a chart; `redraw` is called when one of them changed.
function chartControls(curves, view, key, redraw) {
  const by = (id) => document.getElementById(id);
  for (const id of ["chart-controls", "chart-series", "chart-hint"]) by(id).hidden = false;
  by("smoothing").value = Math.round(view.smoothing * 100);
  by("across").value = view.across;
  by("log-scale").checked = view.log;
  by("clip").checked = view.clip;
  by("raw").checked = view.raw;
  const changed = () => {
    if (view.across !== by("across").value) curves.range = null;
    Object.assign(view, {
      smoothing: by("smoothing").value / 100, across: by("across").value, log: by("log-scale").checked,
      clip: by("clip").checked, raw: by("raw").checked,
    });
    by("smoothing-shown").textContent = view.smoothing.toFixed(2);
    remember(key, view);
    redraw();
  };
  by("chart-controls").addEventListener("input", changed);
  by("whole").addEventListener("click", () => curves.whole());
  by("smoothing-shown").textContent = view.smoothing.toFixed(2);
  curves.box.tabIndex = 0;
  curves.box.setAttribute("role", "group");
  curves.box.setAttribute("aria-label", "Graph; plus and minus zoom, arrow keys move");
  curves.box.addEventListener("keydown", (event) => {
    const moves = { "+": [0.5, 0], "=": [0.5, 0], "-": [2, 0], ArrowLeft: [1, -0.25], ArrowRight: [1, 0.25] };
    if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    curves.zoom(...moves[event.key]);
  });
}

// A box to tick for each series; those in view.off are not drawn.
function seriesBoxes(keys, view, storageKey, redraw) {
  const list = document.getElementById("chart-series");
  for (const key of keys) {
    if ([...list.querySelectorAll("input")].some((input) => input.value === key)) continue;
    const label = document.createElement("label"), input = document.createElement("input");
    label.className = "inline";
    input.type = "checkbox";
    input.value = key;
    input.checked = !view.off.includes(key);
    input.addEventListener("change", () => {
      view.off = [...list.querySelectorAll("input:not(:checked)")].map((each) => each.value);
      remember(storageKey, view);
      redraw();
    });
    label.append(input, ` ${key}`);
    list.append(label);
  }
}

// Brings the data of a run up to date: only what is new, or all of it where earlier points no longer hold.
// Answers whether anything changed.
async function readOn(run, source) {
  const last = Math.max(-1, ...Object.values(run.data?.series ?? {}).map((points) => points.at(-1)?.[0] ?? -1));
  const more = await getJson(withQuery(source, { since_step: last }));
  if (run.data && more.generation !== run.data.generation) {
    run.data = await getJson(source);
    return true;
  }
  const before = run.data;
  run.data = before ? { ...more, series: { ...before.series } } : more;
  if (!before) return true;
  let changed = false;
  for (const [key, points] of Object.entries(more.series)) {
    run.data.series[key] = [...(before.series[key] ?? []), ...points];
    changed ||= points.length > 0;
  }
  return changed;
}
