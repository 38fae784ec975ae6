"""Taking over what the outer loop publishes: read, check, and try before serving.

Rule: what is served changes at a committed offset only, and only to what was tried on the worker's
own recent windows. A partition without a past has none, and begins with what is published. A
refused record is told, logged and never tried again; what was served before stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from streammaml.backends.ports import Record, Tail
from streammaml.backends.wire_initializations import (
    CURRENT,
    Published,
    key_of_record,
    read_published,
)
from streammaml.config import Config, spec_of
from streammaml.errors import InitializationError, MisfitError, NonFiniteError
from streammaml.initialization import Initialization, check_fits
from streammaml.learner import Learner
from streammaml.learner.canary import try_out
from streammaml.reporting import LoadResult, Reporter

TRY_WITHIN_S = 60.0
"""So long it is waited for enough windows to judge by."""
ENOUGH = 8
"""Contexts with a window."""

log = structlog.get_logger(__name__)


class Follower:
    """What this worker serves, and what may come after it."""

    def __init__(self, config: Config, start: Initialization, reporter: Reporter) -> None:
        self._spec = spec_of(config)
        self._tell = reporter
        self._refused: set[str] = set()
        self._digest = ""  # of the record that is served
        self._since = 0.0
        self.served = start
        self.candidate: Published | None = None

    @property
    def first(self) -> Initialization:
        """What a partition without a past begins with."""
        return self.served if self.candidate is None else self.candidate.initialization

    def read(self, tail: Tail, timeout_s: float, now: float) -> None:
        """Take the newest ``current`` there is as the candidate, if it is fit to be one."""
        records = [r for r in tail.poll(timeout_s) if key_of_record(r) == CURRENT]
        if not records:
            return
        try:
            published = self._checked(records[-1])
        except InitializationError as error:
            self._refuse(_result_of(error), str(error))
            return
        if published.digest == self._digest or published.digest in self._refused:
            self.candidate = None  # put back, or never any good
            return
        self.candidate, self._since = published, now

    def decide(self, learners: Sequence[Learner], now: float) -> Initialization | None:
        """The candidate once it may be served by these learners, which serve another one.

        None while there is none, or not enough to judge it by yet.
        """
        published = self.candidate
        if published is None:
            return None
        candidate = published.initialization
        try:
            for learner in learners:
                learner.check_version(candidate)
            trial = try_out(learners, candidate)
        except InitializationError as error:
            self._drop(published, learners, _result_of(error), str(error))
            return None
        if trial.worse:
            self._drop(published, learners, "worse", trial.reason)
            return None
        if learners and trial.contexts < ENOUGH and now - self._since < TRY_WITHIN_S:
            return None
        self.candidate, self._digest, self.served = None, published.digest, candidate
        log.info(
            "initialization_taken",
            version=candidate.version,
            contexts=trial.contexts,
            loss=round(trial.candidate, 4),
            loss_before=round(trial.served, 4),
        )
        self._tell.initialization("loaded", candidate.version)
        return candidate

    def _checked(self, record: Record) -> Published:
        published = read_published(record)
        check_fits(published.initialization, self._spec)
        return published

    def _drop(
        self, published: Published, learners: Sequence[Learner], result: LoadResult, why: str
    ) -> None:
        self.candidate = None
        self._refused.add(published.digest)
        if learners:  # after a restart these may be ahead of the configured start
            found = (learner.initialization for learner in learners)
            self.served = max(found, key=lambda initialization: initialization.version)
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


def _result_of(error: InitializationError) -> LoadResult:
    if isinstance(error, NonFiniteError):
        return "nonfinite"
    return "fingerprint" if isinstance(error, MisfitError) else "corrupt"
