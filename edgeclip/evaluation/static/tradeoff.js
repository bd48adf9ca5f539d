// Draws the trade-off's points from the JSON in #data, and looks up what to run when an axis or a limit is changed.
"use strict";
const { points, sets, colours, limits: given, beaten, answers } = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 920, HEIGHT = 430, LEFT = 58, RIGHT = 24, TOP = 18, BOTTOM = 46;
const $ = (id) => document.getElementById(id);

const AXES = {
  latency: { title: "median latency, ms", of: (p) => p.latency_ms.mean, ends: (p) => [p.latency_ms.low, p.latency_ms.high] },
  p99: { title: "99th percentile of latency, ms", of: (p) => p.p99_ms },
  memory: { title: "memory, MB", of: (p) => p.memory_mb },
  energy: { title: "energy an image, J", of: (p) => p.energy_j && p.energy_j[0],
    ends: (p) => [p.energy_j[0] - p.energy_j[1], p.energy_j[0] + p.energy_j[1]] },
};
const bundles = [...new Set(points.map((p) => p.bundle))];
const engines = [...new Set(points.map((p) => p.engine))];
const colour = (bundle) => colours[bundles.indexOf(bundle) % colours.length];

// The point that is recommended within limits, as edgeclip/evaluation/tradeoff/decide.py found it; null if none is.
function recommended(limits) {
  const { latencies_ms, memories_mb, accuracies, picks } = answers;
  const i = limits.latency === null ? latencies_ms.length - 1 : latencies_ms.filter((ms) => ms <= limits.latency).length - 1;
  const j = limits.memory === null ? memories_mb.length : memories_mb.filter((mb) => mb <= limits.memory).length - 1;
  const k = limits.accuracy === null ? accuracies.length : accuracies.findIndex((top1) => top1 >= limits.accuracy);
  if (i < 0 || j < 0 || k < 0) return null;
  const [, index] = picks[i][j].findLast(([from]) => from <= k);
  return index < 0 ? null : points[index];
}

function within(p, limits) {
  return (limits.latency === null || p.latency_ms.mean <= limits.latency)
    && (limits.accuracy === null || p.accuracies[0].top1 >= limits.accuracy)
    && (limits.memory === null || (p.memory_mb !== null && p.memory_mb <= limits.memory));
}

function number(id) {
  const value = parseFloat($(id).value);
  return Number.isFinite(value) && value > 0 ? value : null;
}

function node(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Round numbers that cut a span in four to eight.
function ticks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + 1e-9 * step; at += step) found.push(+at.toPrecision(12));
  return found;
}

function marker(engine, x, y, attributes) {
  const kind = engines.indexOf(engine);
  if (kind === 0) return node("circle", { cx: x, cy: y, r: 6, ...attributes });
  const shape = [[-6, -6, 6, -6, 6, 6, -6, 6], [0, -8, 8, 0, 0, 8, -8, 0], [0, -8, 7, 6, -7, 6]][(kind - 1) % 3];
  const points = shape.map((at, i) => at + (i % 2 ? y : x)).join(" ");
  return node("polygon", { points, ...attributes });
}

function draw() {
  const axis = AXES[$("axis").value], set = +$("set").value;
  const limits = { latency: number("max-latency"), accuracy: number("min-accuracy"), memory: number("max-memory") };
  const shown = points.filter((p) => axis.of(p) !== null && axis.of(p) !== undefined);
  const picked = recommended(limits);
  $("answer").textContent = picked ? "Within these limits: " + picked.label : "Nothing measured is within these limits.";
  const xs = shown.flatMap((p) => [axis.of(p), ...(axis.ends ? axis.ends(p) : [])]);
  const ys = shown.flatMap((p) => p.accuracies[set].ci95);
  const highX = Math.max(...xs) * 1.08, lowY = Math.max(0, Math.min(...ys) - 0.02), highY = Math.min(1, Math.max(...ys) + 0.02);
  const x = (value) => LEFT + ((WIDTH - LEFT - RIGHT) * value) / highX;
  const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (highY - value)) / (highY - lowY);
  const chart = $("chart");
  chart.replaceChildren();
  for (const at of ticks(0, highX)) {
    chart.append(node("line", { class: "axis", x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - BOTTOM }));
    chart.append(node("text", { x: x(at), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, at));
  }
  for (const at of ticks(lowY, highY)) {
    chart.append(node("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(at), y2: y(at) }));
    chart.append(node("text", { x: LEFT - 8, y: y(at) + 4, "text-anchor": "end" }, at));
  }
  chart.append(node("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, axis.title));
  chart.append(node("text", { x: LEFT, y: 11 }, "top-1, " + sets[set]));
  const bound = $("axis").value === "memory" ? limits.memory : $("axis").value === "latency" ? limits.latency : null;
  if (bound !== null && bound < highX) chart.append(node("line", { class: "limit", x1: x(bound), x2: x(bound), y1: TOP, y2: HEIGHT - BOTTOM }));
  if (set === 0 && limits.accuracy !== null && limits.accuracy > lowY && limits.accuracy < highY) {
    chart.append(node("line", { class: "limit", x1: LEFT, x2: WIDTH - RIGHT, y1: y(limits.accuracy), y2: y(limits.accuracy) }));
  }
  for (const p of shown) {
    const at = axis.of(p), accuracy = p.accuracies[set];
    const front = !beaten.includes(p.label);
    const group = node("g", { class: "point" + (within(p, limits) ? "" : " outside"), tabindex: 0, "data-label": p.label });
    group.append(node("line", { x1: x(at), x2: x(at), y1: y(accuracy.ci95[0]), y2: y(accuracy.ci95[1]), stroke: colour(p.bundle) }));
    if (axis.ends) group.append(node("line", { x1: x(Math.max(0, axis.ends(p)[0])), x2: x(axis.ends(p)[1]), y1: y(accuracy.top1), y2: y(accuracy.top1), stroke: colour(p.bundle) }));
    if (p === picked) group.append(node("circle", { class: "picked", cx: x(at), cy: y(accuracy.top1), r: 13 }));
    group.append(marker(p.engine, x(at), y(accuracy.top1), { fill: front ? colour(p.bundle) : "var(--card)", stroke: colour(p.bundle), "stroke-width": 2 }));
    if (front) group.append(node("text", { x: x(at) + 10, y: y(accuracy.top1) - 9 }, p.variant));
    group.append(node("title", {}, p.label + ": " + axis.title + " " + (+at.toPrecision(4)) + ", top-1 " + accuracy.top1.toFixed(3)));
    group.onmouseenter = group.onfocus = () => mark(p.label);
    group.onmouseleave = group.onblur = () => mark(null);
    chart.append(group);
  }
  for (const row of document.querySelectorAll("[data-row]")) row.classList.toggle("chosen", picked !== null && row.dataset.row === picked.label);
}

function mark(label) {
  for (const row of document.querySelectorAll("[data-row]")) row.classList.toggle("marked", row.dataset.row === label);
}

function key() {
  for (const name of bundles) {
    const item = document.createElement("span"), dot = document.createElement("i");
    dot.style.background = colour(name);
    item.append(dot, name);
    $("key").append(item);
  }
  for (const engine of engines) {
    const item = document.createElement("span"), shape = node("svg", { width: 18, height: 18, viewBox: "0 0 18 18" });
    shape.append(marker(engine, 9, 9, { class: "plain" }));
    item.append(shape, engine);
    $("key").append(item);
  }
}

for (const name of Object.keys(AXES)) {
  if (points.some((p) => AXES[name].of(p) !== null && AXES[name].of(p) !== undefined)) $("axis").add(new Option(AXES[name].title, name));
}
sets.forEach((name, i) => $("set").add(new Option(name, i)));
for (const [id, value] of [["max-latency", given.max_latency_ms], ["min-accuracy", given.min_accuracy], ["max-memory", given.max_memory_mb]]) {
  if (value) $(id).value = value;
}
for (const id of ["axis", "set", "max-latency", "min-accuracy", "max-memory"]) $(id).oninput = draw;
key();
draw();
