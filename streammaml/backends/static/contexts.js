// The contexts with the worst loss, or by another order, filtered by name.

import { DASH, $, count, loss, make, renew, say, version } from "./parts.js";

const EVERY_MS = 2000;
const LIMIT = 18;
const HEADS = ["Loss", "Level", "Labels", "Since drift", "Init."];

// "shop" means *shop*; stars, question marks and brackets are a pattern already.
export function patternOf(text) {
  if (!text) return "*";
  return /[*?[]/.test(text) ? text : `*${text}*`;
}

export function fragmentOf(name) {
  return `#${new URLSearchParams({ context: name })}`;
}

// The context that the address names, or null.
export function chosen() {
  return new URLSearchParams(location.hash.slice(1)).get("context") || null;
}

function row(line, worst) {
  const bar = make("span", { className: "bar" });
  bar.style.setProperty("--part", worst ? Math.max(0, line.loss ?? 0) / worst : 0);
  const level = make("span", { className: `level ${line.level ?? ""}` }, line.level ?? DASH);
  const link = make("a", { href: fragmentOf(line.context), textContent: line.context });
  const cells = [make("span", {}, bar, loss(line.loss)), level, count(line.labels),
    count(line.labels_in_segment), version(line.initialization)];
  const found = make("tr", {}, make("th", { scope: "row" }, link),
    ...cells.map((cell) => make("td", { className: "number" }, cell)));
  found.dataset.context = line.context;
  return found;
}

// Who is pointing at a row, or stands in one, keeps it: then only the numbers change. Not so where
// `other` rows were asked for than those shown.
function fill(body, lines, other) {
  const worst = Math.max(0, ...lines.map((line) => line.loss ?? 0));
  const fresh = lines.map((line) => row(line, worst));
  const held = !other && fresh.length > 0 && body.children.length > 0 &&
    (body.matches(":hover") || body.contains(document.activeElement));
  mark(fresh);
  if (held) {
    const now = new Map(fresh.map((node) => [node.dataset.context, node]));
    for (const old of body.children) {
      const node = now.get(old.dataset.context);
      if (node) renew(old, ...node.children);
    }
  } else {
    renew(body, ...fresh);
  }
  return held;
}

function mark(lines) {
  for (const line of lines) {
    const link = line.querySelector("a");
    if (line.dataset.context === chosen()) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

// Asks while `ready()`: before, the worker has no contexts to tell of.
export function followContexts(ready) {
  const body = $("contexts-body"), filter = $("filter"), sort = $("sort");
  $("contexts-head").append(...HEADS.map((text) =>
    make("th", { scope: "col", className: "number", textContent: text })));
  let timer = 0, asked = 0, shown = null;

  async function ask() {
    clearTimeout(timer);
    const mine = ++asked;
    if (!document.hidden && ready()) {
      const query = new URLSearchParams(
        { sort: sort.value, limit: LIMIT, filter: patternOf(filter.value.trim()) });
      try {
        const answer = await fetch(`api/contexts?${query}`, { signal: AbortSignal.timeout(8000) });
        if (mine !== asked) return;
        const found = await answer.json();
        if (answer.ok) {
          const other = shown !== `${query}`;
          shown = `${query}`;
          const why = fill(body, found.contexts, other) ? "the order rests while you are in the table."
            : "loss is the mean since the context’s last drift.";
          const what = filter.value.trim() ? "matching contexts" : "contexts";
          say($("contexts-sub"), found.matched
            ? `${count(found.contexts.length)} of ${count(found.matched)} ${what}; ${why}`
            : found.in_memory ? "No context matches." : "No contexts yet: they come with the first events.");
        } else if (answer.status === 503) {
          say($("contexts-sub"), body.children.length
            ? "The worker does not answer now; these are the last ones it gave."
            : "Waiting for the worker to own partitions.");
        } else say($("contexts-sub"), found.error);
      } catch {
        if (mine !== asked) return;
        say($("contexts-sub"), "No answer from the worker; trying again.");
      }
    }
    timer = setTimeout(ask, EVERY_MS);
  }

  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr");
    if (line && !event.target.closest("a")) location.hash = fragmentOf(line.dataset.context);
  });
  filter.addEventListener("input", ask);
  sort.addEventListener("change", ask);
  addEventListener("hashchange", () => mark(body.children));
  $("contexts-form").addEventListener("submit", (event) => event.preventDefault());
  ask();
}
