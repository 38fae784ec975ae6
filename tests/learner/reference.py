"""Profile ``maml`` once more, slowly: float64 NumPy, one event at a time, river's own detector.

Rule: written from the specification alone, before the kernel was read, so that where the two
agree they agree for a reason. Nothing here is clever; nothing here imports the learner.

What the specification leaves open was settled afterwards, as the kernel has it: a constant number
is 0 in both scales; before the first label of an open list no class has a probability; the refresh
is counted from the full support set on; a regression is charged in deviations of the label.

    D  features    K  outputs    n  examples    L  layers
A network is a list of layers, each a pair (weight [in, out], bias [out]).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river.drift import PageHinkley

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Layers = list[tuple[Floats, Floats]]

PSEUDO_EVENTS = 20
SCALED_LIMIT = 4.0
REPORTED_FLOOR = 0.002
DETECTED_FLOOR = 0.02


# --- network -----------------------------------------------------------------------------------


def forward(layers: Layers, u: Floats) -> Floats:
    """Outputs [n, K] of inputs [n, 2D]: ReLU between the layers, none after the last."""
    h = u
    for i, (weight, bias) in enumerate(layers):
        h = h @ weight + bias
        if i < len(layers) - 1:
            h = np.maximum(h, 0)
    return h


def softmax(outputs: Floats, seen: Bools) -> Floats:
    """Probabilities [n, K] over the classes seen so far; the others get exactly 0."""
    masked = np.where(seen, outputs, -np.inf)
    exponentials = np.exp(masked - masked.max(axis=1, keepdims=True))
    result: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


def inner_loss(layers: Layers, u: Floats, target: Floats, seen: Bools | None) -> float:
    """Mean cross-entropy over the seen classes, or (``seen`` None) mean Huber(1)."""
    outputs = forward(layers, u)
    if seen is None:
        error = np.abs(outputs[:, 0] - target)
        return float(np.mean(np.where(error <= 1, 0.5 * error**2, error - 0.5)))
    masked = np.where(seen, outputs, -np.inf)
    peak = masked.max(axis=1)
    log_sum = peak + np.log(np.exp(masked - peak[:, None]).sum(axis=1))
    return float(np.mean(log_sum - outputs[np.arange(len(target)), target.astype(int)]))


def gradient(layers: Layers, u: Floats, target: Floats, seen: Bools | None) -> Layers:
    """Gradient of :func:`inner_loss`, backwards by hand."""
    inputs, h = [], u
    for i, (weight, bias) in enumerate(layers):
        inputs.append(h)
        h = h @ weight + bias
        if i < len(layers) - 1:
            h = np.maximum(h, 0)
    if seen is None:
        delta = np.clip(h[:, 0] - target, -1, 1)[:, None] / len(target)
    else:
        one_hot = np.eye(h.shape[1])[target.astype(int)]
        delta = (softmax(h, seen) - one_hot) / len(target)
    result: Layers = []
    for i in reversed(range(len(layers))):
        result.insert(0, (inputs[i].T @ delta, delta.sum(axis=0)))
        if i > 0:
            delta = (delta @ layers[i][0].T) * (inputs[i] > 0)
    return result


def norm(layers: Layers) -> float:
    return math.sqrt(sum(float((w**2).sum() + (b**2).sum()) for w, b in layers))


def adapt(
    start: Layers,
    rates: Floats,
    u: Floats,
    target: Floats,
    seen: Bools | None,
    clip: float = 5.0,
) -> tuple[Layers, float]:
    """Inner loop; the adapted layers, and the norm of the first gradient before clipping."""
    layers, first = start, 0.0
    for k, rate in enumerate(rates):
        g = gradient(layers, u, target, seen)
        length = norm(g)
        if k == 0:
            first = length
        shrink = min(1.0, clip / length) if length > 0 else 1.0
        layers = [
            (w - rate[2 * i] * shrink * gw, b - rate[2 * i + 1] * shrink * gb)
            for i, ((w, b), (gw, gb)) in enumerate(zip(layers, g, strict=True))
        ]
    return layers, first


# --- scalers -----------------------------------------------------------------------------------


@dataclass
class StreamScaler:
    """Stream-wide mean and variance of each feature; ``m`` and ``v`` move at the refreshes."""

    width: int

    def __post_init__(self) -> None:
        self.count = np.zeros(self.width)
        self.mean = np.zeros(self.width)
        self.squares = np.zeros(self.width)
        self.m = np.zeros(self.width)
        self.v = np.ones(self.width)
        self.constant = np.zeros(self.width, bool)

    def take(self, x: Floats) -> None:
        for j in range(self.width):
            if math.isnan(x[j]):
                continue
            self.count[j] += 1
            away = x[j] - self.mean[j]
            self.mean[j] += away / self.count[j]
            self.squares[j] += away * (x[j] - self.mean[j])

    def refresh(self) -> None:
        for j in range(self.width):
            if self.count[j] == 0:
                continue
            self.m[j] = self.mean[j]
            variance = self.squares[j] / self.count[j]
            self.constant[j] = variance <= 1e-10
            self.v[j] = 1.0 if self.constant[j] else variance


@dataclass
class ContextScaler:
    width: int

    def __post_init__(self) -> None:
        self.count = np.zeros(self.width)
        self.sum = np.zeros(self.width)
        self.sum_squares = np.zeros(self.width)

    def take(self, x: Floats) -> None:
        known = ~np.isnan(x)
        self.count[known] += 1
        self.sum[known] += x[known]
        self.sum_squares[known] += x[known] ** 2


def inputs(stream: StreamScaler, context: ContextScaler, x: Floats) -> Floats:
    """u = [z_g, z_c], both clipped; 0 where the number is missing."""
    total = PSEUDO_EVENTS + context.count
    mean = (PSEUDO_EVENTS * stream.m + context.sum) / total
    raw = (PSEUDO_EVENTS * (stream.v + stream.m**2) + context.sum_squares) / total - mean**2
    variance = np.maximum(raw, 0.01 * stream.v + 1e-9)
    z_g = np.where(stream.constant, 0.0, (x - stream.m) / np.sqrt(stream.v))
    z_c = np.where(stream.constant, 0.0, (x - mean) / np.sqrt(variance))
    u = np.concatenate([z_g, z_c])
    u[np.isnan(u)] = 0.0
    clipped: Floats = np.clip(u, -SCALED_LIMIT, SCALED_LIMIT)
    return clipped


@dataclass
class LabelScaler:
    """Mean and deviation of all labels; ``m`` and ``s`` move at the refreshes. And their range."""

    labels: list[float] = field(default_factory=list)
    m: float = 0.0
    s: float = 1.0

    def take(self, y: float) -> None:
        self.labels.append(y)
        n = len(self.labels)
        if n > 200 and n % 500:
            return
        self.m = float(np.mean(self.labels))
        variance = max(float(np.var(self.labels)), 1e-6)
        self.s = 1 + abs(self.m) if n <= 5 else math.sqrt(variance)

    def clip(self, value: float) -> float:
        if not self.labels:
            return value
        return min(max(value, min(self.labels)), max(self.labels))


# --- the policy --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    classes: bool = True
    width: int = 2
    outputs: int = 2
    known: int = 2
    warmup: tuple[int, ...] = (2, 4, 8, 12, 16, 24, 32)
    after_drift: int = 4
    refresh_every: int = 32
    support: int = 32
    clip: float = 5.0
    held_out: bool = False
    baseline_rate: float = 0.0
    detector: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """All that belongs to one context."""

    layers: Layers
    scaler: ContextScaler
    detector: PageHinkley
    x: list[Floats] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    segment: int = 0
    typical_error: float = 0.5
    plain: Layers = field(default_factory=list)


@dataclass
class Outcome:
    """What one event led to; NaN, "none" and 0 where it led to nothing."""

    prediction: Floats
    loss: float = math.nan
    loss_init: float = math.nan
    loss_plain: float = math.nan
    level: int = 0
    trigger: str = "none"
    result: str = "none"
    before: float = math.nan
    after: float = math.nan
    support: int = 0
    gradient_norm: float = math.nan
    spread: float = math.nan
    statistic: float = 0.0


class Reference:
    def __init__(self, rules: Rules, theta: Layers, rates: Floats) -> None:
        self.rules = rules
        self.theta = theta
        self.rates = rates
        self.stream = StreamScaler(rules.width)
        self.label = LabelScaler()
        self.seen = np.arange(rules.outputs) < rules.known
        self.labels = 0
        self.rows: dict[str, Row] = {}

    def step(self, context: str, x: Floats, y: float) -> Outcome:
        if context not in self.rows:
            self.rows[context] = self._new_row()
        row = self.rows[context]
        u = inputs(self.stream, row.scaler, x)
        served = self._predict(row.layers, u)
        outcome = Outcome(prediction=served)
        if not self.rules.classes:
            outcome.spread = row.typical_error * self.label.s
        if math.isnan(y):
            self.stream.take(x)
            row.scaler.take(x)
            return outcome
        outcome.loss = self._loss(served, y)
        outcome.loss_init = self._loss(self._predict(self.theta, u), y)
        if self.rules.baseline_rate > 0:
            outcome.loss_plain = self._loss(self._predict(row.plain, u), y)
        outcome.level = self._detect(row, served, y, outcome)
        self._learn(row, x, u, y)
        self._adapt(row, outcome)
        if not self.rules.classes:
            self.label.take(y)
        self.stream.take(x)
        row.scaler.take(x)
        self.labels += 1
        if self.labels <= 200 or self.labels % 10 == 0:
            self.stream.refresh()
        return outcome

    def _new_row(self) -> Row:
        return Row(
            layers=self.theta,
            scaler=ContextScaler(self.rules.width),
            detector=self._new_detector(),
            plain=self.theta,
        )

    def _new_detector(self) -> PageHinkley:
        delta = 0.1 if self.rules.classes else 0.5
        settings = {"min_instances": 10, "delta": delta, "threshold": 5.0, "mode": "up"}
        return PageHinkley(**{**settings, **self.rules.detector})

    def _predict(self, layers: Layers, u: Floats) -> Floats:
        outputs = forward(layers, u[None])
        if not self.rules.classes:
            value = self.label.m + self.label.s * float(outputs[0, 0])
            return np.array([self.label.clip(value)])
        if not self.seen.any():
            return np.zeros(self.rules.outputs)
        probabilities: Floats = softmax(outputs, self.seen)[0]
        return probabilities

    def _loss(self, prediction: Floats, y: float) -> float:
        if self.rules.classes:
            return -math.log(max(float(prediction[int(y)]), REPORTED_FLOOR))
        return abs(float(prediction[0]) - y) / self.label.s

    def _detect(self, row: Row, served: Floats, y: float, outcome: Outcome) -> int:
        if self.rules.classes:
            fed = -math.log(max(float(served[int(y)]), DETECTED_FLOOR))
        else:
            error = abs(float(served[0]) - y) / self.label.s
            fed = min(error / row.typical_error, 4.0)
            bounded = min(error, 4 * row.typical_error)
            row.typical_error = 0.98 * row.typical_error + 0.02 * bounded
        row.detector.update(fed)  # type: ignore[no-untyped-call]  # river's is not typed
        statistic = row.detector._sum_increase - row.detector._min_increase
        if row.detector._x_mean.n < row.detector.min_instances:
            return 0
        outcome.statistic = statistic
        if row.detector.drift_detected:
            return 2
        return 1 if statistic > row.detector.threshold / 2 else 0

    def _learn(self, row: Row, x: Floats, u: Floats, y: float) -> None:
        row.x = [*row.x, x][-self.rules.support :]
        row.y = [*row.y, y][-self.rules.support :]
        if self.rules.classes:
            self.seen[int(y)] = True
        if self.rules.baseline_rate > 0:
            rates = np.full((1, 2 * len(self.theta)), self.rules.baseline_rate)
            target = self._targets(np.array([y]))
            row.plain, _ = adapt(row.plain, rates, u[None], target, self._mask(), self.rules.clip)

    def _adapt(self, row: Row, outcome: Outcome) -> None:
        row.segment += 1
        rates = self.rates
        if outcome.level == 2:
            row.segment = self.rules.after_drift
            row.detector = self._new_detector()
            outcome.trigger, start, n = "drift", self.theta, row.segment
        elif row.segment in self.rules.warmup:
            outcome.trigger, start, n = "warmup", self.theta, row.segment
        elif self._scheduled(row.segment):
            outcome.trigger, start, n = "schedule", row.layers, self.rules.support
            rates = rates / 2
        else:
            return
        n = min(n, len(row.y))
        x, y = row.x[-n:], np.array(row.y[-n:])
        u = np.array([inputs(self.stream, row.scaler, one) for one in x])
        self._decide(row, outcome, start, rates, u, self._targets(y))

    def _scheduled(self, segment: int) -> bool:
        every = self.rules.refresh_every
        past = segment - self.rules.support
        return every > 0 and past > 0 and past % every == 0

    def _decide(
        self, row: Row, outcome: Outcome, start: Layers, rates: Floats, u: Floats, target: Floats
    ) -> None:
        seen, clip, n = self._mask(), self.rules.clip, len(target)
        newest = min(n, min(max(n // 4, 3), 8))
        held_out = self.rules.held_out and n >= 16
        older = slice(0, n - newest) if held_out else slice(0, n)
        candidate, first = adapt(start, rates, u[older], target[older], seen, clip)
        outcome.support = n
        outcome.gradient_norm = math.nan if held_out else first
        outcome.before = inner_loss(row.layers, u[-newest:], target[-newest:], seen)
        outcome.after = inner_loss(candidate, u[-newest:], target[-newest:], seen)
        outcome.result = "accepted"
        if held_out and outcome.before < outcome.after:
            outcome.result = "rejected"
            return
        if held_out:
            candidate, outcome.gradient_norm = adapt(start, rates, u, target, seen, clip)
        row.layers = candidate

    def _targets(self, y: Floats) -> Floats:
        if self.rules.classes:
            return y
        scaled: Floats = (y - self.label.m) / self.label.s
        return scaled

    def _mask(self) -> Bools | None:
        return self.seen if self.rules.classes else None
