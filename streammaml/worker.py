"""The worker: poll, decode, step, publish, commit.

Rules: outputs and input offsets go out in one transaction. Whatever fails outside is repaired in
one way: drop the transaction and the memory of the partitions, close the clients, build new ones
and go on from the committed offsets. Nothing here sleeps past a stop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import structlog

from streammaml.backends.ports import OnRebalance, Partition, Rebalance, Record, Sink, Source
from streammaml.config import Config
from streammaml.errors import BackendError, FencedError, TooManyRejectedError, UnavailableError
from streammaml.initialization import Initialization
from streammaml.learner import Learner
from streammaml.partition import PartitionPlayer, Played, RejectionLimit

POLL_S = 0.1
IDLE_CHECK_S = 5.0
LAG_EVERY_S = 1.0
FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 10.0
FENCED_AGAIN_S = 60.0

log = structlog.get_logger(__name__)

TransactionResult = Literal["committed", "aborted", "fenced"]
Connect = Callable[[OnRebalance], tuple[Source, Sink]]


class Observer(Protocol):
    """Who wants to know what the worker does: metrics, the live page, the demo's score."""

    def state(self, name: str) -> None: ...
    def played(self, played: Played, now_s: float) -> None: ...
    def rebalanced(self, change: Rebalance) -> None: ...
    def committed(self, result: TransactionResult, now_s: float) -> None: ...
    def lag(self, lag: dict[Partition, int]) -> None: ...
    def contexts(self, count: int, parameter_bytes: int, buffer_bytes: int) -> None: ...


class Patience:
    """When to try again after a failure, and when to give up."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._failing_since: float | None = None
        self._backoff_s = FIRST_BACKOFF_S

    def heard(self) -> None:
        """The broker has carried something out."""
        self._failing_since, self._backoff_s = None, FIRST_BACKOFF_S

    def failed(self, now: float) -> float | None:
        """Seconds until the next try, the last of which is made at the limit; None: give up."""
        if self._failing_since is None:
            self._failing_since = now
        left_s = self._failing_since + self._limit_s - now
        if left_s <= 0:
            return None
        wait_s = min(self._backoff_s, left_s)
        self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)
        return wait_s


class Worker:
    """A member of the consumer group: one learner for each partition assigned to it."""

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        connect: Connect,
        observers: Sequence[Observer] = (),
        publish: bool = True,
    ) -> None:
        self._config = config
        self._initialization = initialization
        self._connect = connect
        self._observers = tuple(observers)
        self._publish = publish
        self._players: dict[Partition, PartitionPlayer] = {}
        self._offsets: dict[Partition, int] = {}
        self._uncommitted = 0
        self._committed_at = self._active_at = self._lag_at = time.monotonic()
        self._lost = False
        self._source: Source | None = None
        self._sink: Sink | None = None
        self._limit = self._new_limit()
        self._patience = Patience(config.kafka.unavailable_limit_s)
        self._stop = threading.Event()
        self.loop_at = time.monotonic()
        """Monotonic time of the latest turn of the loop, for the health check."""

    @property
    def learners(self) -> dict[Partition, Learner]:
        return {partition: player.learner for partition, player in self._players.items()}

    @property
    def owns_partitions(self) -> bool:
        """Safe to ask from another thread."""
        return bool(self._players)

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop``; then commit and leave.

        Raises UnavailableError when the broker stays away beyond the limit, FencedError when a
        twin keeps taking over, TooManyRejectedError and GapError as they come.
        """
        self._stop = stop
        fenced_at = -FENCED_AGAIN_S
        while not stop.is_set():
            try:
                self.open()
                while not stop.is_set():
                    self.run_once()
            except BackendError as error:
                self._drop()
                now = time.monotonic()
                if isinstance(error, FencedError):
                    if now - fenced_at < FENCED_AGAIN_S:
                        self._tell_state("failed")
                        raise
                    fenced_at = now
                limit_s = self._config.kafka.unavailable_limit_s
                wait_s = self._patience.failed(now)
                if wait_s is None:
                    self._tell_state("failed")
                    raise UnavailableError(
                        f"gave up after {limit_s:g} s without a working broker: {error}"
                    ) from error
                log.warning(
                    "broker_failed",
                    error=str(error),
                    retry_in_s=round(wait_s, 1),
                    limit_s=limit_s,
                )
                self._wait(stop, wait_s)
            except BaseException:
                self._tell_state("failed")
                self._drop()
                raise
        self._tell_state("draining")
        self.close()

    def open(self) -> None:
        """Connect, if not connected."""
        if self._source is None:
            self._tell_state("starting")
            self._source, self._sink = self._connect(self._on_rebalance)
            self._active_at = time.monotonic()
            log.info("connected", topic=self._config.topics.events)

    def run_once(self, timeout_s: float = POLL_S) -> int:
        """Carry one poll's records all the way through; return how many there were.

        They become visible at the next commit, which is made here when it is due.
        """
        assert self._source is not None, "open() first"
        self.loop_at = time.monotonic()
        polled = self._source.poll(timeout_s)
        if self._lost:
            self._lost = False
            raise BackendError("the group moved on without this worker")
        count = sum(self._play(partition, records) for partition, records in polled.items())
        now = time.monotonic()
        if count:
            self._active_at = now
        elif now - self._active_at > IDLE_CHECK_S:
            self._source.check()
            self._patience.heard()
            self._active_at = now
        if self._due(now):
            self.commit()
        if now - self._lag_at > LAG_EVERY_S:
            self._report(now)
        return count

    def commit(self) -> None:
        """Make everything since the last commit visible, offsets included."""
        self._committed_at = time.monotonic()
        if not self._offsets:
            return
        assert self._source is not None
        assert self._sink is not None
        try:
            self._sink.commit(self._offsets, self._source.member(), self._stop)
        except BackendError as error:
            self._tell_committed("fenced" if isinstance(error, FencedError) else "aborted")
            raise
        self._offsets = {}
        self._uncommitted = 0
        self._patience.heard()
        self._tell_committed("committed")

    def close(self) -> None:
        """Commit, leave the group, close the clients."""
        try:
            self.commit()
        except BackendError as error:
            log.warning("last_commit_failed", error=str(error))
        self._drop()

    def _play(self, partition: Partition, records: Sequence[Record]) -> int:
        player = self._players.get(partition)
        if player is None or not records:
            return 0
        played = player.play(records)
        assert self._sink is not None
        if played.messages:
            self._sink.send(played.messages)
        self._offsets[partition] = played.next_offset
        self._uncommitted += played.records
        now_s = time.time()
        for observer in self._observers:
            observer.played(played, now_s)
        if played.rejected:
            self._log_rejected(played)
        if played.limit_exceeded:
            self.commit()
            raise TooManyRejectedError(self._too_many(played))
        return played.records

    def _log_rejected(self, played: Played) -> None:
        """One line for each batch that had some, with the first as its example."""
        first = played.rejected[0]
        log.warning(
            "records_rejected",
            topic=played.partition.topic,
            partition=played.partition.index,
            count=len(played.rejected),
            before_offset=played.next_offset,
            reason=first.reason.value,
            example=first.message,
        )

    def _too_many(self, played: Played) -> str:
        worker, last = self._config.worker, played.rejected[-1]
        return (
            f"more than {worker.rejected_share:.0%} of the last {worker.rejected_window} records "
            f"of {played.partition.topic!r} are not events of this schema; the last one: "
            f"{last.message}. They are in {self._config.topics.dead_letters!r}; the group stands "
            f"at offset {played.next_offset} of partition {played.partition.index}. Check the "
            "producer, and `features` and `label` in the configuration"
        )

    def _due(self, now: float) -> bool:
        worker = self._config.worker
        return self._uncommitted >= worker.commit_events or (
            bool(self._offsets) and (now - self._committed_at) * 1000 >= worker.commit_interval_ms
        )

    def _report(self, now: float) -> None:
        assert self._source is not None
        self._lag_at = now
        lag = dict(self._source.lag())
        learners = [player.learner for player in self._players.values()]
        for observer in self._observers:
            observer.lag(lag)
            observer.contexts(
                sum(map(len, learners)),
                sum(learner.parameter_bytes for learner in learners),
                sum(learner.buffer_bytes for learner in learners),
            )

    def _on_rebalance(self, change: Rebalance) -> None:
        """Called from within poll and close, while the loop waits."""
        if change.lost:
            self._lost = True
        elif change.revoked & set(self._offsets):
            self.commit()
        for partition in change.revoked | change.lost:
            self._players.pop(partition, None)
            self._offsets.pop(partition, None)
        for partition in change.assigned:
            self._players[partition] = PartitionPlayer(
                partition, self._config, self._initialization, self._limit, self._publish
            )
        log.info(
            "rebalanced",
            assigned=sorted(p.index for p in change.assigned),
            revoked=sorted(p.index for p in change.revoked),
            lost=sorted(p.index for p in change.lost),
        )
        for observer in self._observers:
            observer.rebalanced(change)
        if change.assigned:
            self._tell_state("ready")

    def _drop(self) -> None:
        """Forget the open transaction and the partitions; close the clients."""
        self._offsets = {}
        self._uncommitted = 0
        sink, source, self._sink, self._source = self._sink, self._source, None, None
        for client in (sink, source):
            if client is None:
                continue
            try:
                client.close()  # aborts what is open
            except BackendError as error:
                log.warning("close_failed", error=str(error))
        self._players = {}
        self._lost = False  # closing a broken source tells its partitions as lost
        self._limit = self._new_limit()

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        """Wait out a back-off; the loop counts as alive meanwhile."""
        self.loop_at = time.monotonic() + seconds
        stop.wait(seconds)

    def _new_limit(self) -> RejectionLimit:
        worker = self._config.worker
        return RejectionLimit(
            worker.rejected_window, worker.rejected_minimum, worker.rejected_share
        )

    def _tell_state(self, name: str) -> None:
        for observer in self._observers:
            observer.state(name)

    def _tell_committed(self, result: TransactionResult) -> None:
        now_s = time.time()
        for observer in self._observers:
            observer.committed(result, now_s)
