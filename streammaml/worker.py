"""The worker: poll, decode, step, publish, commit.

Rules: outputs, barriers and input offsets go out in one transaction. Whatever fails outside is
repaired in one way: drop the transaction and the memory of the partitions, close the clients, build
new ones and walk the path of recovery (``recovery.py``). Nothing here sleeps past a stop, and the
group hears of this worker however long its work takes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import structlog

from streammaml.backends.ports import (
    Clients,
    Message,
    OnRebalance,
    Partition,
    Rebalance,
    Record,
)
from streammaml.config import Config
from streammaml.disk import DiskWatch
from streammaml.errors import (
    BackendError,
    DamagedError,
    FencedError,
    GapError,
    StoreError,
    TooManyRejectedError,
    UnavailableError,
    UnreadableError,
)
from streammaml.following import Follower
from streammaml.initialization import Initialization
from streammaml.learner import Learner
from streammaml.learner.kernels.callbacks import Network
from streammaml.mailbox import Mailbox
from streammaml.misplaced import MisplacedWatch
from streammaml.partition import EpisodeBudget
from streammaml.patience import Patience
from streammaml.recovery import check_partitions
from streammaml.rejections import log_rejected, new_limit, too_many
from streammaml.reporting import Kept, Observer, Reporter, TransactionResult
from streammaml.tenure import Tenure
from streammaml.unreadable import Unreadable

POLL_S = 0.1
RESTORE_S = 0.1
"""One slice of a restoration, between two polls."""
BUSY_S = 2.0
"""So long at most the records of one poll keep the worker from the next."""
FIRST_SLICE = 64
"""Records, while it is not known how long one takes."""
DISK_CHECK_S = 5.0
CHECK_EVERY_S = 5.0
LAG_EVERY_S = 1.0
FOLLOW_EVERY_S = 1.0
FENCED_AGAIN_S = 60.0

log = structlog.get_logger(__name__)

Connect = Callable[[OnRebalance], Clients]
_T = TypeVar("_T")


class Worker:
    """A member of the consumer group: one learner for each partition assigned to it.

    ``beat`` is called at each turn of the loop, for a watchdog.
    """

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        connect: Connect,
        observers: Sequence[Observer] = (),
        publish: bool = True,
        beat: Callable[[], None] = lambda: None,
        network: Network | None = None,
    ) -> None:
        self._config = config
        self._network = network
        self._connect = connect
        self._tell = Reporter(observers)
        self._misplaced = MisplacedWatch()
        self._follower = Follower(config, initialization, self._tell)
        episodes = config.episodes
        self._budget = EpisodeBudget(episodes.per_second) if episodes.enabled else None
        self._publish = publish
        self._beat = beat
        self._tenures: dict[Partition, Tenure] = {}
        self._offsets: dict[Partition, int] = {}
        self._pending: deque[tuple[Partition, Sequence[Record]]] = deque()
        self._paused = False
        self._disk = DiskWatch(config.state)
        self._uncommitted = 0
        self._pace_s = 0.0  # of one record, lately
        self._committed_at = self._checked_at = self._lag_at = time.monotonic()
        self._followed_at = 0.0
        self._disk_at = 0.0
        self._lost = False
        self._rejoined = False  # since connected
        self._partitions = 0  # of the topic
        self._unreadable = Unreadable(config.topics.state)
        self._clients: Clients | None = None
        self._limit = new_limit(config)
        self._patience = Patience(config.kafka.unavailable_limit_s)
        self._stop = threading.Event()
        self._mailbox = Mailbox()
        self.loop_at = time.monotonic()
        """Monotonic time of the latest turn of the loop, for the health check."""

    @property
    def tenures(self) -> dict[Partition, Tenure]:
        """The partitions it has. To be used on the loop's thread: see ``ask``."""
        return dict(self._tenures)

    @property
    def learners(self) -> dict[Partition, Learner]:
        """Of the partitions whose state is restored."""
        found = {partition: tenure.learner for partition, tenure in list(self._tenures.items())}
        return {partition: learner for partition, learner in found.items() if learner is not None}

    @property
    def is_restoring(self) -> bool:
        """Whether a partition's state is not there yet, its replay included."""
        return any(tenure.is_restoring for tenure in list(self._tenures.values()))

    @property
    def owns_partitions(self) -> bool:
        """Whether it plays at least one partition. Safe to ask from another thread."""
        return bool(self.learners)

    def ask(self, question: Callable[[], _T], timeout_s: float) -> _T:
        """Let the loop answer between two batches, for another thread.

        TimeoutError if it does not come to it in time, or lets go of its partitions meanwhile.
        """
        return self._mailbox.ask(question, timeout_s)

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop``; then commit and leave.

        Raises UnavailableError when the broker stays away beyond the limit, StoreError when the
        disk does, FencedError when a twin keeps taking over, TooManyRejectedError, GapError and
        IncompatibleError as they come.
        """
        try:
            self._run(stop)
        finally:
            self._mailbox.close()

    def _run(self, stop: threading.Event) -> None:
        self._stop = stop
        fenced_at = -FENCED_AGAIN_S
        while not stop.is_set():
            try:
                self.open()
                while not stop.is_set():
                    self.run_once()
            except BackendError as error:
                try:
                    wait_s = self._after(error, time.monotonic() - fenced_at)
                except BaseException:
                    self._fail()
                    raise
                if isinstance(error, FencedError):
                    fenced_at = time.monotonic()
                self._wait(stop, wait_s)
            except BaseException:
                self._fail()
                raise
        self._tell.state("draining")
        self.close()

    def open(self) -> None:
        """Connect, if not connected."""
        if self._clients is None:
            self._tell.state("starting")
            self._clients = self._connect(self._on_rebalance)
            self._follower.open(self._clients.initializations, self._stop, self._beat)
            self._checked_at = time.monotonic()
            log.info("connected", topic=self._config.topics.events)

    def run_once(self, timeout_s: float = POLL_S) -> int:
        """Carry one poll's records all the way through; return how many there were.

        They become visible at the next commit, which is made here when it is due.
        """
        assert self._clients is not None, "open() first"
        self.loop_at = time.monotonic()
        self._beat()
        self._mailbox.serve()
        restoring = not self._disk.is_full and self._restore()
        self._hold(bool(self._pending) or self._disk.is_full)
        busy = restoring or (self._pending and not self._disk.is_full)
        self._poll(0.0 if busy else timeout_s)
        count = self._play_pending(time.monotonic() + BUSY_S)
        self._arrive()
        now = time.monotonic()
        if now - self._checked_at > CHECK_EVERY_S:
            self._clients.source.check()
            if not restoring:
                self._patience.heard()
            self._checked_at = now
        if self._due(now):
            self.commit()
        if now - self._followed_at > FOLLOW_EVERY_S:
            self._follow(now)
        if now - self._lag_at > LAG_EVERY_S:
            self._report(now)
        return count

    def commit(self, whole: Collection[Partition] = ()) -> None:
        """Make everything since the last commit visible, offsets included.

        With the barriers that are due, and those of the partitions in ``whole``.
        """
        started = self._committed_at = time.monotonic()
        due = {
            partition: tenure
            for partition, tenure in self._tenures.items()
            if tenure.barrier_due(started) or (partition in whole and tenure.has_barrier())
        }
        if not self._offsets and not due:
            return
        assert self._clients is not None
        barrier: list[Message] = []
        for partition, tenure in due.items():
            barrier += tenure.barrier()
            self._offsets[partition] = tenure.commit_offset  # so that the broker fences a zombie
        source, sink, *_ = self._clients
        try:
            positions = sink.commit(self._offsets, source.member(), barrier, self._stop)
        except BackendError as error:
            result: TransactionResult = "fenced" if isinstance(error, FencedError) else "aborted"
            self._tell.committed(result)
            if due:
                self._tell.barrier(result, time.monotonic() - started, barrier)
            raise
        self._offsets = {}
        self._uncommitted = 0
        self._patience.heard()
        self._tell.committed("committed")
        for partition, tenure in due.items():
            tenure.barrier_committed(
                positions[Partition(self._config.topics.state, partition.index)]
            )
        if due:
            self._tell.barrier("committed", time.monotonic() - started, barrier)

    def close(self) -> None:
        """Commit with all state, leave the group, close the clients."""
        try:
            self.commit(whole=list(self._tenures))
        except BackendError as error:
            log.warning("last_commit_failed", error=str(error))
        self._drop()

    def _follow(self, now: float) -> None:
        """Take over what was published, once it has proved itself on the own windows.

        Between two commits, so each event's version follows from offsets that were committed; and
        not all partitions at once, since each writes its state with the next commit.
        """
        self._followed_at = now
        if self.is_restoring:
            return
        self._follower.look(list(self.learners.values()), now, late=bool(self._late()))
        fresh, late = self._follower.served, self._late()
        if not late:
            return
        self.commit()
        room = self._config.state.barrier_mb * 1e6
        for tenure in late:
            tenure.use(fresh)
            room -= tenure.changed_bytes
            if room <= 0:
                break

    def _late(self) -> list[Tenure]:
        """Who is yet to take what is served."""
        follower = self._follower
        tenures = self._tenures.values()
        return [t for t in tenures if not t.serves(follower.served) and follower.is_late(t.learner)]

    def _arrive(self) -> None:
        """Say of each replay that is over that it is; only holes may be left below its end."""
        assert self._clients is not None
        for partition, tenure in self._tenures.items():
            if tenure.learner is None or not tenure.is_restoring:
                continue
            waiting = any(of == partition for of, _ in self._pending)
            if not waiting and self._clients.source.position(partition) >= tenure.live_from:
                tenure.arrive()
                if not self.is_restoring:
                    self._tell.state("ready")

    def _restore(self) -> bool:
        """Carry restorations on for a while; say whether any was under way."""
        waiting = [item for item in self._tenures.items() if item[1].learner is None]
        deadline = time.monotonic() + RESTORE_S
        for partition, tenure in waiting:
            try:
                start = tenure.restore(max(0.0, deadline - time.monotonic()))
            except GapError:
                self._poll(0.0)  # one that lost its place has seen half of its successor's work
                if self._tenures.get(partition) is tenure:
                    raise
                break
            if start is None:
                break
            self._start(partition, start)
        return bool(waiting)

    def _poll(self, timeout_s: float) -> None:
        assert self._clients is not None
        polled = self._clients.source.poll(timeout_s)
        if self._lost:
            self._lost = False
            raise BackendError("the group moved on without this worker")
        self._pending.extend(polled.items())

    def _start(self, partition: Partition, offset: int) -> None:
        """Let a restored partition flow, past what was found unreadable."""
        assert self._clients is not None
        source, sink, *_ = self._clients
        tenure = self._tenures[partition]
        if self._unreadable.is_given_up(partition, offset):
            next_offset = source.next_readable(partition, offset)
            if letters := tenure.pass_over(offset, next_offset):
                sink.send(letters)
            self._offsets[partition] = tenure.commit_offset
            offset = next_offset
            self._unreadable.passed_over(partition, until=offset)
        if self._tenures[partition].has_grown and not self._rejoined:
            self._rejoined = True
            source.rejoin()
        elif tenure.standing.committed is None:
            self._offsets[partition] = offset  # or a restart before the first event might skip it
        source.start(partition, offset)

    def _hold(self, hold: bool) -> None:
        """Pause the partitions while there is enough to do: a poll then only keeps membership."""
        assert self._clients is not None
        if hold != self._paused:
            self._paused = hold
            (self._clients.source.pause if hold else self._clients.source.resume)()

    def _play_pending(self, deadline: float) -> int:
        """Play what was polled, in slices that a slow learner cannot hold the loop with."""
        count = 0
        while self._pending and not self._disk.is_full:
            partition, records = self._pending.popleft()
            now = time.monotonic()
            left_s = deadline - now
            room = FIRST_SLICE if self._pace_s == 0 else max(1, int(left_s / self._pace_s))
            if room < len(records):
                self._pending.appendleft((partition, records[room:]))
                records = records[:room]
            played = self._play(partition, records)
            count += played
            self._pace_s = (time.monotonic() - now) / played if played else self._pace_s
            if time.monotonic() >= deadline:
                break
        return count

    def _play(self, partition: Partition, records: Sequence[Record]) -> int:
        tenure = self._tenures.get(partition)
        if tenure is None or not records:
            return 0
        assert self._clients is not None
        count = 0
        for played in tenure.play(records):
            if played.messages:
                self._clients.sink.send(played.messages)
            self._offsets[partition] = tenure.commit_offset
            self._uncommitted += played.records
            count += played.records
            self._tell.played(played)
            self._look_elsewhere(partition, tenure)
            if not played.live:
                continue
            if played.rejected:
                log_rejected(played)
            if played.limit_exceeded:
                self.commit(whole=[partition])
                raise TooManyRejectedError(too_many(played, self._config))
        return count

    def _look_elsewhere(self, partition: Partition, tenure: Tenure) -> None:
        assert tenure.learner is not None
        admitted = tenure.learner.admitted()
        if admitted and len(self._tenures) > 1:
            count = self._misplaced.look(partition, admitted, self.learners)
            if count:
                self._tell.misplaced(count)

    def _after(self, error: BackendError, since_fenced_s: float) -> float:
        """Let go of everything; the seconds until the next life, or what ends this process."""
        if isinstance(error, UnreadableError):
            self._note_unreadable(error)
        self._drop()
        if isinstance(error, FencedError) and since_fenced_s < FENCED_AGAIN_S:
            raise error
        wait_s = self._patience.failed(time.monotonic())
        if wait_s is None:
            raise self._giving_up(error) from error
        log.warning(
            "store_failed" if isinstance(error, StoreError | DamagedError) else "broker_failed",
            error=str(error),
            retry_in_s=round(wait_s, 1),
            limit_s=self._config.kafka.unavailable_limit_s,
        )
        return wait_s

    def _fail(self) -> None:
        self._tell.state("failed")
        self._drop()

    def _note_unreadable(self, error: UnreadableError) -> None:
        """Commit what stands before it, so that the next life begins there."""
        partition = self._unreadable.note(error)
        if partition is None:
            return
        try:
            self._play_pending(time.monotonic() + BUSY_S)
            tenure = self._tenures.get(partition)
            if tenure is not None and all(waiting != partition for waiting, _ in self._pending):
                tenure.reach(error.offset)
                self._offsets[partition] = tenure.commit_offset
            self.commit(whole=[partition])
        except BackendError as failed:
            log.warning("commit_before_unreadable_failed", error=str(failed))

    def _giving_up(self, error: BackendError) -> BackendError:
        limit_s = self._config.kafka.unavailable_limit_s
        if isinstance(error, StoreError | DamagedError):
            return StoreError(f"gave up after {limit_s:g} s: {error}")
        return UnavailableError(f"gave up after {limit_s:g} s without a working broker: {error}")

    def _due(self, now: float) -> bool:
        worker = self._config.worker
        if self._uncommitted >= worker.commit_events:
            return True
        if (now - self._committed_at) * 1000 < worker.commit_interval_ms:
            return False
        return bool(self._offsets) or any(t.barrier_due(now) for t in self._tenures.values())

    def _report(self, now: float) -> None:
        assert self._clients is not None
        self._lag_at = now
        source = self._clients.source
        lag = dict(source.lag())
        learners = self.learners.values()
        kept = Kept(
            sum(map(len, learners)),
            sum(tenure.stored_contexts for tenure in self._tenures.values()),
            sum(learner.parameter_bytes for learner in learners),
            sum(learner.buffer_bytes for learner in learners),
            sum(tenure.disk_bytes for tenure in self._tenures.values()),
        )
        self._tell.holds(lag, kept)
        before = self._partitions
        self._partitions = source.partitions() or before  # 0 while the client has lost sight of it
        if before and before != self._partitions:
            check_partitions(self._config.topics.events, before, self._partitions, self._config)
            source.rejoin()
        if now - self._disk_at > DISK_CHECK_S:
            self._disk_at = now
            self._disk.look(t.free_bytes for t in self._tenures.values())

    def _on_rebalance(self, change: Rebalance) -> None:
        """Called from within poll and close, while the loop waits."""
        if change.lost:
            self._lost = True
        elif change.revoked:
            self.commit(whole=change.revoked)
        left = 0
        gone = change.revoked | change.lost
        for partition in gone:
            tenure = self._tenures.pop(partition, None)
            self._offsets.pop(partition, None)
            if tenure is not None:
                left += len(tenure.learner or ())
                tenure.close()
        self._pending = deque(item for item in self._pending if item[0] not in gone)
        for partition in sorted(change.assigned):
            self._tenures[partition] = self._new_tenure(partition)
        log.info(
            "rebalanced",
            assigned=sorted(p.index for p in change.assigned),
            revoked=sorted(p.index for p in change.revoked),
            lost=sorted(p.index for p in change.lost),
        )
        self._tell.rebalanced(change, left)
        if self._tenures:
            self._tell.state("restoring" if self.is_restoring else "ready")
        elif self._clients is not None:  # not on its way out
            self._tell.state("starting")

    def _new_tenure(self, partition: Partition) -> Tenure:
        assert self._clients is not None
        return Tenure(
            partition,
            self._clients.source.standing(partition),
            self._config,
            self._follower.first,
            self._limit,
            self._publish,
            self._clients.state if self._config.state.enabled else None,
            self._budget,
            settled=self._follower.settled,
            network=self._network,
        )

    def _drop(self) -> None:
        """Forget the open transaction and the partitions; close the clients."""
        self._mailbox.refuse()
        self._offsets = {}
        self._pending.clear()
        self._uncommitted = 0
        tenures, self._tenures = self._tenures, {}
        for tenure in tenures.values():
            tenure.close()
        clients, self._clients = self._clients, None
        if clients is not None:
            for client in (clients.sink, clients.source, clients.state, self._follower):
                try:
                    client.close()  # the sink aborts what is open
                except BackendError as error:
                    log.warning("close_failed", error=str(error))
        self._paused = self._disk.is_full = False
        self._rejoined = False
        self._lost = False  # closing a broken source tells its partitions as lost
        self._limit = new_limit(self._config)

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        """Wait out a back-off; the loop counts as alive meanwhile."""
        self.loop_at = time.monotonic() + seconds
        self._beat()
        stop.wait(seconds)
