"""Offsets that the broker gives, but nobody can read: tried again, and passed over in the end."""

from __future__ import annotations

import structlog

from streammaml.backends.ports import Partition
from streammaml.errors import StoreError, UnreadableError

TRIES = 3

log = structlog.get_logger(__name__)


class Unreadable:
    """The latest such offset of each partition, and how often it was tried."""

    def __init__(self, state_topic: str) -> None:
        self._state_topic = state_topic
        self._found: dict[Partition, tuple[int, int]] = {}  # offset, tries

    def note(self, error: UnreadableError) -> Partition | None:
        """Count a try; the partition of events that it is in.

        Of ``state``, where nothing may be passed over: None, and StoreError at the last try.
        """
        partition = Partition(error.topic, error.partition)
        where, tries = self._found.get(partition, (-1, 0))
        tries = tries + 1 if where == error.offset else 1
        self._found[partition] = (error.offset, tries)
        log.warning(
            "unreadable",
            topic=partition.topic,
            partition=partition.index,
            offset=error.offset,
            tries=tries,
            why=str(error),
        )
        if partition.topic != self._state_topic:
            return partition
        if tries < TRIES:
            return None
        raise StoreError(
            f"offset {error.offset} of partition {partition.index} of {partition.topic!r} "
            f"cannot be read: {error}. A worker that still has its folder may not need it; "
            "else start anew with another topics.state"
        )

    def is_given_up(self, partition: Partition, offset: int) -> bool:
        """Whether it was tried often enough."""
        where, tries = self._found.get(partition, (-1, 0))
        return where == offset and tries >= TRIES

    def passed_over(self, partition: Partition, until: int) -> None:
        """Events are read on from ``until``."""
        offset, _ = self._found.pop(partition)
        log.error("passed_over", partition=partition.index, offset=offset, until=until)
