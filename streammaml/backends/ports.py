"""What the worker asks of the outside world. Each port has a Kafka form and a memory form.

Rules: bytes only, an offset is always the *next* one to read, and every failure of the outside
is a BackendError (or one of its kinds). One conformance suite runs on every form.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from streammaml.config import KafkaConfig
from streammaml.errors import GapError

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    topic: str
    index: int


class Record(Protocol):
    """One message as the broker gave it; kafka-python's ConsumerRecord is one."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Milliseconds since 1970, by the producer or the broker."""
        ...

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


class Message(NamedTuple):
    """One message to send; the partition follows from the key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


Offsets = Mapping[Partition, int]


@dataclass(frozen=True, slots=True)
class Rebalance:
    """How the assignment changes. ``revoked`` ones may still commit, ``lost`` ones may not."""

    assigned: frozenset[Partition] = frozenset()
    revoked: frozenset[Partition] = frozenset()
    lost: frozenset[Partition] = frozenset()


class Member(Protocol):
    """The source's place in its group, which a transaction carries so that the broker can fence."""


class Source(Protocol):
    """A consumer in a group."""

    def poll(self, timeout_s: float) -> Mapping[Partition, Sequence[Record]]:
        """Return what is ready after at most ``timeout_s``, in offset order for each partition.

        Every partition starts at its group's committed offset, as read_committed sees it.
        ``on_rebalance`` is called from within, before any record of a new partition is returned
        and before a revoked partition can be read by another member; perhaps on another thread
        while this one waits. It may use the sink, not the source (save ``member``).
        """
        ...

    def member(self) -> Member: ...

    def lag(self) -> Mapping[Partition, int]:
        """Records between the position of each assigned partition and its end."""
        ...

    def check(self) -> None:
        """Ask the broker for anything; UnavailableError if it does not answer in some seconds.

        For a source that has returned nothing for a while: BackendError if, check after check,
        records wait that it does not fetch.
        """
        ...

    def close(self) -> None:
        """Leave; ``on_rebalance`` gets the revoked partitions first."""
        ...


OnRebalance = Callable[[Rebalance], None]


class Sink(Protocol):
    """A producer whose messages become visible, with the offsets they stand for, at ``commit``."""

    def send(self, messages: Sequence[Message]) -> None:
        """Add messages to the open transaction; the first ones open it."""
        ...

    def commit(self, offsets: Offsets, member: Member, stop: threading.Event | None = None) -> None:
        """Make messages and offsets visible, both or neither. FencedError if superseded.

        Once ``stop`` is set it waits for some seconds more at most.
        """
        ...

    def abort(self) -> None:
        """Drop what was sent since the last commit."""
        ...

    def close(self) -> None: ...


def first_offset(
    partition: Partition, committed: int | None, held: tuple[int, int], config: KafkaConfig
) -> int:
    """Where a new owner of the partition starts reading.

    ``held`` is its first offset still there and its end. GapError where what follows
    ``committed`` is gone, unless ``on_gap`` accepts that: then the first one still there.
    """
    beginning, end = held
    if committed is None:
        return beginning if config.start == "earliest" else end
    if beginning <= committed <= end:
        return committed
    if config.on_gap == "accept":
        return beginning
    name = f"{partition.topic}-{partition.index}"
    if committed < beginning:
        lost = f"the broker holds {beginning} and later: {beginning - committed} records are lost"
    else:
        lost = f"it ends at {end}: it was made anew or cut"
    raise GapError(
        f"group {config.group!r} goes on at offset {committed} of {name}, but {lost}. "
        f"To go on at {beginning}: --set kafka.on_gap=accept"
    )
