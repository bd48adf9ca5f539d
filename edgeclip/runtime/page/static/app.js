// The state and the server-sent events of one run in, the page out.

import { makeEditor } from "/editor.js";
import { $, brief, el, score, time, whole } from "/dom.js";
import { plot } from "/plot.js";
import { makeRegions } from "/regions.js";

const WINDOW_S = 60, SHOWN_EVENTS = 200, LINES = 8;

let state = null;             // what /api/state said, kept up to date
let stream = null;            // the EventSource
let retry = 0;
let opened = 0;               // how often the video was asked for
let clock = 0;                // performance.now() / 1000 - seconds of the run
let frozen = null;            // seconds of the run when it ended or was lost
let selected = { source: null, table: "", region: "" };
const latest = new Map();     // source -> record
const scores = new Map();     // source, table, region -> label -> [[at_s, score]]
const slots = new Map();      // label -> colour
let samples = [];
let events = [];
const dirty = new Set();
const editor = makeEditor(() => state);
let placed = false;           // whether regions are drawn over the video
const regions = makeRegions((name) => {
  selected.region = selected.region === name ? "" : name;
  $("region").value = selected.region;
  touch("labels", "timeline", "events");
});

// ---------------------------------------------------------------- small helpers

const now = () => frozen ?? performance.now() / 1000 - clock;
const where = (view) => [state.tables.length > 1 ? view.table : "", view.region].filter(Boolean).join(" · ");
const key = (source, view) => JSON.stringify([source, view.table, view.region]);
const views = (record) => record.views?.length ? record.views : [{ ...record, table: state.tables[0].name, region: state.regions[0]?.name ?? "" }];
const chosen = (view) => (!selected.table || (view.table || state.tables[0].name) === selected.table) && (!selected.region || (view.region || "") === selected.region);
const touch = (...parts) => { if (!dirty.size) requestAnimationFrame(draw); parts.forEach((part) => dirty.add(part)); };
function slotOf(label, taken) {
  if (label === "unknown") return null;
  if (!slots.has(label) || taken.has(slots.get(label))) {
    const free = [...Array(8).keys()].find((slot) => !taken.has(slot) && ![...slots.values()].includes(slot));
    slots.set(label, free ?? [...Array(8).keys()].find((slot) => !taken.has(slot)) ?? slots.size % 8);
  }
  return slots.get(label);
}

// ---------------------------------------------------------------- what comes in

async function start() {
  const said = await fetch("/api/state");
  if (!said.ok) throw new Error((await said.json()).error);
  state = await said.json();
  clock = performance.now() / 1000 - state.now_s;
  frozen = null;
  latest.clear(); scores.clear();
  samples = state.samples;
  events = state.events;
  for (const item of state.history) remember(item);
  for (const item of state.latest) latest.set(item.source, item.record);
  if (!state.sources.some((one) => one.name === selected.source)) selected.source = state.sources[0].name;
  $("model").textContent = state.model;
  $("version").textContent = `edgeclip ${state.version} · ${state.bundle}`;
  $("stop").hidden = Boolean(state.ended);
  placed = regions.show(state.regions);
  showChoices();
  editor.show();
  showVideo();
  if (state.ended) return finish(state.ended);
  listen();
}

function listen() {
  const after = events.length ? events[events.length - 1].number : 0;
  stream = new EventSource(`/api/events?after=${after}`);
  const on = (kind, use) => stream.addEventListener(kind, (message) => use(JSON.parse(message.data)));
  on("record", (item) => { latest.set(item.source, item.record); remember(item); touch("labels", "timeline"); });
  on("event", (item) => { events.push(item); if (events.length > 2 * SHOWN_EVENTS) events = events.slice(-SHOWN_EVENTS); touch("events"); });
  on("account", ({ account, sample }) => {
    state.account = account;
    if (sample) { samples.push(sample); samples = samples.filter((one) => one.at_s > sample.at_s - WINDOW_S - 5); }
    touch("account", "status");
  });
  on("sources", (ended) => { for (const one of state.sources) one.ended = ended[one.name] ?? null; touch("labels", "status"); });
  on("tables", (tables) => { state.tables = tables; editor.show(); touch("labels"); });
  on("end", finish);
  stream.onopen = () => touch("status", "labels", "timeline", "events", "account");
  stream.onerror = () => { stream.close(); lost(); };
  touch("status", "labels", "timeline", "events", "account");
}

function remember({ at_s, source, record }) {
  for (const view of views(record)) {
    const name = key(source, view);
    if (!scores.has(name)) scores.set(name, new Map());
    const lines = scores.get(name);
    for (const [label, value] of view.top) {
      if (!lines.has(label)) lines.set(label, []);
      const points = lines.get(label);
      if (!points.length || points[points.length - 1][0] < at_s) points.push([at_s, value]);
    }
    for (const [label, points] of lines) {
      while (points.length && points[0][0] < at_s - WINDOW_S - 5) points.shift();
      if (!points.length) lines.delete(label);
    }
  }
}

function lost() {
  if (state?.ended) return;
  frozen ??= now();
  stream = null;
  touch("status");
  retry = setTimeout(() => begin(), 1500);
}

function begin() {
  clearTimeout(retry);
  start().catch(() => lost());
}

function finish(ended) {
  state.ended = ended;
  frozen ??= now();
  stream?.close();
  $("stop").hidden = true;
  touch("status", "labels", "timeline", "events", "account");
}

// ---------------------------------------------------------------- what is shown

function draw() {
  const parts = new Set(dirty);
  dirty.clear();
  if (parts.has("status") || parts.has("labels")) showStatus();
  if (!state) return;
  if (parts.has("labels")) showLabels();
  if (parts.has("timeline")) showTimeline();
  if (parts.has("events")) showEvents();
  if (parts.has("account")) showAccount();
}

function showStatus() {
  const say = (kind, text, notice = "") => {
    if ($("status").dataset.state !== kind || $("status").textContent !== text) { $("status").dataset.state = kind; $("status").textContent = text; }
    $("stop").disabled = kind === "lost";
    $("notice").hidden = !notice;
    $("notice").dataset.kind = kind;
    if ($("notice").textContent !== notice) $("notice").textContent = notice;
  };
  if (state?.ended) {
    const total = state.account.total;
    const how = state.ended.complete ? (state.ended.interrupted ? "was stopped" : "ended") : "failed";
    say("ended", "Stream ended", `The stream ${how} after ${time(state.account.elapsed_s)}: ${whole(total.read)} frames read, ${whole(total.dropped)} dropped, ${whole(total.gated)} gated, ${whole(total.encoded)} encoded, ${whole(total.failed)} failed.`);
  } else if (frozen !== null || !state) say("lost", state ? "Connection lost, retrying" : "Connecting", "");
  else if (!latest.size) say("waiting", "Waiting for the first frame");
  else say("live", state.sources.some((one) => one.live) ? "Live" : "Running");
  $("elapsed").textContent = state ? time(state.ended ? state.account.elapsed_s : now()).replace(/\.\d$/, "") : "";
}

function showVideo() {
  opened += 1;
  const source = state.sources.find((one) => one.name === selected.source);
  $("video").alt = `Video of ${source.name}`;
  $("video").src = `${source.video}?n=${opened}`;
}

function choose(select, label, names, all) {
  label.hidden = names.length < 2;
  select.replaceChildren(...(all ? [el("option", all, { value: "" })] : []), ...names.map((name) => el("option", name || "whole frame", { value: name })));
}

function showChoices() {
  $("sources").hidden = state.sources.length < 2;
  $("sources").replaceChildren(...state.sources.map((source) => {
    const button = el("button", "", { type: "button" });
    button.append(el("span", source.name), el("small", "waiting"));
    button.onclick = () => { selected.source = source.name; $("still").width = 0; showVideo(); touch("labels", "timeline", "events", "account"); };
    return button;
  }));
  choose($("table"), $("table-choice"), state.tables.map((table) => table.name), "All");
  $("table").value = selected.table;
  choose($("edit-table"), $("edit-table-choice"), state.tables.map((table) => table.name), "");
  showRegions();
}

function showRegions() {
  const record = latest.get(selected.source);
  const names = record ? [...new Set(views(record).map((view) => view.region || ""))] : [];
  if (names.join("\n") === $("region").dataset.names) return;
  $("region").dataset.names = names.join("\n");
  if (!names.includes(selected.region)) selected.region = "";
  choose($("region"), $("region-choice"), names, "All");
  $("region").value = selected.region;
}

function showLabels() {
  showRegions();
  state.sources.forEach((source, position) => {
    const button = $("sources").children[position], record = latest.get(source.name);
    button.setAttribute("aria-pressed", String(source.name === selected.source));
    button.lastChild.textContent = source.ended !== null ? (source.ended ? "failed" : "ended") : record ? `${record.label} ${score(record.score)}` : state.ended ? "no frame" : "waiting";
    if (source.ended) button.title = source.ended;
  });
  const source = state.sources.find((one) => one.name === selected.source), record = latest.get(selected.source);
  $("waiting").hidden = Boolean(record);
  $("waiting").textContent = source.ended !== null ? source.ended || "This source ended" : state.ended ? "No frame came" : "Waiting for the first frame";
  regions.label(record ? views(record).filter((view) => !selected.table || view.table === selected.table || !view.table) : [], selected.region);
  if (!record) {
    $("overlay").replaceChildren();
    $("views").replaceChildren(el("p", "No labels yet.", { class: "empty" }));
    return;
  }
  const shown = views(record).filter(chosen), many = shown.length > 1;
  $("labels").classList.toggle("many", many);
  $("views").classList.toggle("views-grid", many);
  $("overlay").replaceChildren(...(placed ? [] : shown.slice(0, 6)).map((view) => {
    const item = el("li");
    if (many) item.append(el("small", where(view)));
    item.append(el("span", view.label), el("span", score(view.score), { class: "score" }));
    return item;
  }));
  showViews(shown, many);
  $("fact-frame").textContent = whole(record.frame);
  $("fact-time").textContent = record.file ?? time(record.time_s);
}

function showViews(shown, many) {
  const blocks = shown.map((view) => {
    const block = el("div", "", { class: "view" });
    if (many) { const title = el("h3"); title.append(el("span", where(view))); block.append(title); }
    if (view.label !== view.top[0]?.[0]) block.append(el("p", view.label, { class: "abstained" }));
    const bars = el("ul", "", { class: "bars" });
    for (const [label, value] of view.top.slice(0, many ? 3 : 8)) {
      const bar = el("li"), track = el("span", "", { class: "track" }), fill = el("span", "", { class: "fill" });
      fill.style.width = `${(100 * Math.min(Math.max(value, 0), 1)).toFixed(1)}%`;
      track.append(fill);
      bar.append(el("span", label, { class: "name", title: label }), el("span", score(value), { class: "score" }), track);
      bars.append(bar);
    }
    const present = el("p", "Present", { class: "present" });
    present.append(...(view.present?.length ? view.present.map((label) => el("b", label)) : [el("span", "nothing")]));
    block.append(bars, present);
    return block;
  });
  const old = $("views").querySelectorAll(".fill"), widths = [...old].map((fill) => fill.style.width);
  const fresh = blocks.flatMap((block) => [...block.querySelectorAll(".fill")]), goals = fresh.map((fill) => fill.style.width);
  if (widths.length === goals.length) fresh.forEach((fill, place) => { fill.style.width = widths[place]; });
  $("views").replaceChildren(...blocks);
  void $("views").offsetWidth;  // so that the bars move from where they were
  fresh.forEach((fill, place) => { fill.style.width = goals[place]; });
}

function showTimeline() {
  const record = latest.get(selected.source);
  const view = record && (views(record).find(chosen) ?? views(record)[0]);
  const lines = view ? [...(scores.get(key(selected.source, view)) ?? new Map())] : [];
  const sum = ([, points]) => points.reduce((all, [, value]) => all + value, 0);
  const best = lines.map((one) => [sum(one), one]).sort((a, b) => b[0] - a[0]).slice(0, LINES - 2).map(([, one]) => one);
  const taken = new Set();
  const series = best.map(([label, points]) => { const slot = slotOf(label, taken); taken.add(slot); return { label, points, slot }; });
  const names = series.map((one) => `${one.label}\t${one.slot}`).join("\n");
  if ($("legend").dataset.names !== names) {
    $("legend").dataset.names = names;
    $("legend").replaceChildren(...series.map((one) => { const item = el("li"); item.append(el("i", "", { class: `swatch c${one.slot}` }), one.label); return item; }));
  }
  const place = view ? where(view) : "";
  $("timeline-title").textContent = `Scores, last ${WINDOW_S} seconds` + (place ? ` · ${place}` : "");
  $("timeline").setAttribute("aria-label", series.length ? "Scores: " + series.map((one) => `${one.label} ${score(one.points[one.points.length - 1][1])}`).join(", ") : "No scores yet");
  plot($("timeline"), series, { now: now(), floor: 0.1 });
}

function showEvents() {
  const several = state.sources.length > 1;
  const shown = events.filter(({ event }) => (!several || event.source === selected.source) && chosen(event)).slice(-SHOWN_EVENTS).reverse();
  $("event-count").textContent = shown.length ? whole(shown.length) : "";
  $("no-events").hidden = shown.length > 0;
  $("events").hidden = !shown.length;
  $("events").tBodies[0].replaceChildren(...shown.map(({ event }) => {
    const row = el("tr"), name = el("td", event.label, { class: "label" }), place = where({ table: event.table ?? "", region: event.region ?? "" });
    if (place) name.append(" ", el("small", place));
    row.append(el("td", time(event.time_s)), el("td", event.kind === "enter" ? "Enter" : "Leave", { class: `kind-${event.kind}` }), name,
      el("td", event.kind === "leave" ? `${((event.end_s ?? event.time_s) - event.start_s).toFixed(1)} s` : "", { class: "right" }), el("td", score(event.peak), { class: "right" }));
    return row;
  }));
}

function showAccount() {
  const account = state.account, sample = samples[samples.length - 1];
  $("fact-fps").textContent = brief(state.ended ? account.fps : sample ? sample.fps : null);
  $("fact-p50").textContent = brief(account.p50_ms || null);
  $("fact-p99").textContent = brief(account.p99_ms || null);
  $("fact-dropped").textContent = whole(account.total.dropped);
  const returned = account.total.reconnects > 0;
  const columns = ["read", "dropped", "gated", "encoded", "failed", ...(returned ? ["reconnects"] : [])];
  $("reconnects").hidden = !returned;
  $("counts").classList.toggle("returned", returned);
  const named = Object.entries(account.sources), rows = named.length > 1 ? [...named, ["All sources", account.total]] : named;
  $("counts").tBodies[0].replaceChildren(...rows.map(([name, count], place) => {
    const row = el("tr", "", place === named.length ? { class: "total" } : {});
    row.append(el("td", name, { class: "where" }), ...columns.map((column) => el("td", whole(count[column]), { class: "right" })));
    return row;
  }));
  const dead = Object.entries(account.sink_failed), slow = Object.entries(account.sink_dropped).filter(([name, n]) => n && !(name in account.sink_failed));
  $("sinks").replaceChildren(...dead.map(([name, why]) => el("li", `${name} stopped: ${why}`, { class: "bad" })),
    ...slow.map(([name, n]) => el("li", `${name} was too slow for ${whole(n)} frame${n === 1 ? "" : "s"}`, { class: "warn" })),
    ...(dead.length + slow.length ? [] : [el("li", "All outputs keep up.")]));
  const line = (slot, field) => ({ slot, points: samples.map((one) => [one.at_s, one[field]]) });
  const at = now();
  plot($("latency"), [line(1, "p99_ms"), line(0, "p50_ms")], { now: at });
  plot($("rate"), [line(3, "dropped"), line(2, "fps")], { now: at });
  if (sample) {
    $("latency").setAttribute("aria-label", `Latency in the last second: p50 ${brief(sample.p50_ms)} ms, p99 ${brief(sample.p99_ms)} ms`);
    $("rate").setAttribute("aria-label", `${brief(sample.fps)} frames a second labelled, ${brief(sample.dropped)} dropped`);
  }
}

// ---------------------------------------------------------------- what the reader does

$("table").onchange = () => { selected.table = $("table").value; touch("labels", "timeline", "events"); };
$("region").onchange = () => { selected.region = $("region").value; touch("labels", "timeline", "events"); };
$("stop").onclick = () => { $("confirm").returnValue = ""; $("confirm").showModal(); };
$("confirm").onclose = () => { if ($("confirm").returnValue === "yes") fetch("/api/stop", { method: "POST" }).catch(() => touch("status")); };
$("video").onload = () => { const { naturalWidth: w, naturalHeight: h } = $("video"); if (h) $("frame").style.aspectRatio = Math.min(Math.max(w / h, 4 / 3), 2.2); align(); };
$("video").onerror = () => $("video").removeAttribute("src");  // what was kept of it shows through
function keepStill() {
  const { naturalWidth: w, naturalHeight: h } = $("video");
  if (!w) return;
  Object.assign($("still"), { width: w, height: h });
  $("still").getContext("2d").drawImage($("video"), 0, 0);
}
const align = () => regions.align($("video").naturalWidth || $("still").width, $("video").naturalHeight || $("still").height);
const redraw = () => { align(); touch("timeline", "account"); };
window.addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
setInterval(() => { if (state && frozen === null) { keepStill(); touch("status", "timeline"); } }, 1000);
begin();
