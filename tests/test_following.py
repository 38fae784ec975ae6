"""The worker takes over what is published: tried first, at a committed offset, no bad one."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import streammaml.following
import streammaml.worker
from streammaml.backends.memory import MemoryBroker, MemoryTail
from streammaml.backends.ports import Message, Partition, Record
from streammaml.backends.wire_initializations import (
    initialization_messages,
    read_published,
    rollback_message,
)
from streammaml.config import Config
from streammaml.errors import BackendError
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


def versions(worker: Worker) -> set[int]:
    """In use; a prediction names the one behind its context's weights, which may be older."""
    return {learner.version for learner in worker.learners.values()}


def make(broker: MemoryBroker, config: Config, told: Told | None = None) -> Worker:
    connect = wire.Connector(broker, config)
    return Worker(config, wire.initialization(config), connect, [told or Told()])


def following(worker: Worker) -> None:
    """Play all there is, and look at what is published twice: a swap may take two turns."""
    drain(worker)
    for _ in range(2):
        worker.run_once(timeout_s=0)
    drain(worker)


def test_a_version_is_taken_without_a_restart_and_nothing_is_lost() -> None:
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    worker = make(broker, config, told)
    broker.append(messages())
    following(worker)
    publish(broker, initialization_messages(trained(config), {}))
    following(worker)
    broker.append(messages(first=EVENTS, seed=2))
    following(worker)

    assert told.loads == [("loaded", 1)]
    assert versions(worker) == {1}
    worker.close()
    ids = Counter(json.loads(r.value or b"")["event"] for r in broker.read("predictions"))
    assert ids == Counter(range(2 * EVENTS))


def test_what_is_published_before_the_first_event_serves_from_it_on() -> None:
    config = settings()
    broker = MemoryBroker.of(config)
    publish(broker, initialization_messages(trained(config), {}))
    broker.append(messages(100))
    worker = make(broker, config)
    following(worker)

    assert versions(worker) == {1}
    worker.close()
    told = [json.loads(r.value or b"") for r in broker.read("predictions")]
    assert {p["initialization"] for p in told} == {1}


def test_the_swap_is_in_the_state_at_the_offset_where_it_took_effect() -> None:
    """A kill right after the swap's commit: the next life goes on with it, and replays nothing."""
    config = settings(state={"barrier_interval_s": 1e6, "barrier_events": 1_000_000})
    broker = MemoryBroker.of(config)
    worker = make(broker, config)
    broker.append(messages())
    following(worker)
    publish(broker, initialization_messages(trained(config), {}))
    following(worker)
    broker.append(messages(24, first=EVENTS, seed=2))
    drain(worker)
    before = broker.committed("streammaml", Partition("events", 0))
    worker._drop()  # as a kill leaves it: nothing more is written
    again = make(broker, config)
    drain(again)

    assert broker.committed("streammaml", Partition("events", 0)) == before
    assert versions(again) == {1}
    assert {t.standing.committed for t in again.tenures.values()} == {
        t.next_offset for t in again.tenures.values()
    }
    again.close()


def test_partitions_swap_one_after_the_other_where_each_writes_much() -> None:
    config = settings(state={"barrier_mb": 0.0})
    broker = MemoryBroker.of(config)
    worker = make(broker, config)
    broker.append(messages())
    drain(worker)
    publish(broker, initialization_messages(trained(config), {}))
    seen = [versions(worker)]
    while seen[-1] != {1}:
        worker.run_once(timeout_s=0)
        seen.append(versions(worker))

    assert {0, 1} in seen
    worker.close()


@pytest.mark.parametrize("kind", ["nonfinite", "scaled", "flipped"])
def test_a_bad_one_is_refused_told_and_never_served(kind: str) -> None:
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    good = trained(config)
    publish(broker, initialization_messages(good, {}))
    worker = make(broker, config, told)
    broker.append(messages())
    following(worker)
    publish(broker, bad_messages(good)[kind](2))
    following(worker)
    broker.append(messages(200, first=EVENTS, seed=2))
    following(worker)

    expected = "nonfinite" if kind == "nonfinite" else "worse"
    assert told.loads == [("loaded", 1), (expected, 1)]
    assert versions(worker) == {1}
    worker.close()


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("kind", ["nonfinite", "flipped"])
def test_after_a_restart_a_bad_one_is_refused_again(
    kind: str, compacted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late it begins to play: with no context in memory there is nothing to judge by."""
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    good = trained(config)
    publish(broker, initialization_messages(good, {}))
    broker.append(messages())
    first = make(broker, config)
    following(first)
    publish(broker, bad_messages(good)[kind](2))
    following(first)
    first.close()
    if compacted:
        broker.compact("initializations")
    monkeypatch.setattr(streammaml.following, "TRY_WITHIN_S", -1.0)
    second = make(broker, config, told)
    following(second)
    broker.append(messages(600, first=EVENTS, seed=2))
    following(second)

    refused = [result for result, _ in told.loads if result != "loaded"]
    assert refused == ["nonfinite" if kind == "nonfinite" else "worse"]
    assert versions(second) == {1}
    second.close()


def test_of_several_at_once_the_newest_that_is_any_good_counts() -> None:
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    worker = make(broker, config, told)
    broker.append(messages())
    following(worker)
    good = trained(config)
    publish(broker, initialization_messages(good, {}))
    publish(broker, bad_messages(good)["nonfinite"](2))
    following(worker)

    assert told.loads == [("nonfinite", 0), ("loaded", 1)]
    assert versions(worker) == {1}
    worker.close()


def test_a_rollback_is_taken_at_its_word() -> None:
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    good = trained(config)
    flipped = bad_messages(good)["flipped"](2)
    worker = make(broker, config, told)
    publish(broker, initialization_messages(good, {}))
    broker.append(messages())
    following(worker)
    publish(broker, flipped)
    following(worker)
    (version, _) = broker.read("initializations")[-2:]
    publish(broker, [rollback_message(read_published(version))])
    following(worker)

    assert told.loads == [("loaded", 1), ("worse", 1), ("loaded", 2)]
    assert versions(worker) == {2}
    worker.close()


def test_a_rollback_that_partitions_take_one_by_one_outlives_what_is_refused_after_it() -> None:
    config, told = settings(state={"barrier_mb": 0.0}), Told()
    broker = MemoryBroker.of(config)
    worker = make(broker, config, told)
    broker.append(messages())
    drain(worker)
    good = trained(config)
    one, two = (initialization_messages(replace(good, version=n), {}) for n in (1, 2))
    three = bad_messages(good)["flipped"](3)
    publish(broker, one + two)
    following(worker)
    before, *_ = broker.read("initializations")
    publish(broker, [rollback_message(read_published(before))])
    worker.run_once(timeout_s=0)
    assert versions(worker) == {1, 2}
    publish(broker, three)
    following(worker)

    assert told.loads == [("loaded", 2), ("loaded", 1), ("worse", 1)]
    assert versions(worker) == {1}
    worker.close()


def test_a_partition_without_a_past_begins_with_what_the_others_serve() -> None:
    config = settings()
    broker = MemoryBroker.of(config)
    good = trained(config)
    publish(broker, initialization_messages(good, {}))
    broker.append([m._replace(partition=0) for m in messages()])
    worker = make(broker, config)
    following(worker)
    publish(broker, bad_messages(good)["flipped"](2))
    broker.append([m._replace(partition=1) for m in messages(100, seed=3, first=EVENTS)])
    following(worker)

    assert len(worker.learners) == 2
    assert versions(worker) == {1}
    worker.close()


def test_another_model_s_and_bytes_that_are_none_are_refused() -> None:
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    worker = make(broker, config, told)
    broker.append(messages(100))
    following(worker)
    other = replace(wire.initialization(config).spec, schema="another")
    publish(broker, initialization_messages(replace(draw(other, 0), version=3), {}))
    following(worker)
    publish(broker, [Message("", b"current", b"none")])
    following(worker)

    assert told.loads == [("fingerprint", 0), ("corrupt", 0)]
    assert versions(worker) == {0}
    worker.close()


def test_with_too_little_to_judge_by_it_waits_for_events(monkeypatch: pytest.MonkeyPatch) -> None:
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    worker = make(broker, config, told)
    broker.append(messages(CONTEXTS * 2))
    following(worker)
    publish(broker, initialization_messages(trained(config), {}))
    following(worker)
    monkeypatch.setattr(streammaml.following, "TRY_WITHIN_S", -1.0)
    following(worker)
    assert told.loads == []

    monkeypatch.setattr(streammaml.following, "EVENTS_ENOUGH", 20)
    broker.append(messages(CONTEXTS * 2, first=24))
    following(worker)

    assert told.loads == [("loaded", 1)]
    worker.close()


def test_the_wait_is_one_over_all_that_is_published_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    worker = make(broker, config, told)
    broker.append([m for m in messages() if m.key in (b"c-0", b"c-1")])
    following(worker)
    good = trained(config)
    clock = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for version in range(1, 6):
        publish(broker, initialization_messages(replace(good, version=version), {}))
        following(worker)
        clock[0] += 20.0

    assert [result for result, _ in told.loads] == ["loaded"] * len(told.loads) != []
    worker.close()


def test_a_topic_that_cannot_be_read_keeps_nobody_from_serving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streammaml.following, "RETRY_S", -1.0)
    config, told = settings(), Told()
    broker = MemoryBroker.of(config)
    publish(broker, initialization_messages(trained(config), {}))
    failures = [BackendError("away")] * 3
    tail = MemoryTail.poll

    def poll(self: MemoryTail, timeout_s: float) -> Any:
        if failures:
            raise failures.pop()
        return tail(self, timeout_s)

    monkeypatch.setattr(MemoryTail, "poll", poll)
    worker = make(broker, config, told)
    broker.append(messages())
    drain(worker)
    for _ in range(5):
        worker.run_once(timeout_s=0)

    assert len(broker.read("predictions")) == EVENTS
    assert told.loads == [("loaded", 1)]
    worker.close()


def test_who_does_not_follow_reads_no_topic() -> None:
    config = settings(learner={"follow": False})
    broker = MemoryBroker.of(config)
    publish(broker, initialization_messages(trained(config), {}))
    broker.append(messages(100))
    worker = make(broker, config)
    following(worker)

    assert versions(worker) == {0}
    worker.close()


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
