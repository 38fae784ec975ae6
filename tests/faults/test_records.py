"""Faults of the records: schema, size, classes, repeats, times, hot keys."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streammaml.backends.memory import MemoryBroker
from streammaml.backends.ports import Message, Partition
from streammaml.config import Config
from streammaml.errors import IncompatibleError
from streammaml.worker import Worker
from tests import wire
from tests.wire import drain

GROUP = "streammaml"


def make(broker: MemoryBroker, settings: Config) -> Worker:
    return Worker(settings, wire.initialization(settings), wire.Connector(broker, settings))


def play(broker: MemoryBroker, settings: Config) -> None:
    """One life of a worker, from its start to an orderly end."""
    worker = make(broker, settings)
    drain(worker)
    worker.close()


def predictions(broker: MemoryBroker) -> list[dict[str, Any]]:
    return [json.loads(record.value or b"") for record in broker.read("predictions")]


def errors(broker: MemoryBroker) -> list[str]:
    return [dict(r.headers)["error"].decode() for r in broker.read("dead-letters")]


def test_features_that_come_and_go_in_the_events_change_nothing_else() -> None:
    settings = wire.config(topics={"partitions": 1})
    broker = MemoryBroker.of(settings)
    changed = [
        wire.event(0, features={"a": 1.0, "b": 2.0, "c": 3.0, "new": "x"}),
        wire.event(1, features={"a": 1.0}),
        wire.event(2, features={"renamed": 1.0}),
        wire.event(3, features={"a": "now a text"}),
    ]
    broker.append([Message("events", b"shop", value) for value in changed])

    play(broker, settings)

    assert [p["event"] for p in predictions(broker)] == ["e-0", "e-1", "e-2"]
    assert errors(broker) == ["schema"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learner": {"hidden": [16]}}, "network"),
        ({"features": [{"name": "a"}, {"name": "b"}, {"name": "other"}]}, "features"),
        ({"label": {"classes": ["yes", "no"]}}, "classes"),
    ],
    ids=["network", "features", "classes"],
)
def test_another_model_is_refused_with_the_cure_and_the_state_is_left_alone(
    change: dict[str, Any], named: str
) -> None:
    settings = wire.config()
    broker = MemoryBroker.of(settings)
    messages = wire.stream(60)
    broker.append(messages[:40])
    play(broker, settings)
    broker.append(messages[40:])
    before = [(r.key, r.value) for r in broker.read("state")]
    other = Config.build(settings.model_dump(), change)

    with pytest.raises(IncompatibleError, match=rf"{named}.*topics\.state"):
        drain(make(broker, other))

    assert [(r.key, r.value) for r in broker.read("state")] == before
    assert len(predictions(broker)) == 40
    play(broker, settings)
    assert len(predictions(broker)) == 60


def test_a_huge_record_travels_by_reference() -> None:
    settings = wire.config(worker={"max_record_bytes": 10_000})
    broker = MemoryBroker.of(settings)
    broker.append([Message("events", b"shop", b"x" * 20_000_000), *wire.stream(5)])

    play(broker, settings)

    (letter,) = broker.read("dead-letters")
    assert (dict(letter.headers)["error"], letter.value) == (b"oversize", b"")
    assert len(predictions(broker)) == 5


def test_a_class_beyond_the_cap_is_a_dead_letter_and_the_rest_goes_on() -> None:
    settings = wire.config(label={"classes": [], "max_classes": 3}, topics={"partitions": 1})
    broker = MemoryBroker.of(settings)
    labels = ["a", "b", "c", "d", "a", "e", "c"]
    broker.append([Message("events", b"s", wire.event(i, label=x)) for i, x in enumerate(labels)])

    play(broker, settings)

    assert errors(broker) == ["label", "label"]
    assert [p["event"] for p in predictions(broker)] == ["e-0", "e-1", "e-2", "e-4", "e-6"]


def test_an_offset_that_came_twice_is_learnt_once() -> None:
    settings = wire.config(worker={"delivery": "at_least_once"}, topics={"partitions": 1})
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(40, contexts=3))
    play(broker, settings)
    broker.commit(GROUP, {Partition("events", 0): 10})
    worker = make(broker, settings)

    drain(worker)

    (learner,) = worker.learners.values()
    applied = [(learner.ledger(f"shop-{i}") or (0, 0, 0))[0] for i in range(3)]
    assert applied == [14, 13, 13]
    worker.close()


def test_times_out_of_order_do_not_change_the_order() -> None:
    given: list[Message] = []
    shuffled: list[Message] = []
    for i, message in enumerate(wire.stream(60)):
        event = json.loads(message.value or b"")
        for stream, seconds in ((given, i), (shuffled, i * 37 % 60)):
            value = json.dumps({**event, "timestamp": 1e9 + seconds}).encode()
            stream.append(message._replace(value=value))
    outputs = []
    for messages in (given, shuffled):
        settings = wire.config()
        broker = MemoryBroker.of(settings)
        broker.append(messages)
        play(broker, settings)
        outputs.append([r.value for r in broker.read("predictions")])

    assert outputs[0] == outputs[1]


def test_a_time_in_the_far_future_is_clamped_and_expires_nobody() -> None:
    now_s = 1_700_000_000
    settings = wire.config(
        topics={"partitions": 1}, state={"ttl_s": 100.0, "clock_horizon_s": 50.0}
    )
    topics = (
        *("events", "predictions", "adaptations", "dead-letters"),
        *("state", "episodes", "initializations"),
    )
    broker = MemoryBroker(dict.fromkeys(topics, 1), now_ms=lambda: now_s * 1000)
    times = {"old": now_s, "skewed": now_s + 10**9, "odd": 4_102_444_800}
    for i, (context, seconds) in enumerate(times.items()):
        value = wire.event(i, context, timestamp=seconds)
        broker.append([Message("events", context.encode(), value)])
    worker = make(broker, settings)

    drain(worker)
    broker.append([Message("events", b"old", wire.event(9, "old", timestamp=now_s + 1))])
    drain(worker)

    (learner,) = worker.learners.values()
    assert learner.clock_s == now_s + 50
    applied = [(learner.ledger(context) or (0, 0, 0))[0] for context in times]
    assert applied == [2, 1, 1]
    worker.close()


def test_a_hot_partition_does_not_starve_another() -> None:
    settings = wire.config(worker={"max_poll_records": 10, "commit_events": 1})
    broker = MemoryBroker.of(settings)
    hot = [Message("events", b"hot", wire.event(i, "hot"), (), 0) for i in range(500)]
    cold = [Message("events", b"cold", wire.event(i, "cold"), (), 1) for i in range(30)]
    broker.append([*hot, *cold])
    worker = make(broker, settings)
    worker.open()

    while len(done := [p["context"] for p in predictions(broker)]) < 100:
        worker.run_once(timeout_s=0)

    assert done.count("cold") == 30
    worker.close()
