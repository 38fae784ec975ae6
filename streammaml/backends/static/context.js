// All about one context, the one that the address names: #context=NAME.

import { Chart } from "./chart.js";
import { chosen, fragmentOf } from "./contexts.js";
import { DASH, $, count, duration, facts, loss, make, number, renew, say, table, version } from "./parts.js";

const EVERY_MS = 1500;
const MOST_POINTS = 400;
const FEATURES = 5;
const EXAMPLES = 8;

// In a pattern every sign of a name stands for itself.
const literal = (name) => name.replace(/[*?[]/g, "[$&]");

async function ask(name) {
  const query = new URLSearchParams({ filter: literal(name), limit: 1 });
  const named = new URLSearchParams({ name }); // in a path, ".." would be none
  const signal = AbortSignal.timeout(8000);
  const [one, list] = await Promise.all([
    fetch(`api/context?${named}`, { signal }),
    fetch(`api/contexts?${query}`, { signal }),
  ]);
  if (one.status === 404) return { missing: true };
  if (!one.ok) throw new Error((await one.json()).error);
  const line = list.ok ? (await list.json()).contexts[0] : undefined;
  return { ...(await one.json()), line: line ?? {} };
}

function factsOf({ state, line, partition, offset, tier }) {
  const seen = state.last_seen_s && Date.now() / 1000 - state.last_seen_s;
  const pairs = [
    ["Loss since its drift", loss(line.loss)],
    ["Level", line.level ?? DASH],
    ["Labels", count(state.labels)],
    ["Labels since its drift", count(state.labels_in_segment)],
    ["Support examples", count(state.support.length)],
    ["Initialization", version(state.initialization)],
    ["Weights", state.adapted ? "adapted" : "as initialized"],
    ["Distance from init", number(state.weights?.distance)],
    ["Detector", state.detector.name],
    ["Its statistic", number(line.statistic)],
    ["Partition, offset", `${partition}, ${count(offset)}`],
    ["Kept", tier === "memory" ? "in memory" : "on disk"],
  ];
  if (seen && seen > 0 && seen < 1e8) pairs.push(["Last event", `${duration(seen)} ago`]);
  if ("typical_error" in state) pairs.push(["Typical error", `${number(state.typical_error)} sd`]);
  return pairs;
}

const shown = (value) => (typeof value === "number" ? number(value) : String(value ?? "missing"));

function support(examples) {
  if (!examples.length) return make("p", { className: "quiet", textContent: "No labelled examples yet." });
  const names = Object.keys(examples[0].features).slice(0, FEATURES);
  const rows = examples.slice(-EXAMPLES).reverse().map((example) =>
    [String(example.label), ...names.map((name) => shown(example.features[name]))]);
  const left = Object.keys(examples[0].features).length - names.length;
  const caption = `Its newest support examples, ${rows.length} of ${examples.length}` +
    (left ? `; ${left} more features each` : "");
  return table(caption, ["Label", ...names], rows);
}

export function followContext(ready) {
  const chart = new Chart($("context"), {
    keys: ["adapted"], unit: "labels", caption: "Mean loss since the last drift, by labels",
    marks: [["drift", "drift or new segment"]],
  });
  let timer = 0, name = null, seen = null;

  function anew() {
    seen = { x: [], y: [], marks: [], segment: 0 };
    chart.reset("Waiting for its next labels.");
  }

  // One more point of the curve, while somebody looks. Fewer labels: the context itself began anew.
  function extend({ state, line }) {
    const value = line.loss ?? null;
    if (state.labels < seen.x.at(-1)) anew();
    if (state.labels !== seen.x.at(-1)) {
      if (seen.segment > state.labels_in_segment) seen.marks.push({ at: state.labels, kind: "drift" });
      seen.x.push(state.labels);
      seen.y.push(value);
      if (seen.x.length > MOST_POINTS) { seen.x.shift(); seen.y.shift(); }
      seen.marks = seen.marks.filter(({ at }) => at >= seen.x[0]);
    }
    seen.segment = state.labels_in_segment;
    if (seen.x.length > 1)
      chart.update({ x: seen.x, ys: { adapted: seen.y }, marks: seen.marks,
        text: `Loss of ${name} since its last drift: ${loss(value)} after ${count(state.labels)} labels.` });
  }

  async function refresh() {
    clearTimeout(timer);
    const mine = name;
    if (mine === null) return;
    if (!document.hidden && ready()) {
      try {
        const found = await ask(mine);
        if (mine !== name) return;
        if (found.missing) {
          say($("context-sub"), "This worker has no context of this name.");
        } else {
          say($("context-sub"), found.also_in?.length ? `Also in partition ${found.also_in.join(", ")}.` : "");
          facts($("context-facts"), factsOf(found));
          renew($("support"), support(found.state.support));
          extend(found);
        }
      } catch {
        if (mine !== name) return;
        say($("context-sub"), "The worker does not answer now; these are the last numbers.");
      }
    }
    timer = setTimeout(refresh, EVERY_MS);
  }

  function choose(byHand) {
    name = chosen();
    $("context").hidden = name === null;
    $("context-none").hidden = name !== null;
    if (name === null) return;
    anew();
    say($("context-name"), name);
    say($("context-sub"), "asking the worker");
    facts($("context-facts"), []);
    $("support").replaceChildren();
    if (byHand) $("context-name").focus();
    refresh();
  }

  function close() {
    const link = document.querySelector(`#contexts-body a[href="${CSS.escape(fragmentOf(name ?? ""))}"]`);
    history.pushState(null, "", location.pathname);
    dispatchEvent(new HashChangeEvent("hashchange"));
    (link ?? $("filter")).focus();
  }

  $("context-close").addEventListener("click", close);
  $("context").addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  addEventListener("hashchange", () => choose(true));
  choose(false);
}
