// Line charts on uPlot, with marks at events, values of the legend at the cursor, arrow keys, and
// the same numbers as a table. Colours are the style sheet's.

import { DASH, count, loss, make, nameOf, renew, say, table } from "./parts.js";

const ROWS = 12; // of the table beside a chart
const probe = make("i", { hidden: true });
document.body.append(probe);

function color(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

const LINES = {
  init: { width: 1.5 },
  adapted: { width: 2.5 },
  baseline: { width: 1.5, dash: [2, 3] },
  train: { width: 1.5, dash: [6, 4] },
  validation: { width: 2.5 },
  incumbent: { width: 1.5 },
};
const COLORS = { train: "baseline", validation: "adapted", incumbent: "init" };

function series(key, dots) {
  return {
    label: nameOf(key),
    stroke: () => color(COLORS[key] ?? key),
    points: { show: dots, size: 6, fill: () => color(COLORS[key] ?? key) },
    ...LINES[key],
  };
}

function axis(more) {
  return {
    stroke: () => color("quiet"),
    grid: { stroke: () => color("grid"), width: 1 },
    ticks: { show: false },
    font: "12px system-ui, sans-serif",
    labelFont: "12px system-ui, sans-serif",
    ...more,
  };
}

// Room above and below, and never below zero.
function range(u, low, high) {
  if (low === null || high === null) return [0, 1];
  const room = Math.max((high - low) * 0.12, Math.abs(high) * 0.02, 1e-6);
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

// `host` has .legend, .plot, .text, .read and .numbers; `options`: keys, unit, caption, dots.
export class Chart {
  constructor(host, options) {
    this.host = host;
    this.options = options;
    this.marks = [];
    this.data = null;
    this.plot = host.querySelector(".plot");
    this.plot.tabIndex = 0;
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("blur", () => this.rest());
    new ResizeObserver(() => this.fit()).observe(this.plot);
    addEventListener("themechange", () => this.u?.redraw(false));
    host.querySelector("details").addEventListener("toggle", () => this.table());
  }

  // `x` and each of `ys` are aligned; marks are {at, kind, text}; `text` is for who cannot see it.
  update({ x, ys, marks = [], text }) {
    const keys = this.options.keys.filter((key) => key in ys);
    this.marks = marks;
    this.x = x;
    this.ys = ys;
    if (!x.length || !keys.length) return;
    const data = [x, ...keys.map((key) => ys[key])];
    if (this.keys?.join() !== keys.join()) this.build(keys, data);
    else this.u.setData(data);
    this.legend(this.u.cursor.idx);
    say(this.host.querySelector(".text"), text);
    this.table();
  }

  build(keys, data) {
    this.u?.destroy();
    this.keys = keys;
    this.plot.querySelector(".empty")?.remove();
    this.values = {};
    this.host.querySelector(".legend").replaceChildren(...keys.map((key) => {
      this.values[key] = make("b", { textContent: DASH });
      return make("li", {}, make("i", { className: `swatch ${key}` }), nameOf(key), " ",
        this.values[key]);
    }), ...(this.options.marks ?? []).map(([kind, words]) =>
      make("li", {}, make("i", { className: `mark ${kind}` }), words)));
    const whole = (u, ticks) => ticks.map((t) => (Number.isInteger(t) ? count(t) : ""));
    this.u = new uPlot({
      width: this.plot.clientWidth,
      height: this.plot.clientHeight,
      legend: { show: false },
      padding: [12, 22, 0, 0],
      cursor: { drag: { x: false, y: false }, y: false, points: { size: 7, width: 2 } },
      scales: { x: { time: false, range: (u, low, high) => [low, Math.max(high, low + 1)] },
        y: { range } },
      axes: [axis({ label: this.options.unit, labelSize: 20, size: 28, values: whole, space: 70 }),
        axis({ size: 48, values: (u, ticks) => ticks.map((t) => +t.toPrecision(4)) })],
      series: [{}, ...keys.map((key) => series(key, this.options.dots ?? false))],
      hooks: {
        drawAxes: [(u) => this.drawMarks(u)],
        setCursor: [(u) => this.legend(u.cursor.idx)],
      },
    }, data, this.plot);
  }

  // Empty again, with a word on what is waited for.
  reset(waits) {
    this.u?.destroy();
    this.u = this.keys = null;
    this.host.querySelector(".legend").replaceChildren();
    this.host.querySelector(".numbers").replaceChildren();
    say(this.host.querySelector(".text"), "");
    this.plot.replaceChildren(make("p", { className: "empty", textContent: waits }));
  }

  fit() {
    if (!this.u || !this.plot.clientWidth) return;
    this.u.setSize({ width: this.plot.clientWidth, height: this.plot.clientHeight });
  }

  drawMarks(u) {
    const { ctx, bbox } = u, unit = devicePixelRatio;
    const marks = this.marks.map((mark) => ({ ...mark, x: Math.round(u.valToPos(mark.at, "x", true)) + 0.5 }))
      .filter(({ x }) => x >= bbox.left && x <= bbox.left + bbox.width + 1);
    const room = bbox.width / unit / (10 * marks.length + 1); // many marks must not hide a curve
    let written = -Infinity;
    for (const { x, kind, text } of marks) {
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = color(kind);
      ctx.globalAlpha = kind === "drift" ? 0.24 * Math.min(1, room) : 0.9;
      ctx.lineWidth = unit;
      ctx.setLineDash(kind === "drift" ? [] : [4 * unit, 4 * unit]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.globalAlpha = 1;
      if (kind === "drift") {
        ctx.beginPath();
        ctx.moveTo(x - 4 * unit, bbox.top - 7 * unit);
        ctx.lineTo(x + 4 * unit, bbox.top - 7 * unit);
        ctx.lineTo(x, bbox.top);
        ctx.fill();
      } else if (text && x - written > 30 * unit) {
        written = x;
        ctx.font = `600 ${11 * unit}px system-ui, sans-serif`;
        ctx.textAlign = x > bbox.left + bbox.width - 50 * unit ? "right" : "left";
        ctx.fillText(text, x + (ctx.textAlign === "left" ? 4 : -4) * unit, bbox.top + 11 * unit);
      }
      ctx.restore();
    }
  }

  // The values at the cursor, or the latest ones.
  legend(at) {
    for (const key of this.keys ?? []) {
      const values = this.ys[key];
      const shown = at === null || at === undefined ? values.findLast((v) => v !== null) : values[at];
      say(this.values[key], loss(shown));
    }
  }

  // No cursor: the legend tells of the present again.
  rest() {
    this.u?.setCursor({ left: -10, top: -10 });
    say(this.host.querySelector(".read"), "");
  }

  key(event) {
    if (event.key === "Escape" && typeof this.u?.cursor.idx === "number") {
      event.stopPropagation(); // the next one closes what the chart is in
      this.rest();
      return;
    }
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -1e9, End: 1e9 };
    if (!this.u || !(event.key in steps)) return;
    event.preventDefault();
    const last = this.x.length - 1;
    const at = Math.min(last, Math.max(0, (this.u.cursor.idx ?? last) + steps[event.key]));
    this.u.setCursor({ left: this.u.valToPos(this.x[at], "x"), top: 10 });
    const values = this.keys.map((key) => `${nameOf(key)} ${loss(this.ys[key][at])}`);
    say(this.host.querySelector(".read"), `${count(this.x[at])} ${this.options.unit}: ${values.join(", ")}`);
  }

  // The chart's numbers, thinned, while somebody has opened them.
  table() {
    const box = this.host.querySelector("details");
    if (!box.open || !this.keys) return;
    const every = Math.max(1, Math.ceil(this.x.length / ROWS)), places = [];
    for (let i = this.x.length - 1; i >= 0; i -= every) places.unshift(i);
    renew(box.querySelector(".numbers"), table(this.options.caption,
      [this.options.unit, ...this.keys.map(nameOf)],
      places.map((i) => [count(this.x[i]), ...this.keys.map((key) => loss(this.ys[key][i]))])));
  }
}
