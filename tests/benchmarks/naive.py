"""The peer of the decode + learner benchmark: the loop one would write, with the same policy.

One event at a time: ``json.loads``, running means in NumPy, one torch forward, river's
PageHinkley, and on each trigger a textbook adaptation by autograd.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np
import torch
from river.drift import PageHinkley
from torch import Tensor

from streammaml.config import Config
from streammaml.events import Float32s, Floats
from streammaml.initialization import Initialization

WARMUP = {2, 4, 8, 12, 16, 24, 32}


class Moments:
    """Running mean and variance of each number."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self.m2 = np.zeros(width)

    def update(self, x: Floats) -> None:
        self.count += 1
        delta = x - self.mean
        self.mean += delta / self.count
        self.m2 += delta * (x - self.mean)


class NaiveContext:
    def __init__(self, width: int, weights: list[Tensor]) -> None:
        self.weights = weights
        self.support: deque[tuple[Floats, int]] = deque(maxlen=32)
        self.moments = Moments(width)
        self.segment = 0
        self.detector = new_detector()


def new_detector() -> PageHinkley:
    return PageHinkley(min_instances=10, delta=0.1, threshold=5.0, mode="up")


class NaiveLoop:
    """Prequential MAML without any of this project's code."""

    def __init__(self, config: Config, initialization: Initialization) -> None:
        self._names = [f.name for f in config.features]
        self._slots = {label: i for i, label in enumerate(config.label.classes)}
        self._theta = [
            torch.from_numpy(initialization.tensors[name].copy())
            for name in initialization.spec.shapes()
        ]
        self._rates = torch.from_numpy(initialization.tensors["rates"].copy())
        width = len(self._names)
        self._stream = Moments(width)
        self._mean, self._std = np.zeros(width), np.ones(width)
        self._contexts: dict[str, NaiveContext] = defaultdict(
            lambda: NaiveContext(width, self._theta)
        )
        self._labels = 0
        self.losses: list[float] = []
        self.adaptations = 0

    def play(self, values: Sequence[bytes]) -> None:
        for value in values:
            self._one(json.loads(value))

    def _one(self, event: dict[str, object]) -> None:
        context = self._contexts[str(event["context"])]
        features = event["features"]
        assert isinstance(features, dict)
        x = np.array([features[name] for name in self._names], np.float64)
        y = self._slots[event["label"]]
        with torch.no_grad():
            logits = forward(context.weights, torch.from_numpy(self._inputs(context, x[None])))
        probability = float(torch.softmax(logits[0], 0)[y])
        self.losses.append(-math.log(max(probability, 0.002)))
        context.detector.update(-math.log(max(probability, 0.02)))
        context.support.append((x, y))
        context.segment += 1
        self._maybe_adapt(context, context.detector.drift_detected)
        self._scale(context, x)

    def _inputs(self, context: NaiveContext, x: Floats) -> Float32s:
        own, count = context.moments, context.moments.count
        variance = self._std**2
        mean = (20 * self._mean + count * own.mean) / (20 + count)
        spread = 20 * (variance + (self._mean - mean) ** 2) + own.m2
        spread += count * (own.mean - mean) ** 2
        std = np.sqrt(np.maximum(spread / (20 + count), 0.01 * variance + 1e-9))
        z = np.concatenate([(x - self._mean) / self._std, (x - mean) / std], axis=1)
        return np.clip(z, -4, 4).astype(np.float32)

    def _maybe_adapt(self, context: NaiveContext, drift: bool) -> None:
        if drift:
            context.segment = 4
            context.detector = new_detector()
            start, factor = self._theta, 1.0
        elif context.segment in WARMUP:
            start, factor = self._theta, 1.0
        elif context.segment > 32 and context.segment % 32 == 0:
            start, factor = context.weights, 0.5
        else:
            return
        self.adaptations += 1
        newest = list(context.support)[-min(context.segment, 32) :]
        u = torch.from_numpy(self._inputs(context, np.stack([x for x, _ in newest])))
        y = torch.tensor([label for _, label in newest])
        context.weights = adapt(start, u, y, factor * self._rates)

    def _scale(self, context: NaiveContext, x: Floats) -> None:
        context.moments.update(x)
        self._stream.update(x)
        self._labels += 1
        if self._labels <= 200 or self._labels % 10 == 0:
            self._mean = self._stream.mean.copy()
            variance = self._stream.m2 / self._stream.count
            self._std = np.sqrt(np.where(variance > 1e-10, variance, 1.0))


def forward(weights: Sequence[Tensor], u: Tensor) -> Tensor:
    hidden = u
    for i in range(0, len(weights), 2):
        hidden = torch.addmm(weights[i + 1], hidden, weights[i])
        if i + 2 < len(weights):
            hidden = torch.relu(hidden)
    return hidden


def adapt(start: Sequence[Tensor], u: Tensor, y: Tensor, rates: Tensor) -> list[Tensor]:
    """The textbook inner loop, gradient norm clipped at 5."""
    weights = [w.detach().requires_grad_() for w in start]
    for step in rates:
        loss = torch.nn.functional.cross_entropy(forward(weights, u), y)
        gradients = torch.autograd.grad(loss, weights)
        norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())))
        scale = torch.clamp(5.0 / norm, max=1.0)
        weights = [
            (w - rate * scale * g).detach().requires_grad_()
            for w, rate, g in zip(weights, step, gradients, strict=True)
        ]
    return [w.detach() for w in weights]
