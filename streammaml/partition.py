"""One partition's journey from records to messages: decode, collate, step, encode.

Rule: every record leaves here as a prediction or as a dead letter, in offset order, and what was
done is returned as a value; publishing and counting are the worker's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from streammaml.backends.codec import EventDecoder, OutputEncoder
from streammaml.backends.ports import Message, Partition, Record
from streammaml.config import Config
from streammaml.events import Batch, Decisions, Event
from streammaml.initialization import Initialization
from streammaml.learner import Learner
from streammaml.learner.schema import Rejected


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
    limit_exceeded: bool
    """Too many of the latest records are bad; ``next_offset`` is right after the last one."""


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
        initialization: Initialization,
        limit: RejectionLimit,
        publish: bool = True,
    ) -> None:
        self._publish = publish
        self._partition = partition
        self._decode = EventDecoder(
            config.features, config.worker.format, config.worker.max_record_bytes
        )
        self._encoder = OutputEncoder(config)
        self._limit = limit
        self.learner = Learner(config, initialization)

    def play(self, records: Sequence[Record]) -> Played:
        """Carry records through; stops at the one that exceeds the rejection limit."""
        events, places, undecoded = self._decode.many(records)
        collated = self.learner.collate(events)
        rejected = [Rejected(place, error.reason, str(error)) for place, error in undecoded]
        rejected += [r._replace(place=places[r.place]) for r in collated.rejected]
        rejected.sort()
        end = self._check_limit(rejected, len(records))
        kept = [places[i] for i in collated.kept]
        batch = collated.batch
        if end < len(records):
            rejected = [r for r in rejected if r.place < end]
            kept = [place for place in kept if place < end]
            batch = Batch(
                contexts=batch.contexts[: len(kept)],
                x=batch.x[: len(kept)],
                y=batch.y[: len(kept)],
            )
        own = [events[i] for i in collated.kept[: len(kept)]]
        decisions = self.learner.step(batch)
        return Played(
            partition=self._partition,
            next_offset=records[end - 1].offset + 1,
            records=end,
            events=own,
            batch=batch,
            decisions=decisions,
            rejected=rejected,
            unknown_categories=collated.unknown_categories,
            messages=self._messages(records, kept, own, batch, decisions, rejected),
            limit_exceeded=end < len(records) or self._exceeded,
        )

    def _check_limit(self, rejected: Sequence[Rejected], records: int) -> int:
        """Count good and bad records in their order; return how many may be played."""
        self._exceeded = False
        done = 0
        for place in (r.place for r in rejected):
            self._limit.add_good(place - done)
            done = place + 1
            if self._limit.add(True):
                self._exceeded = True
                return done
        self._limit.add_good(records - done)
        return records

    def _messages(
        self,
        records: Sequence[Record],
        kept: Sequence[int],
        events: Sequence[Event],
        batch: Batch,
        decisions: Decisions,
        rejected: Sequence[Rejected],
    ) -> list[Message]:
        if not self._publish:
            return []
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
