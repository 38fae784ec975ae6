"""The outer loop's job on a memory broker, with episodes of a generated stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

from streammaml.backends.memory import MemoryBroker, MemoryPublisher, MemoryTail
from streammaml.backends.ports import Message, Publisher, Tail
from streammaml.backends.wire_episodes import encode_episode
from streammaml.backends.wire_initializations import rollback_message
from streammaml.catalogue import Catalogue
from streammaml.config import Config
from streammaml.evaluation.streams import hyper
from streammaml.initialization import Initialization
from streammaml.outer import OuterJob
from streammaml.outer_run import Run
from tests.meta.episode_maker import episodes_of, make_config

PERIOD_S = 1000.0
QUICK = {"steps": 10, "meta_batch": 8, "margin": 10.0, "feature_nets": False, "validation": 128}


class MemoryOutside:
    """Builds the clients on a memory broker; ``step`` is called before each with its name, and
    with "publish" before each publication.
    """

    def __init__(self, broker: MemoryBroker, config: Config) -> None:
        self._broker = broker
        self._config = config
        self.step: Callable[[str], None] = lambda name: None

    def publisher(self) -> Publisher:
        self.step("publisher")
        return _Announced(self._broker, self._config, lambda: self.step("publish"))

    def initializations(self) -> Tail:
        self.step("initializations")
        return MemoryTail(self._broker, self._config.topics.initializations)

    def episodes(self) -> Tail:
        self.step("episodes")
        return MemoryTail(self._broker, self._config.topics.episodes)


class _Announced(MemoryPublisher):
    def __init__(self, broker: MemoryBroker, config: Config, before: Callable[[], None]) -> None:
        super().__init__(broker, config)
        self._before = before

    def publish(self, messages: Sequence[Message], stop: threading.Event | None = None) -> None:
        self._before()
        super().publish(messages, stop)


class Seen:
    """What an observer was told."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.versions: list[int] = []
        self.counts = [0, 0, 0]
        self.kept = (0, 0)
        self.on_run: Callable[[Run], None] = lambda run: None

    def episodes(self, accepted: int, rejected: int, duplicate: int) -> None:
        self.counts = [
            a + b for a, b in zip(self.counts, (accepted, rejected, duplicate), strict=True)
        ]

    def reservoir(self, episodes: int, contexts: int) -> None:
        self.kept = episodes, contexts

    def serving(self, version: int) -> None:
        self.versions.append(version)

    def ran(self, run: Run, now_s: float) -> None:
        self.runs.append(run)
        self.on_run(run)


@cache
def messages(contexts: int, events: int, seed: int) -> tuple[Message, ...]:
    """The episodes of a stream, as :func:`make_config` has it, for whatever topic."""
    config = make_config()
    made = (encode_episode(e, config) for e in episodes_of(hyper(contexts, events, seed)))
    return tuple(message for message in made if message is not None)


class Rig:
    """One broker and one configuration; jobs on them."""

    def __init__(self, folder: Path, **outer: Any) -> None:
        made = make_config(**{**QUICK, **outer})
        state = made.state.model_copy(update={"directory": str(folder)})
        self.config = made.model_copy(update={"state": state})
        self.broker = MemoryBroker.of(self.config)
        self.outside = MemoryOutside(self.broker, self.config)
        self.seen = Seen()

    def produce(self, contexts: int = 40, events: int = 220, seed: int = 1) -> int:
        """Send the episodes of a stream; how many there are."""
        topic = self.config.topics.episodes
        sent = [m._replace(topic=topic) for m in messages(contexts, events, seed)]
        self.broker.append(sent)
        return len(sent)

    def job(self, config: Config | None = None, **more: Any) -> OuterJob:
        return OuterJob(config or self.config, self.outside, [self.seen], **more)

    def run(self, until: Callable[[Run], bool], **more: Any) -> None:
        """One life, run after run at once, until after a run something holds."""
        stop, seen = threading.Event(), self.seen
        then = seen.on_run

        def on_run(run: Run) -> None:
            then(run)
            if until(run):
                stop.set()

        seen.on_run = on_run
        self.job(clock=lambda: PERIOD_S * len(seen.runs), **more).run(stop, PERIOD_S)

    def once(self, **more: Any) -> Run:
        return self.job(**more).once(threading.Event())

    def other(self) -> Rig:
        """Another loop of the same group on the same broker, from another machine."""
        twin = copy(self)
        state = self.config.state.model_copy(update={"directory": ""})
        twin.config = self.config.model_copy(update={"state": state})
        twin.outside, twin.seen = MemoryOutside(self.broker, twin.config), Seen()
        return twin

    def catalogue(self, keep: int | None = None) -> Catalogue:
        """What the topic holds."""
        catalogue = Catalogue(keep)
        refused = catalogue.read(self.broker.read(self.config.topics.initializations))
        assert refused == []
        return catalogue

    @property
    def current(self) -> Initialization:
        current = self.catalogue().current
        assert current is not None
        return current.initialization

    def roll_back(self, version: int) -> None:
        """As an operator would."""
        kept = self.catalogue(keep=version).kept
        assert kept is not None
        MemoryPublisher(self.broker, self.config).publish([rollback_message(kept)])
