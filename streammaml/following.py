"""Taking over what the outer loop publishes: read, check, and try before serving.

Rules: what is served changes at a committed offset only, and only to what was tried on the worker's
own recent windows; an operator's rollback is taken at its word, and what is refused after it leaves
it in place. A refused record is told, logged and not tried again. Until something was taken, a
partition with a past goes on with its own version. Nothing here keeps the worker from serving:
without the topic it goes on with what it has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import structlog

from streammaml.backends.ports import Record, Tail
from streammaml.backends.wire_initializations import (
    CURRENT,
    ROLLBACK,
    Published,
    key_of_record,
    read_published,
)
from streammaml.config import Config, spec_of
from streammaml.errors import (
    BackendError,
    ConfigError,
    InitializationError,
    MisfitError,
    NonFiniteError,
)
from streammaml.initialization import Initialization, check_fits
from streammaml.learner import Learner
from streammaml.learner.canary import try_out
from streammaml.reporting import LoadResult, Reporter

TRY_WITHIN_S = 60.0
"""So long it is waited for enough windows to judge by."""
ENOUGH = 8
"""Contexts with a window."""
EVENTS_ENOUGH = 1_000
"""After so many without any window there will be none: labels are too few."""
READ_S = 0.1
READ_LIMIT_S = 10.0
RETRY_S = 30.0

log = structlog.get_logger(__name__)

OpenTail = Callable[[], Tail]


class Follower:
    """What this worker serves, and what may come after it."""

    def __init__(self, config: Config, start: Initialization, reporter: Reporter) -> None:
        self._spec = spec_of(config)
        self._tell = reporter
        self._open: OpenTail | None = None
        self._tail: Tail | None = None
        self._retry_at = 0.0
        self._refused: set[str] = set()
        self._digest = ""  # of the record that is served
        self._candidate: Published | None = None
        self._wait: _Wait | None = None
        self._serves = False  # a partition has begun with ``served``, or has taken it
        self._held_at = 0.0  # when there last was a partition
        self.served = start
        self.decided = True
        """Whether ``served`` is what partitions with a past are to have, too: not before the first
        decision, if another version is published."""

    @property
    def settled(self) -> bool:
        """Whether that is so of whatever a partition comes with: nothing waits to be tried."""
        return self.decided and self._candidate is None

    def is_late(self, learner: Learner | None) -> bool:
        """Whether one that does not have ``served`` is to take it now.

        Not who comes with what waits: another worker has tried it.
        """
        waits = self._candidate
        if learner is not None and waits is not None:
            return self.decided and not learner.same_initialization(waits.initialization)
        return self.decided

    @property
    def first(self) -> Initialization:
        """What a partition without a past begins with."""
        if self._candidate is None or self._serves:
            return self.served
        return self._candidate.initialization

    # --- the topic -----------------------------------------------------------------------------

    def open(self, tail: OpenTail | None, stop: threading.Event, beat: Callable[[], None]) -> None:
        """Read all that is published, before the first partition begins; None: nothing is."""
        self._open = tail
        if tail is None:
            return
        try:
            opened = self._tail = tail()
            deadline = time.monotonic() + READ_LIMIT_S
            while not stop.is_set():
                self._read(opened.poll(0.0 if opened.caught_up else READ_S))
                if opened.caught_up:
                    return
                if time.monotonic() > deadline:
                    raise BackendError(f"not read to its end in {READ_LIMIT_S:g} s")
                beat()
        except BackendError as error:
            self._lose(error)
            self._doubt()  # who knows what is current

    def look(self, learners: Sequence[Learner], now: float, late: bool = False) -> None:
        """Read on, and decide on what waits; then ``served`` may be another one.

        ``learners``: those of all partitions, none of which is being restored. ``late``: whether
        one has yet to take ``served``; nothing is tried before it has.
        """
        try:
            if self._tail is None and self._open is not None and now >= self._retry_at:
                self._tail = self._open()
            if self._tail is not None:
                self._read(self._tail.poll(0.0))
        except (BackendError, ConfigError) as error:
            self._lose(error)
        if not learners:
            if now - self._held_at > TRY_WITHIN_S:
                self._forget()
            return
        self._held_at = now
        if self._candidate is not None:
            self._decide(self._candidate, learners, now, late)
        else:
            self._keep(learners)

    def close(self) -> None:
        tail, self._tail, self._open = self._tail, None, None
        if tail is not None:
            tail.close()

    def _lose(self, error: BackendError | ConfigError) -> None:
        log.warning("initializations_not_read", error=str(error), retry_in_s=RETRY_S)
        self._retry_at = time.monotonic() + RETRY_S
        tail, self._tail = self._tail, None
        if tail is not None:
            try:
                tail.close()
            except BackendError as failed:
                log.warning("close_failed", error=str(failed))

    def _read(self, records: Sequence[Record]) -> None:
        """Take the newest ``current`` that is fit to be one as the candidate."""
        for record in reversed(records):
            if key_of_record(record) != CURRENT or record.value is None:
                continue
            try:
                published = read_published(record)
                check_fits(published.initialization, self._spec)
            except InitializationError as error:
                self._refuse(_result_of(error), str(error))
                self._doubt()
                continue
            self._propose(published)
            return

    def _propose(self, published: Published) -> None:
        if published.by == ROLLBACK:
            self._refused.discard(published.digest)
        if published.digest == self._digest or published.digest in self._refused:
            self._candidate = self._wait = None  # put back, or never any good
            return
        self._candidate = published
        self._doubt()

    def _doubt(self) -> None:
        """Another version may be current: what was never decided on is no reason to swap to it."""
        self.decided = self.decided and self._serves

    def _forget(self) -> None:
        """Who has had no partition for long knows as little as one that starts."""
        self._serves = False
        self.decided = self.decided and self._candidate is None

    # --- the trial -----------------------------------------------------------------------------

    def _decide(
        self, published: Published, learners: Sequence[Learner], now: float, late: bool
    ) -> None:
        candidate = published.initialization
        tried = published.by != ROLLBACK
        if tried and late and self.decided:
            return
        others = [one for one in learners if not one.same_initialization(candidate)]
        # Before its first live event one may still stand at what it came with.
        serving = [one for one in others if self.decided and one.same_initialization(self.served)]
        try:
            for learner in others:
                learner.check_version(candidate)
            trial = try_out(serving or others, candidate)
        except InitializationError as error:
            self._drop(published, others, _result_of(error), str(error))
            return
        if tried and others:
            if not trial.grown and self._is_early(trial.contexts, learners, now):
                return  # the losses count once: by chance one of many looks finds them worse
            if trial.worse:
                self._drop(published, others, "worse", trial.reason)
                return
        self._digest, self.served = published.digest, candidate
        self._candidate = self._wait = None
        self.decided = self._serves = True
        log.info(
            "initialization_taken",
            version=candidate.version,
            by=published.by,
            contexts=trial.contexts,
            loss=round(trial.candidate, 4),
            loss_before=round(trial.served, 4),
        )
        self._tell.initialization("loaded", candidate.version)

    def _is_early(self, contexts: int, learners: Sequence[Learner], now: float) -> bool:
        """Whether to wait for more windows; the wait is one over all that is published meanwhile.

        With none at all only events count: after a restart contexts come back with theirs.
        """
        if contexts >= ENOUGH:
            return False
        if self._wait is None:
            self._wait = _Wait(now)
        without = self._wait.events_without(contexts, learners)
        if contexts == 0 and any(one.events for one in learners) and without < EVENTS_ENOUGH:
            return True
        return now - self._wait.since < TRY_WITHIN_S

    def _drop(
        self, published: Published, others: Sequence[Learner], result: LoadResult, why: str
    ) -> None:
        """Refuse it. Who began with it, having nothing to judge by, takes what the others serve."""
        self._refused.add(published.digest)
        self._candidate = self._wait = None
        self._keep(others)
        self._refuse(result, why, published.version)

    def _keep(self, learners: Sequence[Learner]) -> None:
        """Go on with what was decided on last, or else with the newest that a partition has."""
        if not self.decided:
            self.served, self._digest = _newest(learners), ""
        self.decided = self._serves = True

    def _refuse(self, result: LoadResult, why: str, version: int | None = None) -> None:
        log.warning(
            "initialization_refused",
            result=result,
            version=version,
            why=why,
            serving=self.served.version,
        )
        self._tell.initialization(result, self.served.version)


class _Wait:
    """For windows to judge by: since when, and how much was played without one."""

    def __init__(self, now: float) -> None:
        self.since = now
        self._without = 0
        self._events: WeakKeyDictionary[Learner, int] = WeakKeyDictionary()

    def events_without(self, contexts: int, learners: Sequence[Learner]) -> int:
        """Events since there last was a context to ask, of the learners that were there before.

        Each counts by itself: what a partition played elsewhere comes and goes with it.
        """
        played = sum(one.events - self._events.get(one, one.events) for one in learners)
        self._events = WeakKeyDictionary({one: one.events for one in learners})
        self._without = 0 if contexts else self._without + played
        return self._without


def _newest(learners: Sequence[Learner]) -> Initialization:
    found = (learner.initialization for learner in learners)
    return max(found, key=lambda initialization: initialization.version)


def _result_of(error: InitializationError) -> LoadResult:
    if isinstance(error, NonFiniteError):
        return "nonfinite"
    return "fingerprint" if isinstance(error, MisfitError) else "corrupt"
