// The page of a worker, and of the demo.

import { Chart } from "./chart.js";
import { followContext } from "./context.js";
import { followContexts } from "./contexts.js";
import { follow } from "./live.js";
import { $, count, loss, nameOf, percent, rate, renew, say, status, table, tile, version } from "./parts.js";

const MODELS = ["init", "adapted", "baseline"];
const MOST_POINTS = 1200;

const curve = new Chart($("loss"), {
  keys: MODELS,
  unit: "events",
  caption: "Mean loss by events",
  marks: [["drift", "drift detected"], ["published", "initialization swapped"]],
});
const recovery = new Chart($("recovery"), {
  keys: MODELS,
  unit: "labels since the drift",
  caption: "Mean loss by labels since the drift",
});

// What earlier processes showed: the curve goes on behind it.
const past = { events: [], losses: {}, marks: [], end: 0 };

function marksOf(summary) {
  const { events, drifts } = summary.curve;
  return [
    ...events.filter((_, i) => drifts[i]).map((at) => ({ at, kind: "drift" })),
    ...summary.swaps.map((s) => ({ at: s.events, kind: "published", text: version(s.version) })),
  ];
}

function whole(summary) {
  const shift = (at) => past.end + at, { events, losses } = summary.curve;
  const blank = events.map(() => null), gone = past.events.map(() => null);
  const models = MODELS.filter((model) => model in losses || model in past.losses);
  return {
    x: [...past.events, ...events.map(shift)],
    ys: Object.fromEntries(models.map((model) =>
      [model, [...(past.losses[model] ?? gone), ...(losses[model] ?? blank)]])),
    marks: [...past.marks, ...marksOf(summary).map((mark) => ({ ...mark, at: shift(mark.at) }))],
  };
}

// Keep the curve of a process that has ended, at most so many points, and mark where it did.
function keep(summary) {
  const { x, ys, marks } = whole(summary), thin = Math.ceil(x.length / MOST_POINTS);
  const kept = (values) => values.filter((_, i) => i % thin === 0);
  past.end += summary.events;
  past.events = [...kept(x), past.end];
  past.losses = Object.fromEntries(Object.entries(ys).map(([m, v]) => [m, [...kept(v), null]]));
  past.marks = [...marks, { at: past.end, kind: "quiet", text: "restart" }].slice(-MOST_POINTS);
}

function tiles(summary) {
  const { adapted, init } = summary.models, now = adapted?.latest ?? adapted?.mean;
  const base = init?.latest ?? init?.mean;
  const gain = base ? `${percent(now / base - 1)} vs init` : "waits for labels";
  tile("now", loss(now), gain);
  tile("rate", rate(summary.events_per_s), `${count(summary.events)} in all`);
  tile("lag", count(summary.lag), "records waiting");
  tile("known", count(summary.contexts), "in memory");
  const share = summary.events ? (1000 * summary.drifts) / summary.events : 0;
  tile("drifts", count(summary.drifts), `${share.toFixed(1)} ‰ of events`);
  tile("adaptations", count(summary.accepted),
    `accepted; ${count(summary.adaptations - summary.accepted)} not`);
  const swaps = summary.swaps.length;
  tile("version", version(summary.initialization),
    swaps ? `since event ${count(summary.swaps.at(-1).events)}` : "since the start");
  tile("rejected", count(summary.rejected), "to dead-letters");
}

function models(summary) {
  const rows = Object.entries(summary.models).map(([model, row]) =>
    [nameOf(model), loss(row.latest), loss(row.mean),
      percent(row.mean / summary.models.init?.mean - 1), count(row.losses)]);
  const waits = !rows.length;
  while (waits && rows.length < MODELS.length) rows.push([" ", "", "", "", ""]); // no shift later
  $("word-baseline").hidden = !waits && !("baseline" in summary.models);
  renew($("models"), table(`${summary.loss}, each before its label is learnt`,
    ["Model", "Now", "Mean of all", "Against init", "Labels"], rows));
}

function curves(summary) {
  const words = Object.entries(summary.models).map(([m, row]) => `${nameOf(m)} ${loss(row.latest)}`);
  curve.update({
    ...whole(summary),
    text: `After ${count(summary.events)} events: ${words.join(", ")}. ` +
      `${count(summary.drifts)} drifts detected.`,
  });
  say($("window"), summary.curve.window
    ? `${summary.loss}, mean of the ${count(summary.curve.window)} events up to each point; lower is better.`
    : `${summary.loss} before each label is learnt; lower is better.`);
  after(summary.recovery);
}

function after(found) {
  const least = Math.max(3, found.drifts / 4), enough = found.counts.map((n) => n >= least);
  const length = Math.max(0, enough.lastIndexOf(true) + 1);
  const ys = Object.fromEntries(Object.entries(found.losses).map(([m, v]) => [m, v.slice(0, length)]));
  if (length < 2) return;
  const ends = Object.entries(ys).map(([m, v]) => `${nameOf(m)} from ${loss(v[0])} to ${loss(v.at(-1))}`);
  recovery.update({
    x: found.labels.slice(0, length),
    ys,
    text: `Over the latest ${found.drifts} drifts, smoothed over ${found.window} labels, in ${length} labels: ${ends.join("; ")}.`,
  });
  const drifts = found.drifts === 1 ? "drift" : `${count(found.drifts)} drifts`;
  say($("recovery-sub"), `Mean loss of the latest ${drifts} of any contexts, aligned at the alarm.`);
}

let last = null;

function show(summary, restarted) {
  if (restarted) keep(last);
  last = summary;
  document.title = `${summary.role} · streammaml`;
  say($("role"), summary.role);
  status(past.end ? `${summary.state}; restarted after ${count(past.end)} events` : summary.state,
    summary.state === "ready" ? "ready" : summary.state === "failed" ? "away" : "");
  say($("note"), summary.note);
  tiles(summary);
  models(summary);
  curves(summary);
  const starting = summary.state === "ready"
    ? "Waiting for the first labelled events." : summary.note || "The worker is starting.";
  for (const empty of document.querySelectorAll("#loss .empty")) say(empty, starting);
}

follow(show, () => status("no answer: trying again; the numbers are the last ones", "away"));
const ready = () => last?.state === "ready";
followContexts(ready);
followContext(ready);
