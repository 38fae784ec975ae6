"""Taking over what the outer loop publishes: read, check, and try before serving.

Rules: what is served changes at a committed offset only, and only to what was tried on the worker's
own recent windows; an operator's rollback is taken at its word. A refused record is told, logged
and not tried again. Until something was taken, a partition with a past goes on with its own
version. Nothing here keeps the worker from serving: without the topic it goes on with what it has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

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
        self._waiting: tuple[float, int] | None = None  # since when; events played by then
        self._serves = False  # a partition has begun with ``served``, or has taken it
        self.served = start
        self.settled = True
        """Whether a partition with a past is to take ``served`` over."""

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
            self.settled = False  # who knows what is current

    def look(self, learners: Sequence[Learner], now: float) -> None:
        """Read on, and decide on what waits; then ``served`` may be another one.

        ``learners``: those of all partitions, none of which is being restored.
        """
        try:
            if self._tail is None and self._open is not None and now >= self._retry_at:
                self._tail = self._open()
            if self._tail is not None:
                self._read(self._tail.poll(0.0))
        except (BackendError, ConfigError) as error:
            self._lose(error)
        if self._candidate is not None and learners:
            self._decide(self._candidate, learners, now)
        elif learners:
            if not self.settled:
                self.served = _newest(learners)
            self.settled = self._serves = True

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
                self.settled = self.settled and self._serves
                continue
            self._propose(published)
            return

    def _propose(self, published: Published) -> None:
        if published.by == ROLLBACK:
            self._refused.discard(published.digest)
        if published.digest == self._digest or published.digest in self._refused:
            self._candidate = self._waiting = None  # put back, or never any good
            return
        self._candidate = published
        self.settled = False

    # --- the trial -----------------------------------------------------------------------------

    def _decide(self, published: Published, learners: Sequence[Learner], now: float) -> None:
        candidate = published.initialization
        others = [one for one in learners if not one.same_initialization(candidate)]
        try:
            for learner in others:
                learner.check_version(candidate)
            trial = try_out(others, candidate)
        except InitializationError as error:
            self._drop(published, others, _result_of(error), str(error))
            return
        judged = published.by != ROLLBACK
        if judged and trial.worse:
            self._drop(published, others, "worse", trial.reason)
            return
        if judged and others and self._is_early(trial.contexts, learners, now):
            return
        self._digest, self.served = published.digest, candidate
        self._candidate = self._waiting = None
        self.settled = self._serves = True
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
        events = sum(learner.events for learner in learners)
        if self._waiting is None:
            self._waiting = now, events
        since, before = self._waiting
        if contexts == 0 and events > 0 and events - before < EVENTS_ENOUGH:
            return True
        return now - since < TRY_WITHIN_S

    def _drop(
        self, published: Published, others: Sequence[Learner], result: LoadResult, why: str
    ) -> None:
        """Refuse it. Who began with it, having nothing to judge by, takes what the others serve."""
        self._refused.add(published.digest)
        self._candidate = self._waiting = None
        self.settled = self._serves = True
        self.served = _newest(others)
        self._refuse(result, why, published.version)

    def _refuse(self, result: LoadResult, why: str, version: int | None = None) -> None:
        log.warning(
            "initialization_refused",
            result=result,
            version=version,
            why=why,
            serving=self.served.version,
        )
        self._tell.initialization(result, self.served.version)


def _newest(learners: Sequence[Learner]) -> Initialization:
    found = (learner.initialization for learner in learners)
    return max(found, key=lambda initialization: initialization.version)


def _result_of(error: InitializationError) -> LoadResult:
    if isinstance(error, NonFiniteError):
        return "nonfinite"
    return "fingerprint" if isinstance(error, MisfitError) else "corrupt"
