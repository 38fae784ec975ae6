"""The log of one partition, and the transactions that write to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from streammaml.backends.ports import Headers, Partition


class MemoryRecord(NamedTuple):
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Fate(Enum):
    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(eq=False, slots=True)
class Transaction:
    fate: Fate = Fate.OPEN
    touched: set[Partition] = field(default_factory=set)


class Entry(NamedTuple):
    record: MemoryRecord | None  # None: the marker that ends a transaction
    transaction: Transaction | None


@dataclass(slots=True)
class Log:
    """Offset ``beginning + i`` is ``entries[i]``: compaction leaves empty entries."""

    beginning: int = 0
    entries: list[Entry] = field(default_factory=list)
    open: dict[Transaction, int] = field(default_factory=dict)
    damaged: list[range] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.beginning + len(self.entries)

    @property
    def stable_end(self) -> int:
        """Where the first open transaction began, or the end."""
        return min(self.open.values(), default=self.end)

    def read(self, start: int, limit: int) -> tuple[list[MemoryRecord], int]:
        """Return at most ``limit`` visible records from ``start``, and the next offset."""
        found: list[MemoryRecord] = []
        end = self.stable_end
        for i in range(start - self.beginning, end - self.beginning):
            record, transaction = self.entries[i]
            fate = Fate.COMMITTED if transaction is None else transaction.fate
            if len(found) == limit:
                return found, self.beginning + i
            if self.damaged and self.unreadable(self.beginning + i):
                return found, self.beginning + i
            if record is not None and fate is Fate.COMMITTED:
                found.append(record)
        return found, max(start, end)

    def unreadable(self, offset: int) -> range | None:
        """The damaged stretch that has this offset."""
        return next((span for span in self.damaged if offset in span), None)

    def compact(self) -> None:
        """Drop what a later visible record of the same key supersedes; tombstones stay."""
        seen: set[bytes | None] = set()
        for i in range(self.stable_end - self.beginning - 1, -1, -1):
            record, transaction = self.entries[i]
            if record is None:
                continue
            if record.key in seen or (transaction and transaction.fate is Fate.ABORTED):
                self.entries[i] = Entry(None, None)
            else:
                seen.add(record.key)
