"""Episodes as a worker would emit them, from a generated stream, in plain NumPy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from streammaml.config import Config
from streammaml.evaluation.streams import WIDTH, Stream, hyper
from streammaml.events import Episode, Float32s, Floats, Label
from streammaml.meta.episodes import PSEUDO_EVENTS, QUERY, SUPPORT, SUPPORT_LEAST
from streammaml.meta.reservoir import Reservoir

CLASSES: tuple[Label, ...] = ("no", "yes")


def make_config(width: int = WIDTH, label: dict[str, Any] | None = None, **outer: Any) -> Config:
    return Config.build(
        {
            "features": [{"name": f"x{i}"} for i in range(width)],
            "label": {"classes": list(CLASSES)} if label is None else label,
            "learner": {"hidden": [16, 16], "inner_steps": 3},
            "outer": outer,
        }
    )


def make_episode(
    context: str = "a",
    labels: int = 20,
    support: int = 4,
    partition: int = 0,
    classes: tuple[Label, ...] = CLASSES,
    **changed: Any,
) -> Episode:
    """One window of the context's labels, event by event in the log from offset 10 × its label."""
    size = support + QUERY
    offsets = 10 * np.arange(labels - size + 1, labels + 1, dtype=np.int64)
    rng = np.random.default_rng(labels)
    fields: dict[str, Any] = {
        "context": context,
        "partition": partition,
        "labels": labels,
        "support": support,
        "x": rng.normal(size=(size, 2)).astype(np.float32),
        "y": rng.integers(0, 2, size).astype(np.float64),
        "offsets": offsets,
        "label_offsets": offsets,
        "shift": np.zeros((2, 2)),
        "inverse": np.ones((2, 2)),
        "y_scale": np.array([0.0, 1.0]),
        "classes": classes,
    }
    return Episode(**fields | changed)


def episodes_of(stream: Stream, every: int = 16, seed: int = 0) -> Iterator[Episode]:
    """One in ``every`` labels of each context, once it has the 18 that an episode takes."""
    rng = np.random.default_rng(seed)
    seen: dict[int, list[int]] = defaultdict(list)
    since: dict[int, int] = defaultdict(int)
    for place, context in enumerate(stream.contexts.tolist()):
        own = seen[context]
        own.append(place)
        since[context] += 1
        if len(own) < SUPPORT_LEAST + QUERY or since[context] < every:
            continue
        since[context] = 0
        support = int(rng.integers(SUPPORT_LEAST, min(SUPPORT, len(own) - QUERY), endpoint=True))
        window = np.array(own[-support - QUERY :])
        shift, inverse = _scalers(stream.x[: place + 1], stream.x[own])
        yield Episode(
            context=f"sensor-{context}",
            partition=0,
            labels=len(own),
            support=support,
            x=stream.x[window],
            y=stream.y[window],
            offsets=window,
            label_offsets=window,
            shift=shift,
            inverse=inverse,
            y_scale=np.array([0.0, 1.0]),
            classes=CLASSES,
        )


def fill(
    config: Config, contexts: int = 40, events: int = 150, seed: int = 1, shared: bool = False
) -> Reservoir:
    """A reservoir with the episodes of a drifting stream, or of one concept that all share."""
    reservoir, stream = Reservoir(config), hyper(contexts, events, seed)
    if shared:
        stream = replace(stream, y=(stream.x[:, 0] > stream.x[:, 1]).astype(np.float64))
    for episode in episodes_of(stream):
        assert reservoir.add(episode) is None
    return reservoir


def _scalers(whole: Float32s, own: Float32s) -> tuple[Floats, Floats]:
    mean, variance = whole.mean(0, np.float64), whole.var(0, np.float64)
    total = PSEUDO_EVENTS + len(own)
    shift = (PSEUDO_EVENTS * mean + own.sum(0)) / total
    square = (PSEUDO_EVENTS * (variance + mean**2) + np.square(own).sum(0)) / total
    spread = np.maximum(square - shift**2, 0.01 * variance + 1e-9)
    return np.stack([mean, shift]), 1 / np.sqrt([variance, spread])
