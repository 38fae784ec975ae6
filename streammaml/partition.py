"""One partition's journey from records to messages: decode, collate, step, encode.

Rule: every record leaves here as a prediction or as a dead letter, in offset order, and what was
done is returned as a value; publishing and counting are the worker's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from streammaml.backends.codec import EventDecoder, OutputEncoder, timestamp_s
from streammaml.backends.ports import Message, Partition, Record
from streammaml.backends.wire_episodes import encode_episode
from streammaml.config import Config
from streammaml.events import Batch, Decisions, Episode, Event
from streammaml.learner import Learner
from streammaml.learner.schema import Rejected

EpisodeResult = Literal["emitted", "dropped", "oversize"]
BURST_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What became of some consecutive records of one partition."""

    partition: Partition
    next_offset: int
    records: int
    events: list[Event]
    batch: Batch
    decisions: Decisions
    rejected: list[Rejected]
    unknown_categories: int
    messages: list[Message]
    episodes: dict[EpisodeResult, int]
    """What became of the windows that the batch completed."""
    live: bool
    """False: published before, and only learnt again."""
    limit_exceeded: bool
    """Too many of the latest records are bad; ``next_offset`` is right after the last one."""


class EpisodeBudget:
    """Lets at most so many episodes a second through, after a burst of a few seconds' worth."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._left = self._most = max(1.0, BURST_S * per_second)
        self._at = time.monotonic()

    def take(self, wanted: int) -> int:
        """How many of ``wanted`` may go now."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        taken = min(wanted, int(self._left))
        self._left -= taken
        return taken


class RejectionLimit:
    """Whether more than a share of the latest records was bad."""

    def __init__(self, window: int, minimum: int, share: float) -> None:
        self._bad: deque[bool] = deque(maxlen=window)
        self._count = 0
        self._minimum = minimum
        self._share = share

    def add(self, bad: bool) -> bool:
        """Count one record; return whether the limit is exceeded now."""
        if len(self._bad) == self._bad.maxlen:
            self._count -= self._bad[0]
        self._bad.append(bad)
        self._count += bad
        return len(self._bad) >= self._minimum and self._count > self._share * len(self._bad)

    def add_good(self, count: int) -> None:
        for _ in range(min(count, self._bad.maxlen or 0)):
            self.add(False)


class PartitionPlayer:
    """The learner of one partition with its wire formats; makes no messages unless ``publish``."""

    def __init__(
        self,
        partition: Partition,
        config: Config,
        learner: Learner,
        limit: RejectionLimit,
        publish: bool = True,
        budget: EpisodeBudget | None = None,
    ) -> None:
        self._publish = publish
        self._config = config
        self._budget = budget
        self._repeats = config.worker.delivery == "at_least_once"
        self._timed = config.state.ttl_s > 0
        self._horizon_s = config.state.clock_horizon_s
        self._partition = partition
        self._decode = EventDecoder(
            config.features, config.worker.format, config.worker.max_record_bytes
        )
        self._encoder = OutputEncoder(config)
        self._limit = limit
        self.learner = learner

    def replay(self, records: Sequence[Record]) -> Played:
        """Learn again what was published already: no message, no limit."""
        return self._play(records, live=False)

    def play(self, records: Sequence[Record]) -> Played:
        """Carry records through; stops at the one that exceeds the rejection limit."""
        return self._play(records, live=True)

    def unreadable(self, offset: int, next_offset: int) -> Message:
        """The dead letter of offsets that the client cannot decode, by reference."""
        return self._encoder.unreadable(self._partition, offset, next_offset)

    def _play(self, records: Sequence[Record], live: bool) -> Played:
        events, places, undecoded = self._decode.many(records)
        collated = self.learner.collate(events)
        rejected = [Rejected(place, error.reason, str(error)) for place, error in undecoded]
        rejected += [r._replace(place=places[r.place]) for r in collated.rejected]
        rejected.sort()
        self._exceeded = False
        end = self._check_limit(rejected, len(records)) if live else len(records)
        if end < len(records):
            rejected = [r for r in rejected if r.place < end]
        kept = [i for i in collated.kept if places[i] < end]
        batch = self._stamped(collated.batch, [records[places[i]] for i in kept], events, kept)
        if self._repeats:
            kept, batch = self._without_repeats(kept, batch)
        own = [events[i] for i in kept]
        kept = [places[i] for i in kept]
        decisions = self.learner.step(batch)
        messages: list[Message] = []
        episodes: dict[EpisodeResult, int] = {}
        if live and self._publish:
            messages = self._messages(records, kept, own, batch, decisions, rejected)
            sent, episodes = self._episodes(*self.learner.episodes(self._partition.index))
            messages += sent
        return Played(
            partition=self._partition,
            next_offset=records[end - 1].offset + 1,
            records=end,
            events=own,
            batch=batch,
            decisions=decisions,
            rejected=rejected,
            unknown_categories=collated.unknown_categories,
            messages=messages,
            episodes=episodes,
            live=live,
            limit_exceeded=end < len(records) or self._exceeded,
        )

    def _stamped(
        self, batch: Batch, records: Sequence[Record], events: Sequence[Event], kept: Sequence[int]
    ) -> Batch:
        """The batch of the kept events with their offsets and, where time counts, times."""
        size = len(kept)
        whole = size == len(batch.contexts)
        offsets = np.array([r.offset for r in records], np.int64)
        times = np.full(size, np.nan)
        if self._timed:
            for i, (record, place) in enumerate(zip(records, kept, strict=True)):
                given, sent = timestamp_s(events[place]), record.timestamp / 1000
                times[i] = sent if given is None else min(given, sent + self._horizon_s)
        return Batch(
            contexts=batch.contexts if whole else batch.contexts[:size],
            x=batch.x if whole else batch.x[:size],
            y=batch.y if whole else batch.y[:size],
            offsets=offsets,
            times=times,
        )

    def _without_repeats(self, kept: list[int], batch: Batch) -> tuple[list[int], Batch]:
        """Leave out what a context has learnt already: its prediction went out before its state."""
        new = [
            i
            for i, (context, offset) in enumerate(
                zip(batch.contexts, batch.offsets.tolist(), strict=True)
            )
            if offset > self.learner.last_offset(context)
        ]
        if len(new) == len(kept):
            return kept, batch
        return [kept[i] for i in new], Batch(
            contexts=[batch.contexts[i] for i in new],
            x=batch.x[new],
            y=batch.y[new],
            offsets=batch.offsets[new],
            times=batch.times[new],
        )

    def _check_limit(self, rejected: Sequence[Rejected], records: int) -> int:
        """Count good and bad records in their order; return how many may be played."""
        done = 0
        for place in (r.place for r in rejected):
            self._limit.add_good(place - done)
            done = place + 1
            if self._limit.add(True):
                self._exceeded = True
                return done
        self._limit.add_good(records - done)
        return records

    def _episodes(
        self, windows: Sequence[Episode], overflown: int
    ) -> tuple[list[Message], dict[EpisodeResult, int]]:
        """Those that the budget lets through, as messages."""
        if self._budget is None:
            return [], {}
        allowed = self._budget.take(len(windows))
        found = [encode_episode(window, self._config) for window in windows[:allowed]]
        sent = [message for message in found if message is not None]
        dropped = overflown + len(windows) - allowed
        counts: dict[EpisodeResult, int] = {
            "emitted": len(sent),
            "dropped": dropped,
            "oversize": len(found) - len(sent),
        }
        return sent, counts

    def _messages(
        self,
        records: Sequence[Record],
        kept: Sequence[int],
        events: Sequence[Event],
        batch: Batch,
        decisions: Decisions,
        rejected: Sequence[Rejected],
    ) -> list[Message]:
        offsets = [records[place].offset for place in kept]
        labels = self.learner.labels
        messages = self._encoder.predictions(
            self._partition, offsets, events, batch, decisions, labels.classes, labels.names
        )
        messages += self._encoder.adaptations(self._partition, offsets, events, batch, decisions)
        messages += [
            self._encoder.dead_letter(self._partition, records[r.place], r.reason, r.message)
            for r in rejected
        ]
        return messages
