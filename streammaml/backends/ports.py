"""What the worker asks of the outside world. Each port has a Kafka form and a memory form.

Rules: bytes only, an offset is always the *next* one to read, and every failure of the outside
is a BackendError (or one of its kinds). One conformance suite runs on every form.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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
    """One message to send; the partition follows from the key unless it is given."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


Offsets = Mapping[Partition, int]


@dataclass(frozen=True, slots=True)
class Rebalance:
    """How the assignment changes. ``revoked`` ones may still commit, ``lost`` ones may not."""

    assigned: frozenset[Partition] = frozenset()
    revoked: frozenset[Partition] = frozenset()
    lost: frozenset[Partition] = frozenset()


class Member(Protocol):
    """The source's place in its group, which a transaction carries so that the broker can fence."""


class Standing(NamedTuple):
    """What the broker says of a partition at its assignment."""

    committed: int | None
    """The group's offset, as read_committed sees it; None where it has none."""
    beginning: int
    """First offset still held."""
    end: int
    topic_id: str
    """Another one when the topic was deleted and made again."""
    partitions: int
    """How many the topic has."""


class Source(Protocol):
    """A consumer in a group."""

    def poll(self, timeout_s: float) -> Mapping[Partition, Sequence[Record]]:
        """Return what is ready after at most ``timeout_s``, in offset order for each partition.

        ``on_rebalance`` is called from within, before any record of a new partition is returned
        and before a revoked partition can be read by another member; perhaps on another thread
        while this one waits. It may use the sink, not the source (save ``member`` and, for an
        assigned partition, ``standing``). An assigned partition gives nothing until ``start``.
        UnreadableError where the client cannot decode what the broker gave.
        """
        ...

    def standing(self, partition: Partition) -> Standing:
        """What was found when the partition was assigned."""
        ...

    def start(self, partition: Partition, offset: int) -> None:
        """Let an assigned partition flow from ``offset`` on."""
        ...

    def position(self, partition: Partition) -> int:
        """Next offset to be returned; it has passed the markers of transactions."""
        ...

    def pause(self) -> None:
        """Return nothing from any partition, assigned now or later, until ``resume``."""
        ...

    def resume(self) -> None: ...

    def partitions(self) -> int:
        """How many partitions the topic has now, from what the client knows without asking."""
        ...

    def rejoin(self) -> None:
        """Let the group share out the topic again, which has grown: a member that came back
        within its session was given what it had before.
        """
        ...

    def next_readable(self, partition: Partition, offset: int) -> int:
        """The first offset after ``offset``, which is unreadable, that can be read again."""
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
    """A producer whose messages become visible, with the offsets they stand for, at ``commit``.

    With ``delivery = "at_least_once"`` messages are visible once sent, and a commit makes sure of
    all that was sent, then of the barrier, then of the offsets.
    """

    def send(self, messages: Sequence[Message]) -> None:
        """Add messages to the open transaction; the first ones open it."""
        ...

    def commit(
        self,
        offsets: Offsets,
        member: Member,
        barrier: Sequence[Message] = (),
        stop: threading.Event | None = None,
    ) -> Mapping[Partition, int]:
        """Make messages, barrier and offsets visible, all or none. FencedError if superseded.

        ``barrier`` messages name their partition; returned is, for each partition they went to,
        the offset after the last of them. Once ``stop`` is set it waits for some seconds more at
        most.
        """
        ...

    def abort(self) -> None:
        """Drop what was sent since the last commit."""
        ...

    def close(self) -> None: ...


class StateReader(Protocol):
    """Reads one partition of ``state``, as read_committed, up to the end it had at first."""

    @property
    def position(self) -> int:
        """Next offset to be read."""
        ...

    @property
    def end(self) -> int:
        """The end when the reader was made, behind transactions that were open then.

        What they hold decides where a partition goes on, so ``read`` gives nothing until they
        have ended.
        """
        ...

    def read(self, timeout_s: float) -> Sequence[Record]:
        """Return what has come after at most ``timeout_s``; a None value deletes its key."""
        ...

    def close(self) -> None: ...


class StateLog(Protocol):
    """The ``state`` topic."""

    def topic_id(self) -> str: ...

    def reader(self, index: int, start: int) -> StateReader:
        """Read partition ``index`` from ``start``; done when ``position`` is ``end``.

        A start beyond the end of the partition reads nothing: position and end are both its end.
        """
        ...

    def close(self) -> None: ...


class Tail(Protocol):
    """Follows whole topics without a group, as read_committed sees them.

    From the beginning, or from about the newest so many records of each partition: offsets are
    counted, of which markers, aborted records and compaction take some. Partitions that come later
    are followed from their beginning; what was deleted before it was read, or cannot be decoded, is
    passed over and logged. An outage of the brokers is ridden out in silence.
    """

    def poll(self, timeout_s: float) -> Sequence[Record]:
        """Return what has come after at most ``timeout_s``, of each partition in offset order.

        BackendError if the topic was deleted or made anew, or the client failed: then it is only
        good for ``close``.
        """
        ...

    @property
    def caught_up(self) -> bool:
        """Whether all was returned that could be read when the tail was made."""
        ...

    def close(self) -> None: ...


class Publisher(Protocol):
    """Writes to ``initializations``; the newest publisher of a group fences the older ones."""

    def publish(self, messages: Sequence[Message], stop: threading.Event | None = None) -> None:
        """Make the messages visible, all or none. FencedError if superseded.

        Once ``stop`` is set it waits for some seconds more at most.
        """
        ...

    def close(self) -> None:
        """Abort what a failed ``publish`` left open."""
        ...


class Clients(NamedTuple):
    """All that one life of the worker talks to; closed in the order sink, source, state."""

    source: Source
    sink: Sink
    state: StateLog
    initializations: Callable[[], Tail] | None = None
    """Opens the tail of the topic, from its beginning; None: it is not followed."""
