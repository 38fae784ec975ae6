"""Replay events into a topic: at a rate, in part, and damaged where a drill wants that.

Rule: every damaged event is one that a worker of this configuration rejects, and no other is
touched. The same seed damages the same events.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, NamedTuple, Protocol

from streammaml.backends.codec import encoder
from streammaml.backends.files import WireEvent
from streammaml.backends.ports import Message
from streammaml.config import Config, Feature, FeatureType
from streammaml.events import Task

MAX_BATCH = 500
"""Events handed to the sink at once."""
BURST_S = 1.0
"""How much of a delay is caught up with: a sink that hung must not be flooded."""
PAUSE_S = 0.01
"""The shortest wait worth its cost; at a high rate several events go out after each."""
PROGRESS_S = 0.5
NO_CLASS = "no-such-class"
NO_EVENT = b"\xc1 not an event"
"""0xc1 begins neither JSON nor MessagePack."""


class Outlet(Protocol):
    """Where messages go; every Sink is one."""

    def send(self, messages: list[Message], /) -> None: ...


class Fed(NamedTuple):
    """How far it is. Rate in events a second, over all of it; 0 before any time has passed."""

    sent: int
    corrupted: int
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedPlan:
    """What to replay. No rate: as fast as the sink takes it."""

    name: str
    """Ids are ``name-row``, counted from 0 over all rows; an event that has one keeps it."""
    rate: float | None = None
    limit: int | None = None
    every: int = 1
    corrupt: float = 0.0
    seed: int = 0


def feed(
    events: Iterable[WireEvent | bytes],
    outlet: Outlet,
    config: Config,
    plan: FeedPlan,
    *,
    stop: threading.Event,
    clock: Callable[[], float],
    progress: Callable[[Fed], None] = lambda fed: None,
) -> Fed:
    """Send events until there are no more, the limit is reached, or ``stop``; say what was sent.

    ``clock`` gives monotonic seconds. ``progress`` is called about twice a second.
    """
    rows = islice(islice(enumerate(events), 0, None, plan.every), plan.limit)
    messages = _messages(rows, config, plan)
    pace = _Pace(plan.rate, clock())
    tally = _Tally(clock, progress)
    upcoming = list(islice(messages, 1))  # known, so that the end is not waited for
    while upcoming and not stop.is_set():
        due = pace.due(clock())
        if not due:
            stop.wait(pace.wait_s())
            continue
        batch = [*upcoming, *islice(messages, due - 1)]
        upcoming = list(islice(messages, 1))
        outlet.send([message for message, _ in batch])
        pace.spend(len(batch))
        tally.add(len(batch), sum(damaged for _, damaged in batch))
    return tally.finish()


class _Tally:
    """What was sent so far, told twice a second and at the end."""

    def __init__(self, clock: Callable[[], float], progress: Callable[[Fed], None]) -> None:
        self._clock = clock
        self._progress = progress
        self._begun_s = self._told_s = clock()
        self._sent = self._corrupted = 0

    def add(self, sent: int, corrupted: int) -> None:
        self._sent += sent
        self._corrupted += corrupted
        now_s = self._clock()
        if now_s - self._told_s >= PROGRESS_S:
            self._told_s = now_s
            self._progress(self._fed(now_s))

    def finish(self) -> Fed:
        fed = self._fed(self._clock())
        self._progress(fed)
        return fed

    def _fed(self, now_s: float) -> Fed:
        elapsed_s = now_s - self._begun_s
        return Fed(self._sent, self._corrupted, self._sent / elapsed_s if elapsed_s else 0.0)


class _Pace:
    """A token bucket: tokens come at the rate, and no more than a burst of them is kept."""

    def __init__(self, rate: float | None, now_s: float) -> None:
        self._rate = rate
        self._tokens = 1.0
        self._at_s = now_s

    def due(self, now_s: float) -> int:
        """Events that may go out now."""
        if self._rate is None:
            return MAX_BATCH
        most = max(1.0, self._rate * BURST_S)
        self._tokens = min(most, self._tokens + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        return min(MAX_BATCH, int(self._tokens))

    def spend(self, events: int) -> None:
        self._tokens -= events

    def wait_s(self) -> float:
        """Seconds until the next event is due, and a little longer at high rates."""
        assert self._rate is not None, "without a rate something is always due"
        return max(PAUSE_S, (1.0 - self._tokens) / self._rate)


def _messages(
    rows: Iterable[tuple[int, WireEvent | bytes]], config: Config, plan: FeedPlan
) -> Iterator[tuple[Message, bool]]:
    """Each row's message, and whether it was damaged."""
    encode = encoder(config.worker.format)
    topic = config.topics.events
    rng = random.Random(plan.seed)
    damages = cycle(damages_for(config))
    for row, event in rows:
        damage = next(damages) if rng.random() < plan.corrupt else None
        if isinstance(event, bytes):
            value = event if damage is None else NO_EVENT
            yield Message(topic, None, value), damage is not None
            continue
        event = {"id": f"{plan.name}-{row}", **event}
        if damage is not None:
            damaged = damage(event)
            value = damaged if isinstance(damaged, bytes) else encode(damaged)
            yield Message(topic, _key(damaged), value), True
        else:
            yield Message(topic, _key(event), encode(event)), False


def _key(event: WireEvent | bytes) -> bytes | None:
    context = None if isinstance(event, bytes) else event.get("context")
    return None if context is None else str(context).encode()


Damage = Callable[[WireEvent], WireEvent | bytes]


def damages_for(config: Config) -> list[Damage]:
    """The ways to damage an event that a worker of this configuration is sure to reject."""
    damages: list[Damage] = [
        lambda event: NO_EVENT,
        lambda event: {**event, "features": "not features"},
        lambda event: {key: value for key, value in event.items() if key != "context"},
        lambda event: {**event, "label": _wrong_label(config)},
    ]
    numbers = [f for f in config.features if f.type is FeatureType.NUMBER]
    if numbers:
        damages.insert(2, lambda event: _with(event, numbers[0], "not a number"))
        damages.insert(3, lambda event: _with(event, numbers[0], 1e300))
    return damages


def _with(event: WireEvent, feature: Feature, value: Any) -> WireEvent:
    return {**event, "features": {**(event.get("features") or {}), feature.name: value}}


def _wrong_label(config: Config) -> Any:
    """A class outside the closed list, a text for a value; else what is no label at all."""
    if config.label.task is Task.REGRESSION:
        return "not a number"
    if config.label.classes and NO_CLASS not in config.label.classes:
        return NO_CLASS
    return ["not a label"]
