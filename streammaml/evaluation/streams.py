"""Generated streams with known drift: many contexts, each with its own concept, which changes.

The family ``hyper``: every concept is a random direction in one fixed nonlinear feature space, so
what is shared can be learned from the past and what is not must be learned from few labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streammaml.events import Float32s, Floats

WIDTH = 10
NOISE = 0.05
CALM = (80, 140)
"""Events of a context between two drifts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Events in stream order, round robin over the contexts."""

    contexts: NDArray[np.int64]  # N
    x: Float32s  # [N, D]
    y: Floats  # [N], class 0 or 1
    drift: NDArray[np.bool_]  # [N], the first event of a new concept

    def __len__(self) -> int:
        return len(self.y)

    def split(self, events: int) -> tuple[Stream, Stream]:
        """The first ``events`` events, and the rest."""
        head, tail = slice(None, events), slice(events, None)
        return self._cut(head), self._cut(tail)

    def since_drift(self) -> NDArray[np.int64]:
        """Events of its context since the latest drift [N]; −1 before the first one."""
        since = np.full(len(self), -1, np.int64)
        for context in np.unique(self.contexts):
            own = np.flatnonzero(self.contexts == context)
            drifts = np.flatnonzero(self.drift[own])
            for first, end in pairwise([*drifts.tolist(), len(own)]):
                since[own[first:end]] = np.arange(end - first)
        return since

    def _cut(self, part: slice) -> Stream:
        return Stream(
            contexts=self.contexts[part], x=self.x[part], y=self.y[part], drift=self.drift[part]
        )


def hyper(contexts: int, events_each: int, seed: int, drifting: bool = True) -> Stream:
    """Draw ``contexts`` × ``events_each`` events of two classes with 5 % label noise."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(WIDTH, 24)) * 1.8 / np.sqrt(WIDTH)
    bias = rng.normal(size=24) * 0.7
    second = rng.normal(size=(24, 6)) * 2 / np.sqrt(24)
    x = rng.normal(size=(contexts, events_each, WIDTH)).astype(np.float32)
    hidden = np.tanh(np.tanh(x @ first + bias) @ second)  # [contexts, events, 6]
    y = np.empty((contexts, events_each))
    drift = np.zeros((contexts, events_each), np.bool_)
    for c in range(contexts):
        cuts = [0]
        while cuts[-1] < events_each:
            cuts.append(cuts[-1] + int(rng.integers(*CALM)) if drifting else events_each)
        drift[c, cuts[1:-1]] = True
        for start, end in pairwise(cuts):
            y[c, start:end] = (hidden[c, start:end] @ rng.normal(size=6)) > 0
    flips = rng.random(y.shape) < NOISE
    y[flips] = rng.integers(0, 2, int(flips.sum()))
    order = np.arange(contexts * events_each).reshape(contexts, events_each).T.ravel()
    return Stream(
        contexts=order // events_each,
        x=x.reshape(-1, WIDTH)[order],
        y=y.ravel()[order],
        drift=drift.ravel()[order],
    )
