"""The outer loop's job: episodes in, from time to time a better initialization out.

Rules: the current initialization of the topic is the incumbent, and only what passed the gate
against it takes its place, in one transaction with its version. Whoever publishes has fenced all
before it, so of two loops one ends, and an operator's rollback is taken over. Whatever fails
outside is repaired in one way: close the clients, build new ones, read the topic again. Nothing
here sleeps past a stop, nor trains past one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple, Protocol

import structlog

from streammaml.backends.ports import Publisher, Record, Tail
from streammaml.backends.wire_episodes import decode_episode
from streammaml.catalogue import read_all
from streammaml.checkpoint import Checkpoint
from streammaml.config import Config
from streammaml.errors import (
    BackendError,
    FencedError,
    InitializationError,
    RejectedError,
    UnavailableError,
)
from streammaml.events import Episode
from streammaml.initialization import Initialization
from streammaml.meta.outer_loop import Rule
from streammaml.meta.reservoir import Refused, Reservoir
from streammaml.meta.trial import try_out
from streammaml.meta_trainer import Outcome, Trainer
from streammaml.outer_run import TOLD, Observer, Progress, Run, RunResult, run_of
from streammaml.patience import Patience
from streammaml.starts import version_zero
from streammaml.succession import Standing, Succession, group_of

POLL_S = 0.5
SETTLE_S = 0.5
"""A topic that gives nothing for so long has been read to its end."""

TRAINING_SHARE = 0.1
"""Of a period, at most: what contexts adapt from is to know the stream as it is, and a stream that
drifts leaves behind what was trained for long."""

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


class _Clients(NamedTuple):
    publisher: Publisher
    initializations: Tail
    episodes: Tail


class OuterJob:
    """Reads episodes, trains on them, and publishes what passes the gate.

    ``begin`` is where training starts at first, in place of the incumbent: another domain's
    initialization. ``past`` are episodes beside those of the topic. ``beat`` is called at each turn
    and between outer steps, for a watchdog. ConfigError of a module that the rule cannot train.
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
        progress: Progress = lambda steps: nullcontext(lambda done, note: None),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._outside = outside
        self._observers = tuple(observers)
        self._begin = begin
        self._beat = beat
        self._progress = progress
        self._clock = clock
        self._clients: _Clients | None = None
        if not try_out(version_zero(config), Rule(config.outer.rule), config.learner.support_size):
            log.info("network_task_by_task", why="vmap cannot run it for all tasks at once")
        self._succession = Succession(config, self._objection)
        self._reservoir = Reservoir(config)
        self._trainer: Trainer | None = None
        self._patience = Patience(config.kafka.unavailable_limit_s)
        self._checkpoint = Checkpoint(config.state.directory, group_of(config))
        self._stop = threading.Event()
        self._doubted_s = -math.inf
        """Episodes up to this time may have been trained on by a process before."""
        self.loop_at = time.monotonic()
        """Monotonic time of the latest turn, for the health check."""
        self.is_ready = False
        """Whether it knows the incumbent and has read the episodes that were there."""
        self._take((episode, False) for episode in past)

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
                    self._open()
                    if self.is_ready and self._clock() >= due:
                        self._train(TRAINING_SHARE * period_s)
                        due = max(due + period_s, self._clock())
                    self._listen(max(0.0, min(POLL_S, due - self._clock())))
                except BackendError as error:
                    self._recover(error)
        finally:
            self._close()

    def once(self, stop: threading.Event) -> Run:
        """Read what is there, train once, publish what passes. Raises as :meth:`run` does."""
        self._stop = stop
        try:
            while True:
                try:
                    self._open()
                    return self._train()
                except BackendError as error:
                    self._recover(error)
        finally:
            self._close()

    def _open(self) -> None:
        """Connect, if not connected; read what the topics hold."""
        if self._clients is not None or self._stop.is_set():
            return
        clients = self._clients = self._connect()
        self._adopt(self._succession.begin(clients.initializations, self._stop, self._turn))
        read_all(clients.episodes, self._collect, self._stop, self._turn)
        self._patience.heard()
        self.is_ready = not self._stop.is_set()

    def _connect(self) -> _Clients:
        """The publisher first: behind it nothing of an older loop can follow."""
        made: list[Publisher | Tail] = []
        try:
            publisher = self._outside.publisher()
            made.append(publisher)
            initializations = self._outside.initializations()
            made.append(initializations)
            clients = _Clients(publisher, initializations, self._outside.episodes())
        except BaseException:
            for client in made:
                client.close()
            raise
        log.info("connected", topic=self._config.topics.episodes)
        return clients

    def _close(self) -> None:
        """Let go of the clients."""
        self.is_ready = False
        clients, self._clients = self._clients, None
        for client in clients or ():
            try:
                client.close()
            except BackendError as error:
                log.warning("close_failed", error=str(error))

    def _train(self, longest_s: float = math.inf) -> Run:
        """One run: train within its limits, judge, publish; told to all who want to know."""
        started = self._clock()
        try:
            run = self._try(started + min(self._config.outer.seconds, longest_s))
        except InitializationError as error:  # the next run may do better
            run = self._run("failed", str(error))
        except Exception as error:
            self._tell(self._run("failed", str(error) or repr(error)), started)
            raise
        return self._tell(run, started)

    def _try(self, deadline: float) -> Run:
        trainer = self._trainer
        if trainer is None or self._stop.is_set():
            return self._run("skipped", "stopped")

        def expired() -> bool:
            return self._stopped() or self._clock() >= deadline

        steps = self._config.outer.steps
        log.info(
            "outer_run_begins",
            parent=trainer.incumbent.version,
            episodes=len(self._reservoir),
            contexts=self._reservoir.contexts,
        )
        trainer.saw(self._succession.highest)
        with self._progress(steps) as tell:
            outcome = trainer.run(
                steps, expired, lambda done, _, loss: tell(done, f"loss {loss:.3f}"), self._stopped
            )
        run = self._run(outcome.result.value, outcome.why, outcome)
        if self._stop.is_set():
            return replace(run, result="skipped", why="stopped")
        # The next start draws other episodes, and knows which ones a candidate was trained on even
        # if this process ends right after it was published.
        self._checkpoint.write(trainer.checkpoint())
        if outcome.candidate is None:
            return run
        try:
            if self._follow(SETTLE_S) and self._succession.highest < outcome.candidate.version:
                return self._publish(trainer, outcome.candidate, run)
        except FencedError:
            if not self._was_rolled_back():
                raise
        why = "another initialization was published meanwhile"
        return replace(run, result="skipped", why=why, version=trainer.incumbent.version)

    def _publish(self, trainer: Trainer, fresh: Initialization, run: Run) -> Run:
        assert self._clients is not None
        report = {**run.report, "group": group_of(self._config)}
        messages = self._succession.messages(fresh, report)
        self._clients.publisher.publish(messages, self._stop)
        self._patience.heard()
        self._succession.published(fresh, messages)
        trainer.adopt(fresh)
        self._checkpoint.write(trainer.checkpoint())
        self._tell_version(fresh.version)
        return replace(run, version=fresh.version, report=report)

    def _follow(self, settle_s: float) -> bool:
        """Read on in ``initializations``; whether the incumbent is still the current one."""
        assert self._clients is not None
        standing, incumbent = self._succession.follow(self._clients.initializations, settle_s)
        self._adopt(incumbent)
        if standing is Standing.ROLLED_BACK:
            self._close()
        return standing is Standing.SAME

    def _adopt(self, incumbent: Initialization | None) -> None:
        """Train from another incumbent from now on, as far as there is one."""
        if incumbent is None:
            return
        if self._trainer is None:
            self._trainer = self._new_trainer(incumbent)
        else:
            self._trainer.adopt(incumbent)
        log.info("incumbent", version=incumbent.version, digest=self._succession.digest)
        self._tell_version(incumbent.version)

    def _objection(self, fresh: Initialization) -> str:
        return "" if self._trainer is None else self._trainer.objection(fresh, self._stopped)

    def _new_trainer(self, incumbent: Initialization) -> Trainer:
        """With the optimizer state of the run that made the incumbent, where that is kept.

        Another domain's initialization is where a line begins: one that is there goes on.
        """
        begin = self._begin
        if begin is not None and self._succession.has_published:
            cure = "the topic has versions of this group; give another outer.group to begin anew"
            log.warning("other_domain_not_used", version=begin.version, why=cure)
            begin = None
        trainer = Trainer(self._config, incumbent, self._reservoir, start_from=begin)
        state = self._checkpoint.read() if begin is None else None
        if state is not None:
            why = trainer.restore(state)
            log.info("optimizer_begins_anew" if why else "optimizer_resumed", why=why)
        if self._succession.has_published and not self._reservoir.remembers:
            self._doubted_s = self._succession.published_s
            self._reservoir.doubt()
            log.warning(
                "held_out_unknown",
                why="no checkpoint says what was trained on: what came "
                "before the current version trains, and only what comes after it judges",
            )
        return trainer

    def _listen(self, timeout_s: float) -> None:
        """Take in what comes within the time; see who else has published."""
        self._turn()
        if self._clients is not None and self.is_ready:
            self._collect(self._clients.episodes.poll(timeout_s))
            self._follow(0.0)

    def _collect(self, records: Sequence[Record]) -> None:
        """Into the reservoir with the episodes; of those that are none one line for all."""
        episodes, bad, example = [], 0, ""
        for record in records:
            try:
                trained = record.timestamp / 1000 <= self._doubted_s
                episodes.append((decode_episode(record, self._config), trained))
            except RejectedError as error:
                bad += 1
                example = example or f"offset {record.offset}: {error.reason.value}: {error}"
        if records:
            self._take(episodes, bad, example)

    def _take(
        self, episodes: Iterable[tuple[Episode, bool]], bad: int = 0, example: str = ""
    ) -> None:
        accepted = duplicate = 0
        for episode, trained in episodes:
            refused = self._reservoir.add(episode, trained)
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

    def _recover(self, error: BackendError) -> None:
        """Let go of the clients and wait for the next try, or raise what ends this process."""
        if self._stop.is_set():
            return
        if isinstance(error, FencedError):
            # Without clients it is known already that no operator did it.
            if self._clients is None or not self._was_rolled_back():
                raise error
            return
        self._close()
        wait_s = self._patience.failed(self._clock())
        limit_s = self._config.kafka.unavailable_limit_s
        if wait_s is None:
            why = f"gave up after {limit_s:g} s without a working broker: {error}"
            raise UnavailableError(why) from error
        log.warning("broker_failed", error=str(error), retry_in_s=round(wait_s, 1), limit_s=limit_s)
        self._turn()
        self.loop_at += wait_s  # the loop counts as alive meanwhile
        self._stop.wait(wait_s)

    def _was_rolled_back(self) -> bool:
        """Whether an operator fenced this loop, which then goes on, and no other loop did."""
        self._close()
        tail = self._outside.initializations()
        try:
            return self._succession.was_rolled_back(tail, self._stop, self._turn)
        finally:
            tail.close()

    def _run(self, result: RunResult, why: str, outcome: Outcome | None = None) -> Run:
        version = -1 if self._trainer is None else self._trainer.incumbent.version
        return run_of(result, why, version, outcome)

    def _tell(self, run: Run, started: float) -> Run:
        run = replace(run, seconds=self._clock() - started)
        tell = log.warning if run.result == "failed" else log.info
        tell("outer_run", **{k: getattr(run, k) for k in TOLD}, seconds=round(run.seconds, 2))
        for observer in self._observers:
            observer.ran(run, time.time())
        return run

    def _tell_version(self, version: int) -> None:
        for observer in self._observers:
            observer.serving(version)

    def _stopped(self) -> bool:
        self._turn()
        return self._stop.is_set()

    def _turn(self) -> None:
        self.loop_at = time.monotonic()
        self._beat()
