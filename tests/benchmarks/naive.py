"""The peer of the decode + learner benchmark: the loop one would write, with the same policy.

One event at a time: ``json.loads``, running means in NumPy, one torch forward, river's
PageHinkley, and on each trigger a textbook adaptation by autograd. ``IdiomaticLoop`` writes torch
as its tutorials do (a module, a copy of it, ``optim.SGD``, ``clip_grad_norm_``); ``LeanLoop`` goes
without modules and optimizers, as lean as autograd gets.
"""

from __future__ import annotations

import copy
import json
import math
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from river.drift import PageHinkley
from torch import Tensor, nn

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


Model = TypeVar("Model")


class NaiveContext(Generic[Model]):
    def __init__(self, width: int, model: Model) -> None:
        self.model = model
        self.support: deque[tuple[Floats, int]] = deque(maxlen=32)
        self.moments = Moments(width)
        self.segment = 0
        self.detector = new_detector()


def new_detector() -> PageHinkley:
    return PageHinkley(min_instances=10, delta=0.1, threshold=5.0, mode="up")


class NaiveLoop(Generic[Model]):
    """Prequential MAML without any of this project's code; how torch is used, a subclass says."""

    def __init__(self, config: Config, initialization: Initialization) -> None:
        self._names = [f.name for f in config.features]
        self._slots = {label: i for i, label in enumerate(config.label.classes)}
        theta = [
            torch.from_numpy(initialization.tensors[name].copy())
            for name in initialization.spec.shapes()
        ]
        self._meta = self.build(theta)
        self._rates = torch.from_numpy(initialization.tensors["rates"].copy())
        width = len(self._names)
        self._stream = Moments(width)
        self._mean, self._std = np.zeros(width), np.ones(width)
        self._contexts: dict[str, NaiveContext[Model]] = defaultdict(
            lambda: NaiveContext(width, self._meta)
        )
        self._labels = 0
        self.losses: list[float] = []
        self.adaptations = 0

    def build(self, theta: list[Tensor]) -> Model:
        raise NotImplementedError  # abstract

    def logits(self, model: Model, u: Tensor) -> Tensor:
        raise NotImplementedError  # abstract

    def adapt(self, start: Model, u: Tensor, y: Tensor, rates: Tensor) -> Model:
        """A new model, adapted from ``start`` with a rate for each step and tensor."""
        raise NotImplementedError  # abstract

    def play(self, values: Sequence[bytes]) -> None:
        for value in values:
            self._one(json.loads(value))

    def _one(self, event: dict[str, Any]) -> None:
        context = self._contexts[event["context"]]
        features = event["features"]
        x = np.array([features[name] for name in self._names], np.float64)
        y = self._slots[event["label"]]
        with torch.no_grad():
            logits = self.logits(context.model, torch.from_numpy(self._inputs(context, x[None])))
        probability = float(torch.softmax(logits[0], 0)[y])
        self.losses.append(-math.log(max(probability, 0.002)))
        context.detector.update(-math.log(max(probability, 0.02)))  # type: ignore[no-untyped-call]  # river types half of itself
        context.support.append((x, y))
        context.segment += 1
        self._maybe_adapt(context, context.detector.drift_detected)
        self._scale(context, x)

    def _inputs(self, context: NaiveContext[Model], x: Floats) -> Float32s:
        own, count = context.moments, context.moments.count
        variance = self._std**2
        mean = (20 * self._mean + count * own.mean) / (20 + count)
        spread = 20 * (variance + (self._mean - mean) ** 2) + own.m2
        spread += count * (own.mean - mean) ** 2
        std = np.sqrt(np.maximum(spread / (20 + count), 0.01 * variance + 1e-9))
        z = np.concatenate([(x - self._mean) / self._std, (x - mean) / std], axis=1)
        inputs: Float32s = np.clip(z, -4, 4).astype(np.float32)
        return inputs

    def _maybe_adapt(self, context: NaiveContext[Model], drift: bool) -> None:
        if drift:
            context.segment = 4
            context.detector = new_detector()
            start, factor = self._meta, 1.0
        elif context.segment in WARMUP:
            start, factor = self._meta, 1.0
        elif context.segment > 32 and context.segment % 32 == 0:
            start, factor = context.model, 0.5
        else:
            return
        self.adaptations += 1
        newest = list(context.support)[-min(context.segment, 32) :]
        u = torch.from_numpy(self._inputs(context, np.stack([x for x, _ in newest])))
        y = torch.tensor([label for _, label in newest])
        context.model = self.adapt(start, u, y, factor * self._rates)

    def _scale(self, context: NaiveContext[Model], x: Floats) -> None:
        context.moments.update(x)
        self._stream.update(x)
        self._labels += 1
        if self._labels <= 200 or self._labels % 10 == 0:
            self._mean = self._stream.mean.copy()
            variance = self._stream.m2 / self._stream.count
            self._std = np.sqrt(np.where(variance > 1e-10, variance, 1.0))


class IdiomaticLoop(NaiveLoop[nn.Module]):
    """Torch by the book."""

    def build(self, theta: list[Tensor]) -> nn.Module:
        layers: list[nn.Module] = []
        for weight, bias in zip(theta[::2], theta[1::2], strict=True):
            linear = nn.Linear(*weight.shape)
            linear.weight.data, linear.bias.data = weight.T.clone(), bias.clone()
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def logits(self, model: nn.Module, u: Tensor) -> Tensor:
        output: Tensor = model(u)
        return output

    def adapt(self, start: nn.Module, u: Tensor, y: Tensor, rates: Tensor) -> nn.Module:
        model = copy.deepcopy(start)
        groups = [{"params": [p]} for p in model.parameters()]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        for step in rates:
            for group, rate in zip(optimizer.param_groups, step.tolist(), strict=True):
                group["lr"] = rate
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(u), y)
            loss.backward()  # type: ignore[no-untyped-call]  # torch types half of itself
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        return model


class LeanLoop(NaiveLoop[list[Tensor]]):
    """Torch without modules and optimizers."""

    def build(self, theta: list[Tensor]) -> list[Tensor]:
        return theta

    def logits(self, model: list[Tensor], u: Tensor) -> Tensor:
        hidden = u
        for i in range(0, len(model), 2):
            hidden = torch.addmm(model[i + 1], hidden, model[i])
            if i + 2 < len(model):
                hidden = torch.relu(hidden)
        return hidden

    def adapt(self, start: list[Tensor], u: Tensor, y: Tensor, rates: Tensor) -> list[Tensor]:
        weights = [w.detach().requires_grad_() for w in start]
        for step in rates:
            loss = nn.functional.cross_entropy(self.logits(weights, u), y)
            gradients = torch.autograd.grad(loss, weights)
            norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())))
            scale = torch.clamp(5.0 / norm, max=1.0)
            weights = [
                (w - rate * scale * g).detach().requires_grad_()
                for w, rate, g in zip(weights, step, gradients, strict=True)
            ]
        return [w.detach() for w in weights]
