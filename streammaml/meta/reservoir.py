"""What the outer loop keeps of the stream: a bounded reservoir of episodes, and what is set apart.

Balanced over contexts: over a bound, a context with the most episodes gives one up. Within a
context the newest half stays, the older half is thinned at random.

Rule: never trained on are the newest tenth of each context's episodes and, from 20 contexts on,
every context whose hash is a multiple of ten. What is judged by was never trained on *before*
either: each context has a cut on its line of labels. Episodes that end at or before the cut train,
those that begin at or after it judge, one that straddles it does neither, and it only moves
forward. A context that is set apart late keeps the cut that it had, and so does one that was
dropped, or that is read again after a restart (:meth:`Reservoir.remember`).

    u = [z_g, z_c]   both from raw x by the scalers that the episode carries, as in training time
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from heapq import nlargest

import numpy as np
import torch
from numpy.typing import NDArray

from streammaml.config import Config
from streammaml.events import (
    QUERY,
    SUPPORT_LEAST,
    Context,
    Episode,
    Float32s,
    Ints,
    Label,
    Task,
    canonical,
)
from streammaml.meta.cuts import (
    Marks,
    hash_of,
    is_apart,
    keep,
    newest,
    packed,
    unpacked,
)
from streammaml.meta.episodes import HELD_OUT_CONTEXTS_LEAST, RECENT, Z_LIMIT, Episodes, Held
from streammaml.meta.kept import Item, Kept, Line
from streammaml.meta.losses import Examples


class Refused(StrEnum):
    """Why an episode was not taken in."""

    DUPLICATE = "duplicate"
    """Neither its offset nor its labels are beyond its context's: read again after a restart."""
    CLASSES = "classes"
    """It holds a class beyond the K slots."""
    LATE = "late"
    """Too few of its support labels had arrived when its queries were asked."""
    NONFINITE = "nonfinite"
    """Its numbers are not finite once they are scaled."""
    OVERSIZE = "oversize"


@dataclass(frozen=True, slots=True)
class _Index:
    """What a draw needs, flat; E contexts with something to train on."""

    train: list[Item]  # sorted by context, oldest first
    first: Ints  # [E]
    recent: Ints  # [E], the first one within the last 1,000 labels
    stop: Ints  # [E]
    mass: NDArray[np.float64]  # [E], running sum of √episodes
    held_out: list[tuple[int, Item]]  # with the index of the context


class Reservoir:
    """Episodes by context. What is in it follows from what was added, in order, and the seed."""

    def __init__(self, config: Config) -> None:
        self._limits = config.outer
        self._task = config.label.task
        self._outputs = config.label.slots
        self._capacity = config.learner.support_size
        self._open = self._task is Task.CLASSIFICATION and not config.label.classes
        self._classes: list[Label] = list(config.label.classes)
        self._slots = {canonical(label): i for i, label in enumerate(self._classes)}
        self._rng = np.random.default_rng(config.outer.seed)
        self._contexts: dict[Context, Kept] = {}
        self._marks: dict[int, Marks] = {}  # by hash, of contexts that are not there
        # Contexts by how many episodes they have, so that the largest is found at once.
        self._by_size: dict[int, dict[Context, None]] = {}
        self._largest = self._size = self._bytes = self._arrivals = 0
        self.sets_apart = False
        """Whether there were enough contexts to set some apart, now or ever."""
        self.remembers = False
        """Whether it was told what was trained on in the process before."""
        self._index: _Index | None = None
        self.refused = dict.fromkeys(Refused, 0)

    def __len__(self) -> int:
        """Episodes."""
        return self._size

    @property
    def contexts(self) -> int:
        return len(self._contexts)

    @property
    def nbytes(self) -> int:
        return self._bytes

    @property
    def trainable(self) -> int:
        """Episodes to train on: the others judge, or overlap one that does."""
        return len(self._indexed().train)

    @property
    def classes(self) -> tuple[Label, ...]:
        """Classes by slot where the schema leaves them open; empty where it lists them."""
        return tuple(self._classes) if self._open else ()

    def follow(self, classes: Sequence[Label]) -> None:
        """Give classes the slots that an initialization's outputs have; others come after them.

        Episodes of a class for which no slot is left go.
        """
        if not self._open:
            return
        before = [canonical(label) for label in self._classes]
        labels = {canonical(label): label for label in [*classes, *self._classes]}
        self._classes = list(labels.values())[: self._outputs]
        self._slots = {canonical(label): i for i, label in enumerate(self._classes)}
        moved = np.array([self._slots.get(name, -1) for name in before], np.int64)
        if np.array_equal(moved, np.arange(len(moved))):
            return
        for context, kept in list(self._contexts.items()):
            for item in list(kept.items):
                item.targets = moved[item.targets.astype(np.int64)]
                if (item.targets < 0).any():
                    self._remove(context, kept.items.index(item))

    def add(self, episode: Episode, trained: bool = False) -> Refused | None:
        """Take an episode in, or say why not, and count it.

        ``trained``: it may have been trained on, and all of its context before it.
        """
        refused = self._add(episode)
        kept = self._contexts.get(episode.context)
        if refused is not None:
            self.refused[refused] += 1
        elif trained and kept is not None:
            kept.cut = max(kept.cut, kept.end)
        return refused

    def cuts(self) -> Ints:
        """Up to where each context was trained on, for :meth:`remember` [M, 3]."""
        there = {hash_of(c): kept.marked() for c, kept in self._contexts.items() if kept.cut}
        return packed(newest({**self._marks, **there}))

    def remember(self, cuts: Ints, apart: bool) -> None:
        """What was trained on in a process before, and whether it set contexts apart.

        ValueError if these are no cuts; then nothing moves.
        """
        marks = unpacked(cuts)
        for context, kept in self._contexts.items():
            own = marks.pop(hash_of(context), None)
            if own is not None:
                kept.remember(own)
        self._marks |= marks
        self.sets_apart |= apart
        self.remembers, self._index = True, None

    def doubt(self) -> None:
        """All that is there may have been trained on: nothing of it judges any more."""
        for kept in self._contexts.values():
            kept.cut = max(kept.cut, kept.end)
        self._index = None

    def train(self, rng: np.random.Generator, count: int) -> Episodes | None:
        """Draw a meta-batch with replacement; None where there is nothing to train on.

        Contexts ∝ √episodes; half of the draws are among those of the last 1,000 labels.
        """
        index = self._indexed()
        if not index.train:
            return None
        chosen = np.searchsorted(index.mass, rng.random(count) * index.mass[-1], side="right")
        recent = rng.random(count) < 0.5
        earliest = np.where(recent, index.recent[chosen], index.first[chosen])
        drawn = rng.integers(earliest, index.stop[chosen])
        return self._stack([index.train[i] for i in drawn.tolist()])

    def held_out(self, limit: int) -> Held | None:
        """The newest ``limit`` episodes to judge by; None where there is none."""
        newest = nlargest(limit, self._indexed().held_out, key=lambda pair: pair[1].arrival)
        if not newest:
            return None
        contexts = np.array([context for context, _ in newest], np.int64)
        return Held(self._stack([item for _, item in newest]), contexts)

    def _add(self, episode: Episode) -> Refused | None:
        kept = self._contexts.get(episode.context)
        line = None if kept is None else kept.lines.get(episode.partition)
        if line is not None and line.has(episode.labels, int(episode.label_offsets[-1])):
            return Refused.DUPLICATE
        used = _arrived(episode, self._capacity)
        if used is None:
            return Refused.LATE
        slots = self._targets(episode)
        if slots is None:
            return Refused.CLASSES
        inputs = _inputs(episode)[used]
        if not (np.isfinite(inputs).all() and np.isfinite(slots).all()):
            return Refused.NONFINITE
        support = len(used) - (len(episode.y) - episode.support)
        item = Item(inputs, slots[used], support, 0, 0, self._arrivals)
        if item.nbytes > self._byte_limit:
            return Refused.OVERSIZE
        self._place(episode, item)
        self._shrink(episode.context)
        return None

    @property
    def _byte_limit(self) -> float:
        return self._limits.reservoir_mb * 1e6

    def _place(self, episode: Episode, item: Item) -> None:
        """Append the episode to its context, on one line of labels across partitions."""
        context = episode.context
        kept = self._contexts.get(context)
        if kept is None:
            marks = self._marks.pop(hash_of(context), {})
            kept = self._contexts[context] = Kept(apart=is_apart(context), marks=marks)
        line = kept.lines.get(episode.partition)
        if line is None or episode.labels <= line.labels:  # a new one, or counted anew
            origin = kept.end - max(0, episode.labels - len(episode.y))
            line = Line(origin) if line is None else replace(line, origin=origin)
            kept.enter(episode.partition, line, episode.labels)
        line.take(episode.labels, int(episode.label_offsets[-1]))
        item.end = line.origin + episode.labels
        item.begin = item.end - len(episode.y)
        kept.end = max(kept.end, item.end)
        kept.items.append(item)
        self._arrivals += 1
        self._count(context, 1, item.nbytes)

    def _shrink(self, context: Context) -> None:
        if len(self._contexts[context].items) > self._limits.reservoir_context:
            self._thin(context)
        while self._size > self._limits.reservoir_total or self._bytes > self._byte_limit:
            self._thin(next(iter(self._by_size[self._largest])))

    def _thin(self, context: Context) -> None:
        older = max(1, len(self._contexts[context].items) // 2)
        self._remove(context, int(self._rng.integers(older)))

    def _remove(self, context: Context, place: int) -> None:
        item = self._contexts[context].items.pop(place)
        self._count(context, -1, -item.nbytes)

    def _count(self, context: Context, episodes: int, nbytes: int) -> None:
        """Keep the sums in step with an episode that came or went."""
        self._index = None
        self._size += episodes
        self._bytes += nbytes
        size = len(self._contexts[context].items)
        bucket = self._by_size.get(size - episodes, {})
        bucket.pop(context, None)
        if not bucket:
            self._by_size.pop(size - episodes, None)
        if size == 0:
            kept = self._contexts.pop(context)
            if kept.cut:
                keep(self._marks, hash_of(context), kept.marked())
        else:
            self._by_size.setdefault(size, {})[context] = None
        while self._largest and self._largest not in self._by_size:
            self._largest -= 1
        self._largest = max(self._largest, size)

    def _targets(self, episode: Episode) -> Ints | Float32s | None:
        """Scaled values, or slots of the reservoir; None where a class gets none."""
        if self._task is Task.REGRESSION:
            mean, deviation = episode.y_scale
            with np.errstate(all="ignore"):
                scaled: Float32s = ((episode.y - mean) / deviation).astype(np.float32)
            return scaled
        names = [canonical(label) for label in episode.classes]
        for name, label in zip(names, episode.classes, strict=True):
            if self._open and name not in self._slots and len(self._classes) < self._outputs:
                self._slots[name] = len(self._classes)
                self._classes.append(label)
        moved = np.array([self._slots.get(name, -1) for name in names], np.int64)
        theirs = episode.y.astype(np.int64)
        if len(names) == 0 or theirs.max() >= len(names):
            return None
        slots: Ints = moved[theirs]
        return None if (slots < 0).any() else slots

    def _indexed(self) -> _Index:
        if self._index is None:
            # Once set apart they stay so, even when fewer than 20 contexts are left.
            self.sets_apart |= len(self._contexts) >= HELD_OUT_CONTEXTS_LEAST
            self._index = _index_of(
                kept.split(self.sets_apart and kept.apart) for kept in self._contexts.values()
            )
        return self._index

    def _stack(self, items: Sequence[Item]) -> Episodes:
        """Pad episodes to one size; padding has weight 0."""
        count, width = len(items), items[0].inputs.shape[1]
        inputs = np.zeros((count, self._capacity + QUERY, width), np.float32)
        targets = np.zeros(inputs.shape[:2], items[0].targets.dtype)
        weights = np.zeros(inputs.shape[:2], np.float32)
        for t, item in enumerate(items):
            n = item.support
            for own, place in ((slice(0, n), 0), (slice(n, n + QUERY), self._capacity)):
                size = len(item.targets[own])
                inputs[t, place : place + size] = item.inputs[own]
                targets[t, place : place + size] = item.targets[own]
                weights[t, place : place + size] = 1
        u, y, w = torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(weights)
        classes = len(self._classes) if self._open else 0
        support, query = slice(None, self._capacity), slice(self._capacity, None)
        return Episodes(
            Examples(u[:, support], y[:, support], w[:, support], classes),
            Examples(u[:, query], y[:, query], w[:, query], classes),
        )


def _index_of(splits: Iterable[tuple[list[Item], list[Item]]]) -> _Index:
    train: list[Item] = []
    held_out: list[tuple[int, Item]] = []
    bounds: list[tuple[int, int, int]] = []
    for context, (own, apart) in enumerate(splits):
        held_out += [(context, item) for item in apart]
        if not own:
            continue
        earliest = max(item.end for item in own) - RECENT
        recent = max(1, sum(item.begin >= earliest for item in own))
        train += own
        bounds.append((len(train) - len(own), len(train) - recent, len(train)))
    first, since, stop = np.array(bounds, np.int64).reshape(-1, 3).T
    return _Index(train, first, since, stop, np.sqrt(stop - first).cumsum(), held_out)


def _arrived(episode: Episode, capacity: int) -> Ints | None:
    """Examples to use: the newest support whose labels came before the queries, and these.

    None where less than two of the support are left.
    """
    n = episode.support
    asked = episode.offsets[n:].min()
    known = np.flatnonzero((episode.label_offsets[:n] <= asked) | (asked < 0))[-capacity:]
    if len(known) < SUPPORT_LEAST:
        return None
    return np.concatenate([known, np.arange(n, len(episode.y))])


def _inputs(episode: Episode) -> Float32s:
    """u [n + Q, 2D]; a missing number and a constant one are 0."""
    x = episode.x.astype(np.float64)[:, None]  # [n + Q, 1, D]
    with np.errstate(over="ignore"):
        z = np.clip((x - episode.shift) * episode.inverse, -Z_LIMIT, Z_LIMIT)  # [n + Q, 2, D]
    u: Float32s = np.where(np.isnan(x), 0.0, z).astype(np.float32).reshape(len(x), -1)
    return u
