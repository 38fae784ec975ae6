"""The worker takes over what is published: tried first, at a committed offset, no bad one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import streammaml.following
import streammaml.worker
from streammaml.backends.memory import MemoryBroker
from streammaml.backends.ports import Message, Partition, Record
from streammaml.backends.wire_initializations import initialization_messages
from streammaml.config import Config
from streammaml.initialization import Initialization, draw
from streammaml.learner import Labels
from streammaml.meta_trainer import Past, train
from streammaml.reporting import LoadResult
from streammaml.worker import Worker
from tests import wire
from tests.integration.live import bad_messages
from tests.wire import drain

EVENTS = 1_200
CONTEXTS = 12


class Told:
    """An observer that listens to the loads, and counts episodes."""

    def __init__(self) -> None:
        self.loads: list[tuple[LoadResult, int]] = []
        self.episodes: Counter[str] = Counter()

    def initialization(self, result: LoadResult, version: int) -> None:
        self.loads.append((result, version))

    def played(self, played: Any, now_s: float) -> None:
        self.episodes.update(played.episodes)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


@pytest.fixture(autouse=True)
def _at_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streammaml.worker, "FOLLOW_EVERY_S", -1.0)


def settings(**sections: dict[str, Any]) -> Config:
    made = {"features": [{"name": f"x{i}"} for i in range(10)], "label": {"classes": [0, 1]}}
    return Config.build(wire.config(**sections).model_dump(), made)


def messages(count: int = EVENTS, seed: int = 0, first: int = 0) -> list[Message]:
    """Events of contexts that all have one direction in common, so that an exchange shows."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(CONTEXTS, 10)) * 0.3
    found = []
    for i in range(first, first + count):
        x, c = rng.normal(size=10).round(4), i % CONTEXTS
        label = int(x @ (own[c] + 1.0) > 0)
        features = {f"x{k}": float(v) for k, v in enumerate(x)}
        value = {"id": i, "context": f"c-{c}", "features": features, "label": label}
        found.append(Message("events", f"c-{c}".encode(), json.dumps(value).encode()))
    return found


def trained(config: Config) -> Initialization:
    """A better start than a random one, as version 1."""
    rng = np.random.default_rng(1)
    contexts = np.repeat(np.arange(30), 60)
    x = rng.normal(size=(len(contexts), 10)).astype(np.float32)
    own = rng.normal(size=(30, 10)) * 0.3
    y = (np.einsum("nd,nd->n", x, own[contexts] + 1.0) > 0).astype(float)
    past = Past(contexts=contexts, x=x, y=y, labels=Labels(config.label))
    return train(config, past, steps=60).initialization


def publish(broker: MemoryBroker, found: list[Message]) -> None:
    broker.append([m._replace(topic="initializations") for m in found])


def versions(broker: MemoryBroker) -> list[int]:
    """Behind the predictions, by partition and offset."""
    told = [json.loads(r.value or b"") for r in broker.read("predictions")]
    told.sort(key=lambda p: (p["partition"], p["offset"]))
    return [p["initialization"] for p in told]


def make(broker: MemoryBroker, config: Config, told: Told | None = None) -> Worker:
    connect = wire.Connector(broker, config)
    return Worker(config, draw_start(config), connect, [told or Told()])


def draw_start(config: Config) -> Initialization:
    return wire.initialization(config)


def test_a_version_is_taken_without_a_restart_and_nothing_is_lost() -> None:
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    worker = make(broker, config, told)
    broker.append(messages())
    drain(worker)
    publish(broker, initialization_messages(trained(config), {}))
    drain(worker)
    broker.append(messages(first=EVENTS, seed=2))
    drain(worker)
    worker.close()

    assert told.loads == [("loaded", 1)]
    ids = Counter(json.loads(r.value or b"")["event"] for r in broker.read("predictions"))
    assert ids == Counter(range(2 * EVENTS))
    assert {p: t for p, t in Counter(versions(broker)).items() if p not in (0, 1)} == {}
    assert {learner.version for learner in make_again(broker, config)} == {1}


def make_again(broker: MemoryBroker, config: Config) -> list[Any]:
    """The learners of the next worker, as they stand before its first event."""
    worker = make(broker, config)
    drain(worker)
    found = list(worker.learners.values())
    worker.close()
    return found


def test_what_is_published_before_the_first_event_serves_from_it_on() -> None:
    config = settings()
    broker = MemoryBroker.of(config)
    publish(broker, initialization_messages(trained(config), {}))
    broker.append(messages(100))
    worker = make(broker, config)
    drain(worker)
    worker.close()

    assert set(versions(broker)) == {1}


def test_the_swap_is_in_the_state_at_the_offset_where_it_took_effect() -> None:
    """A kill right after the swap's commit: the next life goes on with it, and replays nothing."""
    config = settings(state={"barrier_interval_s": 1e6, "barrier_events": 1_000_000})
    broker = MemoryBroker.of(config)
    worker = make(broker, config)
    broker.append(messages())
    drain(worker)
    publish(broker, initialization_messages(trained(config), {}))
    broker.append(messages(24, first=EVENTS, seed=2))
    drain(worker)
    before = broker.committed("streammaml", Partition("events", 0))
    worker._drop()  # as a kill leaves it: nothing more is written
    again = make(broker, config)
    drain(again)

    assert broker.committed("streammaml", Partition("events", 0)) == before
    assert {learner.version for learner in again.learners.values()} == {1}
    assert {t.standing.committed for t in again.tenures.values()} == {
        t.next_offset for t in again.tenures.values()
    }
    again.close()


@pytest.mark.parametrize("kind", ["nonfinite", "scaled", "flipped"])
def test_a_bad_one_is_refused_told_and_never_served(kind: str) -> None:
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    good = trained(config)
    publish(broker, initialization_messages(good, {}))
    worker = make(broker, config, told)
    broker.append(messages())
    drain(worker)
    publish(broker, bad_messages(good)[kind](2))
    broker.append(messages(200, first=EVENTS, seed=2))
    drain(worker)

    expected = "nonfinite" if kind == "nonfinite" else "worse"
    assert told.loads == [("loaded", 1), (expected, 1)]
    assert set(versions(broker)) == {1}
    worker.close()


def test_after_a_restart_a_bad_one_is_tried_again_and_refused_again() -> None:
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    good = trained(config)
    publish(broker, initialization_messages(good, {}))
    broker.append(messages())
    first = make(broker, config)
    drain(first)
    publish(broker, bad_messages(good)["flipped"](2))
    drain(first)
    first.close()
    second = make(broker, config, told)
    broker.append(messages(600, first=EVENTS, seed=2))
    drain(second)
    second.close()

    assert told.loads == [("worse", 1)]
    assert set(versions(broker)) == {1}


def test_another_model_s_and_bytes_that_are_none_are_refused() -> None:
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    worker = make(broker, config, told)
    broker.append(messages(100))
    drain(worker)
    other = replace(draw_start(config).spec, schema="another")
    publish(broker, initialization_messages(replace(draw(other, 0), version=3), {}))
    drain(worker)
    publish(broker, [Message("", b"current", b"none")])
    drain(worker)
    worker.close()

    assert told.loads == [("fingerprint", 0), ("corrupt", 0)]


def test_with_too_little_to_judge_by_it_waits_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    worker = make(broker, config, told)
    broker.append(messages(CONTEXTS * 2))
    drain(worker)
    publish(broker, initialization_messages(trained(config), {}))
    drain(worker)
    assert told.loads == []

    monkeypatch.setattr(streammaml.following, "TRY_WITHIN_S", -1.0)
    drain(worker)
    worker.close()

    assert told.loads == [("loaded", 1)]


def test_who_does_not_follow_reads_no_topic() -> None:
    config = settings(learner={"follow": False})
    broker = MemoryBroker.of(config)
    publish(broker, initialization_messages(trained(config), {}))
    broker.append(messages(100))
    worker = make(broker, config)
    drain(worker)
    worker.close()

    assert set(versions(broker)) == {0}


def test_episodes_go_out_with_the_commit_as_many_as_the_budget_lets_through() -> None:
    config, told = settings(episodes={"per_second": 2.0}), Told()
    broker = MemoryBroker.of(config)
    worker = make(broker, config, told)
    broker.append(messages())
    drain(worker)
    worker.close()

    found: list[Record] = list(broker.read("episodes"))
    each = 1 + (EVENTS // CONTEXTS - 18) // 16
    assert len(found) == told.episodes["emitted"] >= 10
    assert sum(told.episodes.values()) == CONTEXTS * each
    assert told.episodes["dropped"] > 0


def test_without_episodes_none_go_out() -> None:
    config = settings(episodes={"enabled": False})
    broker = MemoryBroker.of(config)
    broker.append(messages())
    worker = make(broker, config)
    drain(worker)
    worker.close()

    assert broker.read("episodes") == []
