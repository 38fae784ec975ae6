"""A recorded history as the episodes that a worker would have sent, only closer together.

Rule: scaled as in training time: by the stream of the whole history, and by the context up to the
end of the window. Contexts come in the order of the stream, so that the newest are the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from streammaml.config import Config
from streammaml.events import Episode, Event, Float32s, Floats, Label, Task
from streammaml.learner import Labels, Schema
from streammaml.meta.episodes import (
    LABELS_LEAST,
    PSEUDO_EVENTS,
    QUERY,
    SUPPORT,
    SUPPORT_LEAST,
    History,
    history,
)

STRIDE = 4
"""Labels from one window of a context to the next, at least."""
NO_PARTITION = -1


class Recorded(NamedTuple):
    """A history, collated as a worker would."""

    contexts: list[str]  # H
    x: Float32s  # [H, D]
    y: Floats  # [H]
    classes: tuple[Label, ...]
    rejected: int
    """Rows that are no events."""


def collate(config: Config, batches: Iterable[list[Event]]) -> Recorded:
    """Stack a history; bad events are left out and counted."""
    schema, labels = Schema(config.features), Labels(config.label)
    contexts: list[str] = []
    xs, ys = [np.zeros((0, schema.width), np.float32)], [np.zeros(0)]
    rejected = 0
    for events in batches:
        collated = schema.collate(events, labels)
        contexts += collated.batch.contexts
        xs.append(collated.batch.x)
        ys.append(collated.batch.y)
        rejected += len(collated.rejected)
    return Recorded(
        contexts, np.concatenate(xs), np.concatenate(ys), tuple(labels.classes), rejected
    )


def episodes_of(config: Config, recorded: Recorded) -> Iterator[Episode]:
    """Windows of each context, at most about as many as the reservoir holds."""
    names, codes = np.unique(np.array(recorded.contexts, object), return_inverse=True)
    task = config.label.task
    whole = history(codes, recorded.x, recorded.y, task)
    order = np.argsort(codes, kind="stable")
    rng = np.random.default_rng(config.outer.seed)
    stride = max(STRIDE, -(-len(whole.places) // config.outer.reservoir_total))
    windows = _windows(whole, stride, rng)
    windows.sort(key=lambda window: int(order[whole.places[window.stop - 1]]))
    x, y = recorded.x[order], recorded.y[order]
    known = ~np.isnan(recorded.x)
    mean = np.where(known, recorded.x, 0).sum(0, np.float64) / np.maximum(known.sum(0), 1)
    scale = _label_scale(recorded.y, task)
    for window in windows:
        index = whole.places[window.start : window.stop]
        shift, inverse = _scalers(whole, int(index[-1]))
        unknown = np.full(len(index), -1, np.int64)
        yield Episode(
            context=str(names[codes[order[index[0]]]]),
            partition=NO_PARTITION,
            labels=window.labels,
            support=len(index) - QUERY,
            x=x[index],
            y=y[index],
            offsets=unknown,
            label_offsets=unknown,
            shift=np.stack([mean, mean + shift]),
            inverse=np.stack([whole.inverse, inverse]),
            y_scale=scale,
            classes=recorded.classes,
        )


class _Window(NamedTuple):
    """Labelled events from ``start`` to before ``stop``, which are labels up to ``labels``."""

    start: int
    stop: int
    labels: int


def _windows(whole: History, stride: int, rng: np.random.Generator) -> list[_Window]:
    found = []
    for first, stop in zip(whole.ranges.first.tolist(), whole.ranges.stop.tolist(), strict=True):
        for labels in range(LABELS_LEAST, stop - first + 1, stride):
            most = min(SUPPORT, labels - QUERY)
            size = int(rng.integers(SUPPORT_LEAST, most, endpoint=True)) + QUERY
            found.append(_Window(first + labels - size, first + labels, labels))
    return found


def _scalers(whole: History, last: int) -> tuple[Floats, Floats]:
    """Of a context after its event ``last``: its mean less the stream's [D], and 1/√variance."""
    total = PSEUDO_EVENTS + whole.counts[last]
    shift = whole.sums[last] / total
    variance = (PSEUDO_EVENTS * whole.variance + whole.squares[last]) / total - shift**2
    variance = np.maximum(variance, 0.01 * whole.variance + 1e-9)
    return shift, np.where(whole.inverse > 0, 1 / np.sqrt(variance), 0.0)


def _label_scale(y: Floats, task: Task) -> Floats:
    """Mean and standard deviation of the labels [2]."""
    labels = y[~np.isnan(y)]
    if task is Task.CLASSIFICATION or len(labels) == 0:
        return np.array([0.0, 1.0])
    return np.array([labels.mean(), np.sqrt(max(float(labels.var()), 1e-6))])
