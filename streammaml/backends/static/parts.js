// How numbers are written and elements are made, the same on every page.

export const DASH = "–";
export const NAMES = {
  init: "init",
  adapted: "adapted",
  baseline: "baseline",
  train: "train",
  validation: "candidate",
  incumbent: "incumbent",
};

export const $ = (id) => document.getElementById(id);
export const nameOf = (key) => NAMES[key] ?? key;
const known = (x) => x !== null && x !== undefined;

export const count = (n) => (known(n) ? n.toLocaleString("en") : DASH);
export const minus = (text) => text.replace("-", "−");
export const loss = (x) => (known(x) ? minus(x.toFixed(Math.abs(x) < 100 ? 3 : 1)) : DASH);
export const number = (x) => (known(x) ? minus(String(+x.toPrecision(4))) : DASH);
export const version = (v) => (known(v) && v >= 0 ? `v${v}` : DASH);
export const rate = (x) => (known(x) ? count(x < 10 ? x : Math.round(x)) : DASH);

export function percent(part) {
  if (!Number.isFinite(part)) return DASH;
  const sign = part > 0 ? "+" : part < 0 ? "−" : "±";
  return `${sign}${Math.abs(100 * part).toFixed(1)} %`;
}

export function duration(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds < 60) return `${Math.max(0, seconds).toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// Writes only what is new: a screen reader is told of changes alone, and nothing flickers.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  Object.assign(node, properties);
  node.append(...children);
  return node;
}

// Elements that differ in their children alone.
const alike = (a, b) => a.nodeName === b.nodeName && a instanceof Element &&
  a.attributes.length === b.attributes.length &&
  [...a.attributes].every(({ name, value }) => b.getAttribute(name) === value);

// The children of a node become like these; what is the same already stays, down to a single text.
// So a selection, a screen reader's place and the focus outlive a refresh.
export function renew(node, ...fresh) {
  const old = [...node.childNodes];
  fresh.forEach((next, i) => {
    const now = old[i];
    if (!now) node.append(next);
    else if (now.isEqualNode(next)) return;
    else if (alike(now, next)) renew(now, ...next.childNodes);
    else now.replaceWith(next);
  });
  for (const extra of old.slice(fresh.length)) extra.remove();
}

// A table with a caption, a header row, and a header in each row. Cells are texts or nodes.
export function table(caption, heads, rows) {
  const cells = heads.map((text, i) =>
    make("th", { scope: "col", className: i ? "number" : "", textContent: text }));
  const lines = rows.map(([first, ...others]) => make("tr", {},
    make("th", { scope: "row" }, first),
    ...others.map((cell) => make("td", { className: "number" }, cell))));
  return make("table", {}, make("caption", { textContent: caption }),
    make("thead", {}, make("tr", {}, ...cells)), make("tbody", {}, ...lines));
}

// Facts as a list of terms and values.
export function facts(node, pairs) {
  renew(node, ...pairs.map(([term, value]) =>
    make("div", {}, make("dt", { textContent: term }), make("dd", { textContent: value }))));
}

export function tile(name, value, below) {
  say($(`${name}-value`), value);
  say($(`${name}-below`), below);
}

// Everyday words for what the connection does; the dot's colour says the same.
export function status(text, kind) {
  say($("state"), text);
  $("dot").className = kind;
}
