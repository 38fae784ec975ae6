// The page of the outer loop.

import { Chart } from "./chart.js";
import { follow } from "./live.js";
import { DASH, $, count, duration, loss, make, minus, number, percent, renew, say, status, table, tile, version } from "./parts.js";

const RUNS = 10;
const LOSSES = { train: "train_loss", validation: "validation_loss", incumbent: "incumbent_loss" };

const chart = new Chart($("meta"), {
  keys: Object.keys(LOSSES),
  unit: "runs",
  caption: "Meta-loss by runs",
  dots: true,
  marks: [["published", "published"]],
});

const ago = (seconds) => `${duration(Date.now() / 1000 - seconds)} ago`;
const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString("en-GB");
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

function tiles(summary) {
  const { results, reservoir, episodes, runs, published, training } = summary;
  const latest = runs.at(-1);
  const judged = runs.findLast((run) => run.validation_loss !== null);
  const gain = judged?.incumbent_loss
    ? `${percent(judged.validation_loss / judged.incumbent_loss - 1)} vs incumbent` : "waits for a run";
  tile("meta-now", loss(judged?.validation_loss), gain);
  const since = published.at(-1)?.at_s;
  tile("version", version(summary.initialization), since ? `since ${ago(since)}` : "as it was found");
  tile("published", count(results.published), "passed the gate");
  tile("rejected", count(results.rejected), "did not pass");
  tile("other", count(results.skipped + results.failed),
    `${count(results.skipped)} skipped, ${count(results.failed)} failed`);
  tile("reservoir", count(reservoir.episodes),
    `of ${count(reservoir.capacity)}; ${plural(reservoir.contexts, "context")}`);
  tile("episodes", count(episodes.accepted),
    `${count(episodes.rejected)} bad, ${count(episodes.duplicate)} twice`);
  const next = latest ? latest.at_s + summary.period_s - latest.seconds - Date.now() / 1000 : 0;
  tile("next", training ? "now" : latest ? duration(Math.max(0, next)) : DASH,
    training ? `step ${count(training.step)} of ${count(training.steps)}` : `every ${duration(summary.period_s)}`);
}

function draw(runs) {
  const judged = runs.filter((run) => Object.values(LOSSES).some((key) => run[key] !== null));
  const ys = Object.entries(LOSSES).map(([name, key]) => [name, judged.map((run) => run[key])]);
  const latest = judged.at(-1);
  chart.update({
    x: judged.map((run) => run.number),
    ys: Object.fromEntries(ys),
    marks: judged.filter((run) => run.result === "published").map((run) =>
      ({ at: run.number, kind: "published", text: version(run.version) })),
    text: latest && `After run ${latest.number}: train ${loss(latest.train_loss)}, candidate ` +
      `${loss(latest.validation_loss)}, incumbent ${loss(latest.incumbent_loss)} on held-out episodes.`,
  });
}

function runsTable(runs) {
  const rows = runs.slice(-RUNS).reverse().map((run) => [
    `${run.number}`,
    make("span", { className: `result ${run.result}`, textContent: run.result }),
    clock(run.at_s), duration(run.seconds), count(run.steps), count(run.tasks),
    loss(run.train_loss), loss(run.validation_loss), loss(run.incumbent_loss),
    make("span", { className: "why", textContent: run.why || DASH }),
  ]);
  if (!rows.length) return make("p", { className: "quiet", textContent: "Waiting for the first run." });
  return table(`The latest ${rows.length} of ${plural(runs.at(-1).number, "run")}`,
    ["Run", "Result", "Ended", "Took", "Steps", "Episodes", "Train", "Candidate", "Incumbent", "Why"], rows);
}

function gates(published) {
  const rows = published.toReversed().flatMap((run) =>
    Object.entries(run.report.nets ?? {}).map(([net, verdict]) => [
      `${version(run.version)} · ${net}`,
      loss(verdict.loss_incumbent), loss(verdict.loss_candidate), loss(verdict.loss_unadapted),
      verdict.mean_difference === null ? DASH
        : `${minus(verdict.mean_difference.toFixed(4))} ± ${number(verdict.standard_error)}`,
      `${count(run.report.episodes)} / ${count(run.report.contexts)}`,
      verdict.passed ? "passed" : make("span", { className: "why", textContent: verdict.why }),
    ]));
  if (!rows.length)
    return make("p", { className: "quiet", textContent: "Nothing is published yet: a candidate must pass the gate." });
  return table("Held-out loss after adaptation; difference with its standard error over contexts",
    ["Version · net", "Incumbent", "Candidate", "Unadapted", "Difference", "Episodes / contexts", "Gate"], rows);
}

let restarts = 0;

function show(summary, restarted) {
  restarts += restarted;
  document.title = `${summary.role} · streammaml`;
  status(restarts ? `${summary.state}; it has restarted` : summary.state,
    summary.state === "starting" ? "" : "ready");
  tiles(summary);
  draw(summary.runs);
  renew($("runs"), runsTable(summary.runs));
  renew($("gates"), gates(summary.published));
  for (const empty of document.querySelectorAll("#meta .empty"))
    say(empty, summary.training ? "The first run trains now."
      : summary.state === "starting" ? "The outer loop connects and reads its topics."
        : "Waiting for enough episodes to train on.");
}

follow(show, () => status("no answer: trying again; the numbers are the last ones", "away"));
