"""Who wants to know what the worker does, and telling all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from streammaml.backends.ports import Message, Partition, Rebalance
from streammaml.partition import Played

TransactionResult = Literal["committed", "aborted", "fenced"]
LoadResult = Literal["loaded", "fingerprint", "corrupt", "nonfinite", "worse"]
"""What became of an initialization that was received."""


class Kept(NamedTuple):
    """What the worker holds for its contexts."""

    in_memory: int
    on_disk: int
    parameter_bytes: int
    buffer_bytes: int
    disk_bytes: int


class Observer(Protocol):
    """Metrics, the live page, the demo's score."""

    def state(self, name: str) -> None: ...
    def played(self, played: Played, now_s: float) -> None: ...
    def rebalanced(self, change: Rebalance, left: int) -> None:
        """``left`` contexts went out of memory with their partitions."""
        ...

    def committed(self, result: TransactionResult, now_s: float) -> None: ...
    def barrier(self, result: TransactionResult, seconds: float, size: int) -> None: ...
    def lag(self, lag: dict[Partition, int]) -> None: ...
    def kept(self, kept: Kept) -> None: ...
    def misplaced(self, contexts: int) -> None:
        """So many more have events in two partitions."""
        ...

    def initialization(self, result: LoadResult, version: int) -> None:
        """``version`` is served now, whatever became of the one received."""
        ...


class Reporter:
    """Tells every observer."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def state(self, name: str) -> None:
        for observer in self._observers:
            observer.state(name)

    def played(self, played: Played) -> None:
        now_s = time.time()
        for observer in self._observers:
            observer.played(played, now_s)

    def rebalanced(self, change: Rebalance, left: int) -> None:
        for observer in self._observers:
            observer.rebalanced(change, left)

    def committed(self, result: TransactionResult) -> None:
        now_s = time.time()
        for observer in self._observers:
            observer.committed(result, now_s)

    def barrier(
        self, result: TransactionResult, seconds: float, messages: Sequence[Message]
    ) -> None:
        size = sum(len(m.key or b"") + len(m.value or b"") for m in messages)
        for observer in self._observers:
            observer.barrier(result, seconds, size)

    def holds(self, lag: dict[Partition, int], kept: Kept) -> None:
        for observer in self._observers:
            observer.lag(lag)
            observer.kept(kept)

    def misplaced(self, contexts: int) -> None:
        for observer in self._observers:
            observer.misplaced(contexts)

    def initialization(self, result: LoadResult, version: int) -> None:
        for observer in self._observers:
            observer.initialization(result, version)
