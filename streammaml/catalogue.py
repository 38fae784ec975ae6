"""What the topic ``initializations`` holds: the versions, and which of them is current.

Rule: a record that cannot be used changes nothing but the count of versions: the current one stays
what it was. No number is ever given twice, not that of a deleted version either.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from streammaml.backends.ports import Record, Tail
from streammaml.backends.wire_initializations import (
    CURRENT,
    Published,
    key_of_record,
    read_published,
)
from streammaml.errors import InitializationError, UnavailableError
from streammaml.initialization import NETWORK

SLICE_S = 0.2
COUNTED_MOST = 2**48
"""Above it no number counts as given: whatever a record claims, there is room for the next."""


class Entry(NamedTuple):
    """What is known of a version that is there, without its tensors."""

    version: int
    published_s: float
    size: int
    parent: int = -1
    by: str = ""
    report: dict[str, Any] = {}  # noqa: RUF012  # a tuple's default, never written to
    digest: str = ""
    error: str = ""
    """Why it cannot be used; empty if it can."""


class Refused(NamedTuple):
    """A record that cannot be used."""

    key: str
    offset: int
    error: str


class Catalogue:
    """The latest of each key, as far as the records were read."""

    def __init__(self, keep: int | None = None) -> None:
        """Keep the tensors of the version ``keep``, too."""
        self._keep = keep
        self.entries: dict[int, Entry] = {}
        self.current: Published | None = None
        self.current_s = 0.0
        self.current_offset = -1
        self.newest: Published | None = None
        """The one with the largest number among those that can be used."""
        self.kept: Published | None = None
        self.highest = 0
        """The largest number that was ever given."""

    def read(self, records: Sequence[Record]) -> list[Refused]:
        """Take in records in their order; those that cannot be used are returned."""
        refused = []
        for record in records:
            key = key_of_record(record)
            if key is None:
                refused.append(Refused(repr((record.key or b"")[:40]), record.offset, "no version"))
                continue
            if isinstance(key, int):
                self._count(key)
            if record.value is None:
                self._delete(key)
                continue
            try:
                published = read_published(record)
            except InitializationError as error:
                refused.append(Refused(str(key), record.offset, str(error)))
                if isinstance(key, int):
                    self._refuse(key, record, str(error))
                continue
            self._take(key, record, published)
        return refused

    def _take(self, key: str | int, record: Record, published: Published) -> None:
        self._count(published.version)
        if key == CURRENT:
            self.current = published
            self.current_s, self.current_offset = record.timestamp / 1000, record.offset
            return
        assert record.value is not None
        self.entries[published.version] = Entry(
            published.version,
            record.timestamp / 1000,
            len(record.value),
            published.parent,
            published.by,
            dict(published.report),
            published.digest,
        )
        if self.newest is None or published.version >= self.newest.version:
            self.newest = published
        if published.version == self._keep:
            self.kept = published

    def _count(self, version: int) -> None:
        if version <= COUNTED_MOST:
            self.highest = max(self.highest, version)

    def _refuse(self, version: int, record: Record, error: str) -> None:
        size = len(record.value or b"")
        self.entries[version] = Entry(version, record.timestamp / 1000, size, error=error)
        self._forget(version)

    def _delete(self, key: str | int) -> None:
        if isinstance(key, int):
            self.entries.pop(key, None)
            self._forget(key)
        else:
            self.current = None

    def _forget(self, version: int) -> None:
        if self.newest is not None and self.newest.version == version:
            self.newest = None
        if version == self._keep:
            self.kept = None


def read_all(
    tail: Tail,
    take: Callable[[Sequence[Record]], object],
    stop: threading.Event,
    beat: Callable[[], None] = lambda: None,
    quiet_s: float = 30.0,
) -> None:
    """Read a tail up to the end that it had at first, or until ``stop``.

    UnavailableError if it gives nothing for ``quiet_s`` before it is there.
    """
    heard_at = time.monotonic()
    while not tail.caught_up and not stop.is_set():
        beat()
        if records := tail.poll(SLICE_S):
            take(records)
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > quiet_s:
            raise UnavailableError(f"Kafka gave nothing for {quiet_s:g} s of what it holds")


def loss_of(report: Mapping[str, Any], key: str, net: str = NETWORK) -> float | None:
    """A loss of one net out of a gate's report, which anyone may have written."""
    nets = report.get("nets")
    own = nets.get(net) if isinstance(nets, dict) else None
    value = own.get(key) if isinstance(own, dict) else None
    return float(value) if isinstance(value, int | float) else None
