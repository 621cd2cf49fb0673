"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888"];
const symbols = ["circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "x"];
const colour = (i) => colours[i % colours.length];
const symbol = (i) => symbols[i % symbols.length];
const dash = (i) => ["solid", "dash", "dot", "dashdot"][Math.floor(i / colours.length) % 4];
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = () => window.innerWidth < 640;
const drawers = [];

/* ---- tables ---- */

function fill(table, header, rows) {
  table.replaceChildren();
  const head = table.createTHead().insertRow();
  for (const text of header) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = text;
    head.append(cell);
  }
  const body = table.createTBody();
  for (const [first, ...rest] of rows) {
    const line = body.insertRow();
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = first;
    line.append(name);
    for (const text of rest) line.insertCell().textContent = text;
  }
}

const shown = (value, digits = 4) => (value === null || value === undefined ? "" : Number(value.toPrecision(digits)).toString());
const percent = (value) => (value === null || value === undefined ? "" : (100 * value).toFixed(1));

/* ---- plots ---- */

function layout(extra) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const line = style.getPropertyValue("--line").trim();
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: narrow() ? 11 : 13 },
    margin: { l: 55, r: 15, t: 10, b: 40 }, legend: { orientation: "h", yanchor: "bottom", y: 1.02, x: 0 },
    hovermode: "closest",
  };
  const made = { ...base, ...extra };
  made.xaxis = { ...axis, ...(extra.xaxis || {}) };
  made.yaxis = { ...axis, ...(extra.yaxis || {}) };
  return made;
}

function draw(element, traces, extra) {
  return Plotly.react(element, traces, layout(extra), { responsive: true, displaylogo: false, displayModeBar: false });
}

/* ---- what a threshold would remove ---- */

let threshold = 0;

const group = () => data.groups[Number(byId("variant").value) || 0];
const kind = () => byId("kind").value;

function highest() {
  return Math.max(...group().tasks.flatMap((task) => Object.values(task.norms[kind()])), 1e-12);
}

function left(task) {
  const norms = task.norms[kind()];
  const kept = new Set(Object.keys(norms).filter((layer) => (norms[layer] ?? Infinity) >= threshold)); // null: a change of a zero weight
  const parameters = task.tensors
    .filter((tensor) => tensor.layers.some((layer) => kept.has(layer)))
    .reduce((sum, tensor) => sum + tensor.parameters, 0);
  return { kept: kept.size, all: Object.keys(norms).length, parameters };
}

function measured(task) {
  const norms = task.norms[kind()];
  const removed = Object.values(norms).filter((norm) => (norm ?? Infinity) < threshold).length;
  return data.sweep.find((p) => p.sha256 === task.sha256 && p.kind === kind() && p.removed === removed);
}

function updateThreshold() {
  const tasks = group().tasks;
  const rows = tasks.map((task) => {
    const now = left(task);
    const point = measured(task);
    return [
      task.name, `${now.kept} of ${now.all}`, now.parameters.toLocaleString("en"),
      (now.parameters + task.own).toLocaleString("en"),
      point ? percent(point.accuracy) : "not measured", point ? percent(point.reestimated) : "",
    ];
  });
  fill(byId("left"), ["task", "layers with a delta", "parameters in deltas", "with norms and head", "accuracy, percent",
    "statistics re-estimated"], rows);
  const kept = tasks.map(left);
  const sum = (key) => kept.reduce((total, one) => total + one[key], 0);
  byId("live").textContent =
    `Threshold ${shown(threshold)}: ${sum("kept")} of ${sum("all")} deltas stay, ${sum("parameters").toLocaleString("en")} parameters.`;
  if (byId("norm-plot").data && group().tasks.length <= MANY) Plotly.relayout(byId("norm-plot"), { shapes: [line()] });
}

const line = () => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: threshold, y1: threshold, line: { color: "#D55E00", width: 2, dash: "dash" } });

const MANY = 20; // lines that one can tell apart

const layerAxis = (layers) => ({
  title: { text: "layer, in network order" }, type: "category", tickangle: -90, dtick: narrow() ? Math.ceil(layers.length / 12) : 1,
  tickfont: { size: layers.length > 30 ? 9 : 11 },
});

function drawNormMap(layers) {
  const tasks = group().tasks;
  draw(byId("norm-plot"), [{
    type: "heatmap", x: layers, y: tasks.map((task) => task.name), colorscale: "Viridis", zmin: 0,
    z: tasks.map((task) => layers.map((layer) => task.norms[kind()][layer] ?? null)),
    hovertemplate: "%{y}, %{x}: %{z:.4g}<extra></extra>", colorbar: { title: { text: byId("kind").selectedOptions[0].textContent, side: "right" } },
  }], {
    shapes: [],
    xaxis: layerAxis(layers),
    yaxis: { type: "category", autorange: "reversed", dtick: 1, tickfont: { size: 9 } },
  });
}

function drawNorms() {
  const layers = group().layers;
  const many = group().tasks.length > MANY;
  byId("norm-plot").style.height = many ? `${17 * group().tasks.length + 220}px` : "";
  if (many) drawNormMap(layers);
  else drawNormLines(layers);
  fill(byId("norm-table"), ["layer", ...group().tasks.map((task) => task.name)],
    layers.map((layer) => [layer, ...group().tasks.map((task) => shown(task.norms[kind()][layer]))]));
}

function drawNormLines(layers) {
  const traces = group().tasks.map((task, i) => ({
    x: layers, y: layers.map((layer) => task.norms[kind()][layer] ?? null), name: task.name, mode: "lines+markers",
    line: { color: colour(i), width: 1.6, dash: dash(i) }, marker: { symbol: symbol(i), size: 6 },
  }));
  draw(byId("norm-plot"), traces, {
    xaxis: layerAxis(layers),
    yaxis: { title: { text: byId("kind").selectedOptions[0].textContent }, rangemode: "tozero" }, shapes: [line()],
  });
}

function startNorms() {
  if (!data.groups.length) return;
  byId("norms").hidden = false;
  data.groups.forEach((one, i) => byId("variant").append(new Option(one.variant || (data.groups.length > 1 ? "without a name" : "the only one"), i)));
  const slider = byId("slider");
  const exact = byId("exact");
  const top = () => 1.02 * highest();
  const say = () => slider.setAttribute("aria-valuetext", shown(threshold));
  slider.addEventListener("input", () => {
    threshold = Number(((Number(slider.value) / 1000) * top()).toPrecision(6));
    exact.value = threshold;
    say();
    updateThreshold();
  });
  exact.addEventListener("input", () => {
    const value = Number(exact.value);
    if (!Number.isFinite(value) || value < 0) return;
    threshold = value;
    slider.value = Math.round((1000 * threshold) / top());
    say();
    updateThreshold();
  });
  const restart = () => {
    threshold = 0;
    slider.value = 0;
    exact.value = 0;
    say();
    drawNorms();
    updateThreshold();
  };
  byId("variant").addEventListener("change", restart);
  byId("kind").addEventListener("change", restart);
  restart();
  drawers.push(drawNorms);
}

/* ---- sweep, ranks, plans, likeness ---- */

function lines(points, i, name, key, extra) {
  return {
    x: points.map((p) => p.threshold), y: points.map((p) => (p[key] === null ? null : 100 * p[key])),
    text: points.map((p) => `(${p.removed})`), name, mode: narrow() ? "lines+markers" : "lines+markers+text",
    textposition: "top center", textfont: { size: 9 }, marker: { symbol: symbol(i), size: 6 },
    hovertemplate: "%{y:.1f} % at %{x:.3g}, %{text} layers removed<extra>%{fullData.name}</extra>", ...extra,
    line: { color: colour(i), width: 1.6, ...(extra.line || {}) },
  };
}

function startSweep() {
  if (!data.sweep.length) return;
  byId("sweep").hidden = false;
  const several = (key) => new Set(data.sweep.map((p) => p[key])).size > 1;
  const label = (p) => [several("variant") && p.variant, p.task, several("seed") && `seed ${p.seed}`, several("kind") && p.kind]
    .filter(Boolean).join(", ");
  const names = [...new Set(data.sweep.map(label))];
  const drawSweep = () => {
    const traces = names.flatMap((name, i) => {
      const own = data.sweep.filter((p) => label(p) === name)
        .sort((a, b) => a.threshold - b.threshold);
      const made = [lines(own, i, name, "accuracy", {})];
      if (own.some((p) => p.reestimated !== null)) {
        made.push(lines(own, i, `${name}, re-estimated`, "reestimated", { line: { dash: "dash" }, mode: "lines+markers", showlegend: false }));
      }
      return made;
    });
    draw(byId("sweep-plot"), traces, {
      xaxis: { title: { text: "threshold" }, rangemode: "tozero" }, yaxis: { title: { text: "accuracy, percent" } },
    });
  };
  drawSweep();
  drawers.push(drawSweep);
  fill(byId("sweep-table"), ["task", "threshold", "layers removed", "parameters", "accuracy, percent", "re-estimated"],
    data.sweep.map((p) => [[p.variant, p.task, `seed ${p.seed}`].filter(Boolean).join(", "), shown(p.threshold), `${p.removed} of ${p.layers}`,
      p.parameters.toLocaleString("en"), percent(p.accuracy), percent(p.reestimated)]));
}

function startRanks() {
  if (!data.ranks) return;
  byId("ranks").hidden = false;
  const names = data.ranks.ranks.map((rank) => (rank === 0 ? "0 (norms only)" : String(rank)));
  const drawRanks = () => draw(byId("rank-plot"), data.ranks.tasks.map((one, i) => ({
    x: names, y: one.mean.map((v) => (v === null ? null : 100 * v)), name: one.task, mode: "lines+markers",
    error_y: { type: "data", array: one.deviation.map((v) => 100 * (v || 0)), visible: true },
    line: { color: colour(i), width: 1.6, dash: dash(i) }, marker: { symbol: symbol(i), size: 7 },
  })), { xaxis: { title: { text: "rank" }, type: "category" }, yaxis: { title: { text: "accuracy, percent" } } });
  drawRanks();
  drawers.push(drawRanks);
  fill(byId("rank-table"), ["rank", ...data.ranks.tasks.map((one) => one.task)],
    names.map((name, i) => [name, ...data.ranks.tasks.map((one) => {
      const spread = one.deviation[i] === null ? "" : ` ± ${percent(one.deviation[i])}`;
      return one.mean[i] === null ? "" : `${percent(one.mean[i])}${spread} (${one.seeds[i]})`;
    })]));
}

function startPlans() {
  if (!data.plans.length) return;
  byId("plans").hidden = false;
  for (const plan of data.plans) {
    const title = document.createElement("h3");
    title.textContent = plan.name;
    const said = document.createElement("p");
    said.textContent = plan.said.join("; ");
    const wide = document.createElement("div");
    wide.className = "wide";
    wide.tabIndex = 0;
    wide.setAttribute("role", "region");
    wide.setAttribute("aria-label", plan.name);
    const table = document.createElement("table");
    fill(table, ["layer", "decomposition", "rank"], plan.rows.map((row) => [row.layer, row.decomposition, row.rank]));
    wide.append(table);
    byId("plan-tables").append(title, said, wide);
  }
}

function startLikeness() {
  if (!data.likeness.length) return;
  byId("likeness").hidden = false;
  for (const one of data.likeness) {
    const title = document.createElement("h3");
    title.textContent = one.variant || "";
    const plot = document.createElement("div");
    plot.className = "plot";
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `Cosine between the deltas of each two tasks, ${one.variant}`);
    const details = document.createElement("details");
    const summary = document.createElement("summary");
    summary.textContent = "Cosines as a table";
    const table = document.createElement("table");
    fill(table, ["", ...one.tasks], one.tasks.map((name, i) => [name, ...one.cosines[i].map((v) => v.toFixed(3))]));
    details.append(summary, table);
    byId("likeness-plots").append(title, plot, details);
    const many = one.tasks.length > MANY;
    if (many) plot.style.height = `${17 * one.tasks.length + 160}px`;
    const names = { type: "category", ...(many ? { dtick: 1, tickfont: { size: 9 } } : {}) };
    const drawLikeness = () => draw(plot, [{
      type: "heatmap", x: one.tasks, y: one.tasks, z: one.cosines, zmin: -1, zmax: 1,
      colorscale: [[0, "#2166ac"], [0.5, "#f7f7f7"], [1, "#b2182b"]],
      ...(many ? {} : { texttemplate: "%{z:.2f}" }), hovertemplate: "%{y} – %{x}: %{z:.3f}<extra></extra>",
    }], { xaxis: names, yaxis: { ...names, autorange: "reversed" } });
    drawLikeness();
    drawers.push(drawLikeness);
  }
}

startNorms();
startSweep();
startRanks();
startPlans();
startLikeness();
const redraw = () => drawers.forEach((one) => one());
dark.addEventListener("change", redraw);
