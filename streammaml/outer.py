"""The outer loop's job: episodes in, from time to time a better initialization out.

Rules: the current initialization of the topic is the incumbent, and only what passed the gate
against it takes its place, in one transaction with its version. Whoever publishes has fenced all
before it, so of two loops one ends, and an operator's rollback is taken over. Whatever fails
outside is repaired in one way: close the clients, build new ones, read the topic again. Nothing
here sleeps past a stop, nor trains past one.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import structlog

from streammaml.backends.ports import Message, Publisher, Record, Tail
from streammaml.backends.wire_episodes import decode_episode
from streammaml.backends.wire_initializations import (
    DIGEST_CHARACTERS,
    Published,
    initialization_messages,
    tombstone,
)
from streammaml.catalogue import Catalogue, read_all
from streammaml.checkpoint import Checkpoint
from streammaml.config import Config, spec_of
from streammaml.errors import (
    BackendError,
    FencedError,
    MisfitError,
    RejectedError,
    UnavailableError,
)
from streammaml.events import Episode
from streammaml.initialization import Initialization, check_fits, encode
from streammaml.meta.reservoir import Refused, Reservoir
from streammaml.meta_trainer import Outcome, Trainer
from streammaml.starts import load_start
from streammaml.worker import Patience

POLL_S = 0.5
SETTLE_S = 0.5
"""A topic that gives nothing for so long has been read to its end."""
GRACE_S = 5.0
"""How long after it was fenced the loop waits to see an operator's rollback."""

RunResult = Literal["published", "rejected", "skipped", "failed"]
Tell = Callable[[int, str], None]

log = structlog.get_logger(__name__)


class Outside(Protocol):
    """Builds what the job talks to."""

    def publisher(self) -> Publisher:
        """Fences the ones before it."""
        ...

    def initializations(self) -> Tail:
        """From the beginning of the topic."""
        ...

    def episodes(self) -> Tail:
        """About as many of the newest as the reservoir holds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What became of one run."""

    result: RunResult
    why: str
    version: int
    """The current one after it."""
    parent: int
    """The one that it began with."""
    seconds: float
    steps: int = 0
    nonfinite: int = 0
    tasks: int = 0
    report: Mapping[str, Any]


class Observer(Protocol):
    """Who wants to know what the job does."""

    def episodes(self, accepted: int, rejected: int, duplicate: int) -> None: ...
    def reservoir(self, episodes: int, contexts: int) -> None: ...
    def serving(self, version: int) -> None: ...
    def ran(self, run: Run, now_s: float) -> None: ...


class _Clients(NamedTuple):
    publisher: Publisher
    initializations: Tail
    episodes: Tail


class OuterJob:
    """Reads episodes, trains on them, and publishes what passes the gate.

    ``beat`` is called at each turn and between outer steps, for a watchdog; ``progress`` gives what
    is told of each run's steps. ``begin`` is where training starts while nothing of this loop is
    current: another domain's initialization.
    """

    def __init__(
        self,
        config: Config,
        outside: Outside,
        observers: Sequence[Observer] = (),
        *,
        begin: Initialization | None = None,
        past: Iterable[Episode] = (),
        beat: Callable[[], None] = lambda: None,
        tell: Tell = lambda done, note: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._outside = outside
        self._observers = tuple(observers)
        self._begin = begin
        self._beat = beat
        self._tell = tell
        self._clock = clock
        self._clients: _Clients | None = None
        self._catalogue = Catalogue()
        self._offset = -1  # of the current one, when the publisher was made
        self._reservoir = Reservoir(config)
        self._trainer: Trainer | None = None
        self._digest = ""  # of the incumbent
        self._patience = Patience(config.kafka.unavailable_limit_s)
        self._checkpoint = Checkpoint(config.state.directory, group_of(config))
        self._stop = threading.Event()
        self.loop_at = time.monotonic()
        """Monotonic time of the latest turn, for the health check."""
        self.is_ready = False
        """Whether it knows the incumbent and has read the episodes that were there."""
        self._take(past)

    @property
    def incumbent(self) -> Initialization:
        assert self._trainer is not None, "open() first"
        return self._trainer.incumbent

    def run(self, stop: threading.Event, period_s: float) -> None:
        """Train every ``period_s`` until ``stop``.

        Raises UnavailableError when the broker stays away beyond the limit, FencedError when
        another loop has taken over, MisfitError when the topic is another model's.
        """
        self._stop = stop
        due = self._clock()
        try:
            while not stop.is_set():
                try:
                    self.open()
                    if not stop.is_set() and self._clock() >= due:
                        self.train(period_s)
                        due = max(due + period_s, self._clock())
                    self._listen(max(0.0, min(POLL_S, due - self._clock())))
                except BackendError as error:
                    self._wait(self._after(error))
        finally:
            self.close()

    def once(self, stop: threading.Event) -> Run:
        """Read what is there, train once, publish what passes. Raises as :meth:`run` does."""
        self._stop = stop
        try:
            while True:
                try:
                    self.open()
                    return self.train()
                except BackendError as error:
                    self._wait(self._after(error))
        finally:
            self.close()

    def open(self) -> None:
        """Connect, if not connected; read what the topics hold."""
        if self._clients is not None or self._stop.is_set():
            return
        self._connect()
        assert self._clients is not None
        self._catalogue = Catalogue()
        read_all(self._clients.initializations, self._note, self._stop, self._turn)
        if self._stop.is_set():
            return
        self._offset = self._catalogue.current_offset
        self._adopt()
        read_all(self._clients.episodes, self._collect, self._stop, self._turn)
        self._patience.heard()
        self.is_ready = True

    def train(self, longest_s: float = math.inf) -> Run:
        """One run: train within its limits, judge, publish."""
        started = self._clock()
        try:
            run = self._train(started, min(self._config.outer.seconds, longest_s))
        except Exception as error:
            self._tell_run(self._run("failed", str(error) or repr(error)), started)
            raise
        return self._tell_run(run, started)

    def close(self) -> None:
        """Let go of the clients."""
        self.is_ready = False
        clients, self._clients = self._clients, None
        for client in clients or ():
            try:
                client.close()
            except BackendError as error:
                log.warning("close_failed", error=str(error))

    def _connect(self) -> None:
        """The publisher first: behind it nothing of an older loop can follow."""
        made: list[Publisher | Tail] = []
        try:
            publisher = self._outside.publisher()
            made.append(publisher)
            initializations = self._outside.initializations()
            made.append(initializations)
            self._clients = _Clients(publisher, initializations, self._outside.episodes())
        except BaseException:
            for client in made:
                client.close()
            raise
        log.info("connected", topic=self._config.topics.episodes)

    def _train(self, started: float, seconds: float) -> Run:
        if self._trainer is None or self._stop.is_set():
            return self._run("skipped", "stopped")

        def expired() -> bool:
            self._turn()
            return self._stop.is_set() or self._clock() - started >= seconds

        outcome = self._trainer.run(self._reservoir, expired, self._tell)
        run = self._run(outcome.result, outcome.why, outcome)
        if self._stop.is_set():
            return replace(run, result="skipped", why="stopped")
        if outcome.candidate is None:
            self._keep_state()
            return run
        try:
            if self._follow(SETTLE_S):
                return self._publish(outcome.candidate, run)
        except FencedError:
            self._require_rollback()
        return replace(run, result="skipped", why="another initialization became current meanwhile")

    def _publish(self, candidate: Initialization, run: Run) -> Run:
        """The candidate as the next version and the current one; what is too old goes."""
        assert self._clients is not None
        assert self._trainer is not None
        parent = self.incumbent.version
        number = max(self._catalogue.highest, parent) + 1
        fresh = replace(candidate, version=number, parent=parent)
        report = {**run.report, "group": group_of(self._config)}
        topic = self._config.topics.initializations
        messages = initialization_messages(fresh, report, topic=topic)
        kept = sorted({*self._catalogue.entries, number})[-self._config.outer.keep_versions :]
        gone = [tombstone(v, topic=topic) for v in self._catalogue.entries if v < kept[0]]
        self._clients.publisher.publish([*messages, *gone])
        self._patience.heard()
        self._note([_Sent.of(message) for message in [*messages, *gone]])
        self._trainer.published(fresh)
        self._digest = digest_of(fresh)
        self._own.add(self._digest)
        self._keep_state()
        for observer in self._observers:
            observer.serving(number)
        return replace(run, version=number, report=report)

    def _follow(self, settle_s: float = 0.0) -> bool:
        """Read on in ``initializations``; whether what is current is still the incumbent.

        FencedError if a loop of this group has published.
        """
        assert self._clients is not None
        while records := self._clients.initializations.poll(settle_s):
            self._note(records)
        current = self._catalogue.current
        if current is None or current.digest == self._digest:
            return True
        if current.by != ROLLBACK and current.digest in self._own:
            return True  # what was published before the incumbent comes back late
        if current.by != ROLLBACK and current.report.get("group") == group_of(self._config):
            raise FencedError(f"v{current.version} is another loop's")
        log.info("superseded", version=current.version, by=current.by)
        self._adopt()
        if current.by == ROLLBACK:
            self.close()  # whoever rolled back has fenced this publisher
        return False

    def _require_rollback(self) -> None:
        """Go on if an operator's rollback fenced this loop, end with the cure if not."""
        self.close()
        catalogue = Catalogue()
        tail = self._outside.initializations()
        try:
            read_all(tail, catalogue.read, self._stop, self._turn)
            deadline = time.monotonic() + GRACE_S
            while not self._stop.is_set():
                current = catalogue.current
                is_new = catalogue.current_offset > self._offset
                if current is not None and is_new and current.by == ROLLBACK:
                    return
                if time.monotonic() > deadline:
                    break
                self._turn()
                catalogue.read(tail.poll(SLICE_S))
        finally:
            tail.close()
        if not self._stop.is_set():
            raise FencedError(
                f"another outer loop of the group {group_of(self._config)!r} has taken over: run "
                "one only, or give each its own topics.initializations and outer.group"
            )

    def _adopt(self) -> None:
        """Let what is current be the incumbent: the topic's, or what the configuration names."""
        current = self._catalogue.current or self._catalogue.newest
        incumbent = load_start(self._config) if current is None else current.initialization
        digest = digest_of(incumbent) if current is None else current.digest
        if self._trainer is not None and digest == self._digest:
            return
        try:
            check_fits(incumbent, spec_of(self._config))
        except MisfitError as error:
            raise MisfitError(
                f"v{incumbent.version} in {self._config.topics.initializations!r}: {error}; or "
                "name a topic of its own with --set topics.initializations=NAME"
            ) from error
        self._trainer = Trainer(self._config, incumbent, begin=self._begin)
        self._digest = digest
        self._reservoir.follow(incumbent.classes)
        state = None if self._begin is not None else self._checkpoint.read(digest)
        resumed = state is not None and self._trainer.restore(state)
        self._begin = None
        log.info("incumbent", version=incumbent.version, digest=digest, resumed=resumed)
        for observer in self._observers:
            observer.serving(incumbent.version)

    def _keep_state(self) -> None:
        assert self._trainer is not None
        self._checkpoint.write(self._trainer.pack(), self._digest)

    def _listen(self, timeout_s: float) -> None:
        """Take in what comes within the time; see who else has published."""
        self._turn()
        if self._clients is None or self._stop.is_set():
            return
        self._collect(self._clients.episodes.poll(timeout_s))
        self._follow()

    def _note(self, records: Sequence[Record]) -> None:
        for refused in self._catalogue.read(records):
            log.warning("initialization_refused", **refused._asdict())

    def _collect(self, records: Sequence[Record]) -> None:
        """Into the reservoir with the episodes; of those that are none one line for all."""
        if not records:
            return
        episodes, bad = [], 0
        example = ""
        for record in records:
            try:
                episodes.append(decode_episode(record, self._config))
            except RejectedError as error:
                bad += 1
                example = example or f"offset {record.offset}: {error.reason.value}: {error}"
        self._take(episodes, bad, example)

    def _take(self, episodes: Iterable[Episode], bad: int = 0, example: str = "") -> None:
        accepted = duplicate = 0
        for episode in episodes:
            refused = self._reservoir.add(episode)
            if refused is None:
                accepted += 1
            elif refused is Refused.DUPLICATE:
                duplicate += 1
            else:
                bad += 1
                example = example or f"{episode.context!r}: {refused.value}"
        if bad:
            log.warning("episodes_rejected", count=bad, example=example)
        for observer in self._observers:
            observer.episodes(accepted, bad, duplicate)
            observer.reservoir(len(self._reservoir), self._reservoir.contexts)

    def _run(self, result: RunResult, why: str, outcome: Outcome | None = None) -> Run:
        version = -1 if self._trainer is None else self.incumbent.version
        run = Run(result=result, why=why, version=version, parent=version)
        if outcome is None:
            return run
        return replace(
            run,
            steps=outcome.steps,
            nonfinite=outcome.nonfinite,
            tasks=outcome.tasks,
            report=outcome.report,
        )

    def _tell_run(self, run: Run, started: float) -> Run:
        run = replace(run, seconds=self._clock() - started)
        tell = log.warning if run.result == "failed" else log.info
        tell("outer_run", **run.line())
        for observer in self._observers:
            observer.ran(run, time.time())
        return run

    def _after(self, error: BackendError) -> float:
        """Let go of the clients; the seconds until the next try, or what ends this process."""
        if isinstance(error, FencedError):
            self._require_rollback()
            return 0.0
        self.close()
        wait_s = self._patience.failed(self._clock())
        limit_s = self._config.kafka.unavailable_limit_s
        if wait_s is None:
            raise UnavailableError(
                f"gave up after {limit_s:g} s without a working broker: {error}"
            ) from error
        log.warning("broker_failed", error=str(error), retry_in_s=round(wait_s, 1), limit_s=limit_s)
        return wait_s

    def _wait(self, seconds: float) -> None:
        """Wait out a back-off; the loop counts as alive meanwhile."""
        self._turn()
        self.loop_at += seconds
        self._stop.wait(seconds)

    def _turn(self) -> None:
        self.loop_at = time.monotonic()
        self._beat()


class _Sent(NamedTuple):
    """A message as the record that it has become, at an offset that nobody told."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int
    offset: int = -1

    @classmethod
    def of(cls, message: Message) -> _Sent:
        return cls(message.key, message.value, message.headers, time.time_ns() // 1_000_000)


def group_of(config: Config) -> str:
    """Loops of one group fence each other."""
    return config.outer.group or config.kafka.group


def digest_of(initialization: Initialization) -> str:
    """As of its bytes in the topic."""
    return hashlib.sha256(encode(initialization)).hexdigest()[:DIGEST_CHARACTERS]
