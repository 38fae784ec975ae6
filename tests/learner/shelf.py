"""A shelf in memory, and a partition that stops, starts, spills and replays over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from streammaml.config import Config
from streammaml.events import Batch, Decisions, Floats, Ints
from streammaml.initialization import Initialization
from streammaml.learner import Learner
from streammaml.learner.kernels.callbacks import Network
from streammaml.learner.snapshot import (
    DETECTOR,
    LIGHT,
    WEIGHTS,
    Format,
    Item,
    context_of,
    is_expired,
    key_of,
)
from tests.learner.build import Stream


class DictShelf:
    """The values of the last barrier, and over them what was spilled since."""

    def __init__(self) -> None:
        self.durable: dict[bytes, bytes] = {}
        self.scratch: dict[bytes, bytes | None] = {}
        self.takes: list[int] = []
        self.spills = 0

    def take(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        assert len(set(keys)) == len(keys)
        self.takes.append(len(keys))
        found = {key: self.scratch.get(key, self.durable.get(key)) for key in keys}
        for key in keys:
            if key in self.scratch and self.scratch[key] is None:
                found[key] = None
        return {key: value for key, value in found.items() if value is not None}

    def spill(self, items: Iterable[Item]) -> None:
        for key, value in items:
            self.spills += 1
            self.scratch[key] = value

    def barrier(self, items: Iterable[Item]) -> None:
        """Make what was spilled, and over it these, durable."""
        for key, value in {**self.scratch, **dict(items)}.items():
            if value is None:
                self.durable.pop(key, None)
            else:
                self.durable[key] = value
        self.scratch.clear()

    def crash(self) -> None:
        self.scratch.clear()


def meaning(config: Config, key: bytes, value: bytes) -> bytes:
    """A stored value without the version that a context at θ had when it was written."""
    if not key.startswith(LIGHT):
        return value
    record = Format(config).unpack([key], [value])
    record["version"][record["at_init"] == 1] = 0
    return record.tobytes()


@dataclass
class Log:
    """A stream with offsets and times, and where initializations were swapped."""

    stream: Stream
    offsets: Ints
    times: Floats
    swaps: dict[int, Initialization] = field(default_factory=dict)  # by place

    def __len__(self) -> int:
        return len(self.stream)

    def batch(self, first: int, last: int) -> Batch:
        part = self.stream.batch(first, last)
        return Batch(
            contexts=part.contexts,
            x=part.x,
            y=part.y,
            offsets=self.offsets[first:last].copy(),
            times=self.times[first:last].copy(),
        )

    def edges(self, first: int, last: int, cuts: Sequence[int]) -> list[int]:
        inner = {c for c in (*cuts, *self.swaps) if first < c < last}
        return sorted({first, *inner, last})


def advance(
    learner: Learner, log: Log, first: int, last: int, cuts: Sequence[int] = ()
) -> list[tuple[int, Decisions]]:
    """Play events first … last−1, swapping where the log says; decisions with their first place."""
    edges = log.edges(first, last, cuts)
    played = []
    for a, b in pairwise(edges):
        if a in log.swaps:
            learner.swap(log.swaps[a])
        played.append((a, learner.step(log.batch(a, b))))
    return played


class Partition:
    """A learner on a shelf that can be stopped and recovered at any event."""

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        log: Log,
        network: Network | None = None,
    ) -> None:
        self.config, self.initialization, self.log = config, initialization, log
        self.network = network
        self.shelf = DictShelf()
        self.learner = Learner(config, initialization, self.shelf, network)
        self.barrier_at = 0
        self.place = 0

    def play(self, last: int, cuts: Sequence[int] = ()) -> list[tuple[int, Decisions]]:
        played = advance(self.learner, self.log, self.place, last, cuts)
        self.place = last
        return played

    def barrier(self) -> None:
        self.shelf.barrier(self.learner.snapshot())
        self.learner.mark()
        self.barrier_at = self.place

    def sweep(self) -> None:
        """Drop what expired from memory, and from the shelf what is not in memory."""
        self.shelf.spill((key, None) for key in self.learner.sweep())
        clock_s, ttl_s = self.learner.clock_s, self.config.state.ttl_s
        for key in list(self.shelf.durable):
            if key[:2] == LIGHT and context_of(key) not in self.learner:
                newest = self.shelf.take([key]).get(key)
                if newest is not None and is_expired(newest, clock_s, ttl_s):
                    name = context_of(key)
                    kinds = (LIGHT, WEIGHTS, DETECTOR)
                    self.shelf.spill((key_of(kind, name), None) for kind in kinds)

    def restart(self, cuts: Sequence[int] = ()) -> None:
        """Lose the memory, recover the barrier, and replay to where it was."""
        self.shelf.crash()
        self.learner = Learner(self.config, self.initialization, self.shelf, self.network)
        own = {k: v for k, v in self.shelf.durable.items() if k.startswith(b"@")}
        self.learner.restore(own)
        advance(self.learner, self.log, self.barrier_at, self.place, cuts)

    def everything(self) -> dict[bytes, bytes]:
        """All values as of now."""
        self.barrier()
        return dict(self.shelf.durable)


def with_times(stream: Stream, seed: int, swaps: dict[int, Initialization] | None = None) -> Log:
    """Offsets with gaps; times that run forward with jumps, run back, and are missing."""
    rng = np.random.default_rng(seed)
    size = len(stream)
    offsets = 5 + np.cumsum(rng.integers(1, 4, size))
    steps = rng.exponential(1.0, size) * np.where(rng.random(size) < 0.02, 50, 1)
    times = 1e9 + np.cumsum(steps) - rng.exponential(2.0, size)
    times[rng.random(size) < 0.1] = np.nan
    return Log(stream, offsets.astype(np.int64), times, swaps or {})
