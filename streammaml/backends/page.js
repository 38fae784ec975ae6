"use strict";
// Draws /api/summary once a second. No library, nothing from elsewhere.

const EVERY_MS = 1000;
const WIDTH = 960, HEIGHT = 340, LEFT = 52, RIGHT = 36, TOP = 14, BOTTOM = 34;
const NAMES = { init: "init (not adapted)", adapted: "adapted", online: "online gradient descent" };
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);
const count = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en"));
const number = (x) => (x === null || x === undefined ? "–" : x.toPrecision(3));
const nameOf = (model) => NAMES[model] || model;

function draw(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function cell(tag, text, scope) {
  const node = document.createElement(tag);
  node.textContent = text;
  if (scope) node.scope = scope;
  return node;
}

// A round step that cuts `span` into about `parts`.
function step(span, parts) {
  const raw = span / parts, power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw);
}

function scales(curve) {
  const values = Object.values(curve.losses).flat().filter((v) => v !== null);
  const last = curve.events.at(-1) || 1;
  const top = Math.max(...values, 1e-9) * 1.05;
  return {
    last, top,
    x: (e) => LEFT + (e / last) * (WIDTH - LEFT - RIGHT),
    y: (v) => HEIGHT - BOTTOM - (v / top) * (HEIGHT - TOP - BOTTOM),
  };
}

function grid({ last, top, x, y }) {
  const nodes = [];
  const dy = step(top, 5), dx = step(last, 6);
  for (let i = 0; i * dy <= top; i++) {
    const at = y(i * dy);
    nodes.push(draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at }));
    nodes.push(draw("text", { x: LEFT - 8, y: at + 4, "text-anchor": "end" }, +(i * dy).toPrecision(3)));
  }
  for (let i = 0; i * dx <= last; i++)
    nodes.push(draw("text", { x: x(i * dx), y: HEIGHT - 14, "text-anchor": "middle" }, count(i * dx)));
  nodes.push(draw("text", { x: WIDTH - RIGHT, y: HEIGHT - 1, "text-anchor": "end" }, "events"));
  return nodes;
}

function path(events, losses, { x, y }) {
  let text = "", pen = "M";
  losses.forEach((value, i) => {
    if (value === null) { pen = "M"; return; }
    text += `${pen}${x(events[i]).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  });
  return text;
}

function chart(curve) {
  if (!curve.events.length) return;
  const scale = scales(curve);
  $("grid").replaceChildren(...grid(scale));
  $("drifts").replaceChildren(...curve.events.filter((_, i) => curve.drifts[i]).map((e) =>
    draw("line", { class: "drift", x1: scale.x(e), x2: scale.x(e), y1: TOP, y2: TOP + 12 })));
  $("curves").replaceChildren(...Object.entries(curve.losses).map(([model, losses]) =>
    draw("path", { class: model, d: path(curve.events, losses, scale) })));
  $("caption").textContent = "Loss before the label is learnt; lower is better. " +
    `Mean of the ${count(curve.window)} events up to each point. Marks on top: drift detected.`;
}

function legend(models) {
  if ($("legend").children.length === models.length) return;
  $("legend").replaceChildren(...models.map((model) => {
    const item = document.createElement("li"), sample = draw("svg", { viewBox: "0 0 32 11" });
    sample.append(draw("path", { class: model, d: "M0 6L32 6" }));
    item.append(sample, nameOf(model));
    return item;
  }));
}

function table(models) {
  $("models").replaceChildren(...Object.entries(models).map(([model, row]) => {
    const line = document.createElement("tr");
    line.append(cell("th", nameOf(model), "row"), cell("td", number(row.latest)),
      cell("td", number(row.mean)), cell("td", count(row.losses)));
    return line;
  }));
}

function status(text, kind) {
  if ($("state").textContent !== text) $("state").textContent = text; // read out on a change only
  $("dot").className = kind;
}

function show(summary) {
  status(summary.state, summary.state === "ready" ? "ready" : "");
  for (const id of ["events", "contexts", "adaptations", "accepted", "rejected", "lag"])
    $(id).textContent = count(summary[id]);
  $("drifts-count").textContent = count(summary.drifts);
  table(summary.models);
  legend(Object.keys(summary.models));
  chart(summary.curve);
  const words = Object.entries(summary.models).map(([m, row]) => `${nameOf(m)} ${number(row.latest)}`);
  if (words.length)
    $("chart-text").textContent = `After ${count(summary.events)} events: ${words.join(", ")}; ` +
      `${count(summary.drifts)} drifts detected. The table below has the numbers.`;
}

async function poll() {
  try {
    const answer = await fetch("api/summary", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(answer.status);
    show(await answer.json());
  } catch {
    status("no answer from the worker; the numbers are the last ones it gave", "away");
  }
  setTimeout(poll, EVERY_MS);
}

poll();
