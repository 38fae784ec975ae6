"""Episodes out of a recorded stream: support sets with the queries that came right after them.

An episode is a contiguous window of one context's labelled events: n ~ U{2..32} of support, then
16 queries. Contexts are drawn ∝ √labels; half of the windows lie in the last 1,000 labels. Windows
may straddle drifts: no boundaries are known.

Rule: scaled as in training time. The stream's mean and variance are those of the whole history, a
context's are those of its events up to the end of the window, shrunk to the stream's by n0 = 20
pseudo-events: u = [z_g, z_c], 2D numbers, each within ±4, a missing one 0.

    H  events    M  labelled events    E  contexts with enough labels
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from streammaml.events import Float32s, Floats, Task
from streammaml.meta.losses import Examples

Ints = NDArray[np.int64]
Number = TypeVar("Number", np.int32, np.float64)

SUPPORT = 32
QUERY = 16
SUPPORT_LEAST = 2
LABELS_LEAST = SUPPORT_LEAST + QUERY
RECENT = 1_000
PSEUDO_EVENTS = 20.0
Z_LIMIT = 4.0
CONSTANT = 1e-10
HELD_OUT_CONTEXTS_LEAST = 20


class Episodes(NamedTuple):
    """A meta-batch: adapt on each support set, be judged on the query set that came after it."""

    support: Examples  # [T, 32]
    query: Examples  # [T, 16]

    def part(self, tasks: slice) -> Episodes:
        """Some of the tasks."""
        return Episodes(self.support.part(tasks), self.query.part(tasks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Labelled events, by their index among the M, that windows of each context may cover."""

    first: Ints  # E
    stop: Ints  # E

    def enough(self) -> Ranges:
        kept = self.stop - self.first >= LABELS_LEAST
        return Ranges(first=self.first[kept], stop=self.stop[kept])


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A stream sorted by context, in its own order within each; build with :func:`history`."""

    shifted: Float32s  # [H, D], x minus the stream's mean, NaN where missing
    variance: Floats  # [D], of the stream; 1 where it is constant
    inverse: Floats  # [D], 1/√variance; 0 where it is constant
    counts: NDArray[np.int32]  # [H, D], numbers of the context up to and with this event
    sums: Floats  # [H, D], of the shifted numbers, likewise
    squares: Floats  # [H, D]
    targets: NDArray[np.int64] | Float32s  # [M], class slots or scaled values
    places: Ints  # [M], which of the H events
    ranges: Ranges
    classes: int = 0
    """Class slots in use; 0: all."""

    def __len__(self) -> int:
        """Contexts with enough labels for an episode."""
        return len(self.ranges.first)


def history(contexts: Ints, x: Float32s, y: Floats, task: Task, classes: int = 0) -> History:
    """Arrange a recorded stream for sampling.

    Args:
        contexts: a whole number for each context [H], in stream order.
        x: raw features [H, D], NaN where missing.
        y: class slots or raw values [H], NaN where unlabelled.
        classes: slots in use where the list of classes is open; 0: all.
    """
    if not len(contexts) == len(x) == len(y):
        raise ValueError(f"lengths differ: {len(contexts)}, {len(x)} and {len(y)}")
    order = np.argsort(contexts, kind="stable")
    contexts, x, y = contexts[order], x[order].astype(np.float64), y[order]
    known = ~np.isnan(x)
    seen = np.maximum(known.sum(axis=0), 1)
    x -= np.where(known, x, 0.0).sum(axis=0) / seen
    filled = np.where(known, x, 0.0)
    variance = np.square(filled).sum(axis=0) / seen
    constant = variance <= CONSTANT
    variance[constant] = 1.0
    edges = np.append(np.unique(contexts, return_index=True)[1], len(contexts))
    places = np.flatnonzero(~np.isnan(y))
    labels = np.searchsorted(places, edges)
    return History(
        shifted=x.astype(np.float32),
        variance=variance,
        inverse=np.where(constant, 0.0, 1 / np.sqrt(variance)),
        counts=_running(known.astype(np.int32), edges),
        sums=_running(filled, edges),
        squares=_running(np.square(filled), edges),
        targets=_targets(y[places], task),
        places=places,
        ranges=Ranges(first=labels[:-1], stop=labels[1:]).enough(),
        classes=classes,
    )


def hold_out(whole: History, every: int = 10, newest: float = 0.1) -> tuple[History, History]:
    """Split into a history to train on and one to be judged by, with the same scalers.

    Judged by: every ``every``-th context once there are 20, and the ``newest`` share of the labels
    of the others. No label is in both. Either may be empty: ``len`` says how many contexts it has.
    """
    first, stop = whole.ranges.first, whole.ranges.stop
    apart = np.zeros(len(first), np.bool_)
    if len(first) >= HELD_OUT_CONTEXTS_LEAST:
        apart[every - 1 :: every] = True
    cut = np.where(apart, first, stop - np.round((stop - first) * newest).astype(np.int64))
    train, judge = Ranges(first=first, stop=cut), Ranges(first=cut, stop=stop)
    return replace(whole, ranges=train.enough()), replace(whole, ranges=judge.enough())


class Held(NamedTuple):
    """Episodes to judge by."""

    episodes: Episodes  # [T, …]
    contexts: Ints  # [T], equal where two episodes are of one context


def sample(source: History, generator: np.random.Generator, count: int) -> Episodes | None:
    """Draw ``count`` episodes with replacement; None where no context has 18 labels."""
    held = sample_to_judge(source, generator, count)
    return None if held is None else held.episodes


def sample_to_judge(source: History, generator: np.random.Generator, count: int) -> Held | None:
    """As :func:`sample`, and which episodes are of one context."""
    if len(source) == 0:
        return None
    chosen, start, size = _windows(source.ranges, generator, count)
    last = source.places[start + size + QUERY - 1]
    slots = np.arange(SUPPORT)
    # A padded slot repeats the last support example, so that it needs no second case.
    support = start[:, None] + np.minimum(slots, size[:, None] - 1)
    query = (start + size)[:, None] + np.arange(QUERY)
    index = np.concatenate([support, query], axis=1)  # [T, 48]
    inputs = torch.from_numpy(_inputs(source, index, last))
    targets = torch.from_numpy(source.targets[index])
    weights = torch.from_numpy((slots < size[:, None]).astype(np.float32))
    episodes = Episodes(
        Examples(inputs[:, :SUPPORT], targets[:, :SUPPORT], weights, source.classes),
        Examples(
            inputs[:, SUPPORT:], targets[:, SUPPORT:], torch.ones(count, QUERY), source.classes
        ),
    )
    return Held(episodes, chosen)


def _windows(ranges: Ranges, generator: np.random.Generator, count: int) -> tuple[Ints, ...]:
    """Context, first labelled event and size of the support set of ``count`` episodes."""
    mass = np.sqrt(ranges.stop - ranges.first).cumsum()
    chosen = np.searchsorted(mass, generator.random(count) * mass[-1], side="right")
    first, stop = ranges.first[chosen], ranges.stop[chosen]
    size = generator.integers(
        SUPPORT_LEAST, np.minimum(SUPPORT, stop - first - QUERY), endpoint=True
    )
    recent = generator.random(count) < 0.5
    earliest = np.where(recent, np.maximum(first, stop - RECENT), first)
    return chosen, generator.integers(earliest, stop - size - QUERY, endpoint=True), size


def _inputs(source: History, index: Ints, last: Ints) -> Float32s:
    """u [T, 48, 2D] of labelled events ``index`` [T, 48], scaled as after event ``last`` [T]."""
    total = PSEUDO_EVENTS + source.counts[last]  # [T, D]
    shift = source.sums[last] / total  # the context's mean minus the stream's
    variance = (PSEUDO_EVENTS * source.variance + source.squares[last]) / total - shift**2
    variance = np.maximum(variance, 0.01 * source.variance + 1e-9)
    inverse = np.where(source.inverse > 0, 1 / np.sqrt(variance), 0.0)
    x = source.shifted[source.places[index]]  # [T, 48, D]
    own = (x - shift[:, None].astype(np.float32)) * inverse[:, None].astype(np.float32)
    u = np.concatenate([x * source.inverse.astype(np.float32), own], axis=2)
    u[np.isnan(u)] = 0.0
    clipped: Float32s = np.clip(u, -Z_LIMIT, Z_LIMIT, out=u)
    return clipped


def _running(values: NDArray[Number], edges: Ints) -> NDArray[Number]:
    """Cumulative sums of values [H, D] that start anew at each context."""
    sums = np.empty_like(values)
    for first, stop in pairwise(edges):
        np.cumsum(values[first:stop], axis=0, out=sums[first:stop])
    return sums


def _targets(y: Floats, task: Task) -> NDArray[np.int64] | Float32s:
    if task is Task.CLASSIFICATION:
        return y.astype(np.int64)
    if len(y) == 0:
        return y.astype(np.float32)
    deviation = np.sqrt(max(float(np.var(y)), 1e-6))
    scaled: Float32s = ((y - np.mean(y)) / deviation).astype(np.float32)
    return scaled
