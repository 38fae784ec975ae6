"""One partition while this worker has it: restored, replayed, then played; and its barriers.

Rules: the local store never is ahead of Kafka, so what a barrier holds goes there only after its
transaction; nothing that decides about state reads a clock, which only says when to write.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from streammaml import c_clock
from streammaml.backends.ports import Message, Partition, Record, Standing, StateLog, StateReader
from streammaml.backends.state import Store, store_path
from streammaml.config import Config
from streammaml.errors import UnavailableError
from streammaml.initialization import Initialization
from streammaml.learner import Learner
from streammaml.learner.kernels.callbacks import Network
from streammaml.learner.snapshot import DETECTOR, INITIALIZATION, LIGHT, WEIGHTS, is_expired
from streammaml.partition import EpisodeBudget, PartitionPlayer, Played, RejectionLimit
from streammaml.recovery import (
    BARRIER_KEY,
    Barrier,
    Plan,
    check_owner,
    plan,
    read_barrier,
    write_barrier,
)

SWEEP_RECORDS = 10_000
LARGE_BYTES = 1_000_000_000
"""Of a store that takes seconds to verify."""

log = structlog.get_logger(__name__)


def _place(item: tuple[bytes, bytes | None]) -> int:
    """The order in a barrier: what others need comes before them and goes after them.

    Without a transaction it may be cut anywhere; the barrier's own record ends it.
    """
    key, value = item
    if key == BARRIER_KEY:
        return 6
    if key.startswith(INITIALIZATION):
        return 0 if value is not None else 5
    if key.startswith((WEIGHTS, DETECTOR)):
        return 1 if value is not None else 3
    return 2 if key.startswith(LIGHT) else 4


class Tenure:
    """The learner of one partition with all that makes it durable.

    A partition without a past begins with ``initialization``. One with a past goes on with its own,
    and takes this one over with its first live event unless it is not ``settled`` yet. Without
    ``state`` (``state.enabled = false``) it starts at the committed offset with nothing.
    """

    def __init__(
        self,
        partition: Partition,
        standing: Standing,
        config: Config,
        initialization: Initialization,
        limit: RejectionLimit,
        publish: bool = True,
        state: StateLog | None = None,
        budget: EpisodeBudget | None = None,
        settled: bool = True,
        network: Network | None = None,
    ) -> None:
        self.partition = partition
        self.standing = standing
        self._config = config
        self._initialization = initialization
        self._settled = settled
        self._network = network
        self._limit = limit
        self._publish = publish
        self._budget = budget
        self._began = time.monotonic()
        self._player: PartitionPlayer | None = None
        self._plan = Plan(0, 0)
        self._next = 0
        self._live = False
        self._arrived = False
        self._barrier: Barrier | None = None
        self._barrier_at = 0.0
        self._barrier_offset = -1
        self._forced = True  # the first commit of a partition without a barrier has one
        self._sweep_after = b""
        self._changes: dict[bytes, bytes | None] = {}
        self._store: Store | None = None
        self._reader: StateReader | None = None
        self._moved_at = self._began  # when the restoration last came on
        self._patience_s = 2 * config.kafka.transaction_timeout_ms / 1000 + 10
        if state is not None:
            try:
                self._open(state)
            except BaseException:
                self.close()
                raise

    @property
    def learner(self) -> Learner | None:
        """None while its state is being restored."""
        return None if self._player is None else self._player.learner

    @property
    def commit_offset(self) -> int:
        """Never below what the group has committed, however far the replay has come."""
        return max(self._next, self._plan.live_from)

    @property
    def is_restoring(self) -> bool:
        """Whether the state is not yet that of the committed offset."""
        return self._player is None or not self._arrived

    @property
    def live_from(self) -> int:
        return self._plan.live_from

    def use(self, initialization: Initialization) -> None:
        """Serve this one from the next live event on; all that was played must be committed."""
        self._initialization, self._settled = initialization, True
        if self._live:
            self._swap()

    def serves(self, initialization: Initialization) -> bool:
        """Whether it does, or will with its first live event."""
        if not self._live or self._player is None:
            return self._settled and self._initialization is initialization
        return self._player.learner.same_initialization(initialization)

    @property
    def changed_bytes(self) -> int:
        """About what its next barrier writes."""
        return 0 if self._player is None else self._player.learner.changed_bytes

    def arrive(self) -> None:
        """All records below ``live_from`` are played."""
        if not self._arrived:
            self._arrived = True
            if self._plan.live_from > self._plan.start:
                log.info(
                    "replayed",
                    partition=self.partition.index,
                    events=self._plan.live_from - self._plan.start,
                    seconds=round(time.monotonic() - self._began, 2),
                )

    @property
    def has_grown(self) -> bool:
        """Whether the topic had fewer partitions at the barrier that was restored."""
        return self._barrier is not None and self._barrier.partitions < self.standing.partitions

    @property
    def disk_bytes(self) -> int:
        return 0 if self._store is None else self._store.size_bytes

    @property
    def stored_contexts(self) -> int:
        return 0 if self._store is None else self._store.count(LIGHT)

    @property
    def is_verified(self) -> bool:
        """Whether to look for a context that is not there takes no time."""
        return self._store is None or self._store.is_verified

    @property
    def next_offset(self) -> int:
        """The state is that of all events below."""
        return self._next

    @property
    def free_bytes(self) -> int | None:
        """Room left on the disk of the local store."""
        return None if self._store is None else self._store.free_bytes()

    def restore(self, timeout_s: float) -> int | None:
        """Carry the restoration on for about ``timeout_s``; once done, the offset to start at.

        UnavailableError if the topic ``state`` gives nothing for longer than a dead worker's
        transaction can last.
        """
        assert self._player is None
        deadline = time.monotonic() + timeout_s
        while self._reader is not None and self._reader.position < self._reader.end:
            assert self._store is not None
            before = self._reader.position
            records = self._reader.read(max(0.0, deadline - time.monotonic()))
            self._store.apply(
                [(r.key, r.value) for r in records if r.key is not None], self._reader.position
            )
            now = time.monotonic()
            if self._reader.position > before:
                self._moved_at = now
            elif now - self._moved_at > self._patience_s:
                raise UnavailableError(
                    f"topic {self._config.topics.state!r} stands still at {before} of partition "
                    f"{self.partition.index}, and ends at {self._reader.end}"
                )
            if now >= deadline:
                return None
        if not self._is_usable(max(0.0, deadline - time.monotonic())):
            return None
        self._begin()
        return self._next

    def play(self, records: Sequence[Record]) -> list[Played]:
        """Carry records through: those below the committed offset silently."""
        assert self._player is not None
        played = []
        live_from = self._plan.live_from
        silent = bisect_left(records, live_from, key=lambda r: r.offset) if not self._live else 0
        if silent:
            played.append(self._player.replay(records[:silent]))
            self._next = played[-1].next_offset
        if silent < len(records):
            if not self._live:
                self._go_live()
            played.append(self._player.play(records[silent:] if silent else records))
            self._next = played[-1].next_offset
        return played

    def reach(self, offset: int) -> None:
        """All records below ``offset`` are played; only holes are left before it."""
        self._next = max(self._next, offset)

    def pass_over(self, offset: int, next_offset: int) -> list[Message]:
        """Go on at ``next_offset``, since nothing from ``offset`` on can be read: a dead letter.

        The next commit has a barrier, so that no replay comes here again.
        """
        assert self._player is not None
        self._next = next_offset
        self._forced = True
        if next_offset <= self._plan.live_from:  # told before
            return []
        return [self._player.unreadable(offset, next_offset)]

    def barrier_due(self, now: float) -> bool:
        """Whether the state is to be written with the next commit."""
        if self._store is None or self._player is None or self._next == self._barrier_offset:
            return False
        limits = self._config.state
        # What was spilled twice since takes twice the room on the disk.
        changed = max(self._player.learner.changed_bytes, self._store.spilled_bytes)
        return (
            self._forced
            or now - self._barrier_at >= limits.barrier_interval_s
            or self._next - self._barrier_offset >= limits.barrier_events
            or changed >= limits.barrier_mb * 1e6
        )

    def has_barrier(self) -> bool:
        """Whether a barrier now would say something new."""
        return (
            self._store is not None
            and self._player is not None
            and (self._forced or self._next != self._barrier_offset)
        )

    def barrier(self) -> list[Message]:
        """All that changed since the last barrier, as messages; the state stands at one offset."""
        assert self._store is not None
        assert self._player is not None
        learner = self._player.learner
        swept = learner.sweep()  # first: what is dropped here must not be in the snapshot
        self._changes = {**dict(learner.snapshot()), **dict.fromkeys(swept)}
        spilled = {k: v for k, v in self._store.spilled() if k not in self._changes}
        self._sweep(spilled)
        self._changes[BARRIER_KEY] = write_barrier(
            self._config, self._next, learner.version, self.standing
        )
        topic, index = self._config.topics.state, self.partition.index
        items = sorted((*spilled.items(), *self._changes.items()), key=_place)
        return [Message(topic, key, value, (), index) for key, value in items]

    def barrier_committed(self, position: int) -> None:
        """The barrier is in Kafka up to ``position`` of ``state``: now it may be here, too."""
        assert self._store is not None
        assert self._player is not None
        self._store.barrier(self._changes.items(), position)
        self._player.learner.mark()
        self._changes = {}
        self._forced = False
        self._barrier_offset = self._next
        self._barrier_at = time.monotonic()

    def close(self) -> None:
        for part in (self._reader, self._store):
            if part is not None:
                part.close()
        self._reader = self._store = None

    def _open(self, state: StateLog) -> None:
        """Open the local store, and a reader from where it stands."""
        config, partition = self._config, self.partition
        path = store_path(
            Path(config.state.directory),
            config.kafka.group,
            config.kafka.instance,
            partition.topic,
            partition.index,
        )
        topic_id = state.topic_id()
        self._store = Store.open(path, topic_id)
        if self._store.healed:
            log.warning("store_not_used", path=str(path), reason=self._store.healed)
        self._reader = state.reader(partition.index, self._store.position)
        if self._reader.end < self._store.position:  # an older log than ours: trust the log
            log.warning("store_ahead", path=str(path), position=self._store.position)
            self._reader.close()
            self._store.condemn(f"it is ahead of {config.topics.state!r}")
            self._store.close()
            self._store = Store.open(path, topic_id)
            self._reader = state.reader(partition.index, 0)

    def _is_usable(self, timeout_s: float) -> bool:
        """Whether the store can be asked for any context without a long wait."""
        store = self._store
        if store is None or store.size_bytes < LARGE_BYTES:
            return True
        return store.wait_verified(timeout_s)

    def _begin(self) -> None:
        """Make the learner, as the barrier left it."""
        config, store = self._config, self._store
        if self._reader is not None:
            log.info(
                "restored",
                partition=self.partition.index,
                read=self._reader.position,
                seconds=round(time.monotonic() - self._began, 2),
            )
            self._reader.close()
            self._reader = None
        learner = Learner(
            config, self._initialization, store, self._network, clock=c_clock.monotonic()
        )
        value = None if store is None else store.get(BARRIER_KEY)
        if store is not None and value is not None:
            self._barrier = read_barrier(value)
            check_owner(config, self._barrier)
            learner.restore(store.own())
            if self._settled:
                learner.check_version(self._initialization)
            self._forced = False
        self._plan = plan(self.partition, self.standing, self._barrier, config)
        if self._barrier is not None and self._plan.start != self._barrier.offset:
            self._forced = True  # a gap was accepted
        self._next = self._plan.start
        self._barrier_offset = -1 if self._forced else self._next
        share = self.partition.index / max(1, self.standing.partitions)
        self._barrier_at = time.monotonic() - share * config.state.barrier_interval_s
        self._player = PartitionPlayer(
            self.partition, config, learner, self._limit, self._publish, self._budget
        )
        if self._plan.live_from > self._plan.start:
            log.info("replaying", partition=self.partition.index, **self._plan._asdict())

    def _go_live(self) -> None:
        """The replay is over. Another initialization than the state's may take effect here."""
        self._live = True
        if self._settled:
            self._swap()

    def _swap(self) -> None:
        assert self._player is not None
        learner = self._player.learner
        if not learner.same_initialization(self._initialization):
            before = learner.version
            learner.swap(self._initialization)
            log.info(
                "swapped",
                partition=self.partition.index,
                offset=self._next,
                before=before,
                now=learner.version,
            )
            self._forced = True  # or a replay across this offset would not know of it

    def _sweep(self, spilled: Mapping[bytes, bytes | None]) -> None:
        """Remove what has outlived ``ttl_s`` from the store, a part of it at each barrier."""
        assert self._store is not None
        assert self._player is not None
        if self._config.state.ttl_s == 0 or not self._store.is_verified:
            return
        learner = self._player.learner
        room = max(SWEEP_RECORDS, 2 * (len(self._changes) + len(spilled)))  # faster than it grows
        found = self._store.scan(LIGHT, self._sweep_after, room)
        self._sweep_after = found[-1][0] if len(found) == room else b""
        for key, value in found:
            newer = key in self._changes or key in spilled  # than what was scanned
            if not newer and is_expired(value, learner.clock_s, self._config.state.ttl_s):
                kinds = (LIGHT, WEIGHTS, DETECTOR)
                self._changes.update({kind + key.removeprefix(LIGHT): None for kind in kinds})
