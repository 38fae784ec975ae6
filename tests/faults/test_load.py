"""Faults of load and of moving: revocation at any event, slow parts, storms of drift."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest

import streammaml.worker
from streammaml.backends.memory import MemoryBroker
from streammaml.backends.ports import Message, Partition
from streammaml.config import Config
from tests import wire
from tests.faults.test_disk import state, undisturbed
from tests.faults.test_records import make, play, predictions
from tests.wire import drain

EVENTS = 200


def slices(settings: Config, **worker: int) -> Config:
    return Config.build(
        settings.model_dump(), {"worker": {"commit_interval_ms": 3_600_000, **worker}}
    )


@pytest.mark.parametrize("place", range(0, 40, 3))
def test_a_partition_revoked_between_any_two_events_goes_on_elsewhere_to_the_same_bits(
    place: int,
) -> None:
    settings = wire.config()
    one = slices(settings, max_poll_records=1)
    two = slices(wire.config(kafka={"instance": "two"}), max_poll_records=7)
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(EVENTS))
    first, second = make(broker, one), make(broker, two)
    first.open()
    done = 0
    while done < place:
        done += first.run_once(timeout_s=0)
    second.open()
    workers = (first, second)
    while sum(w.run_once(timeout_s=0) for w in workers) or any(w.is_restoring for w in workers):
        pass
    owned = [len(w.learners) for w in workers]
    for worker in workers:
        worker.close()

    expected, outputs = undisturbed(wire.config())
    assert owned == [1, 1]
    assert state(broker) == expected
    assert sorted(r.value or b"" for r in broker.read("predictions")) == sorted(
        value or b"" for value in outputs
    )


def test_what_waits_for_a_commit_is_bounded() -> None:
    settings = slices(wire.config(), max_poll_records=10, commit_events=50)
    broker = MemoryBroker.of(settings)
    open_ends: list[int] = []
    broker.step = lambda name: open_ends.append(
        sum(broker.end(p) - broker.span(p)[1] for p in wire_predictions())
    )
    broker.append(wire.stream(1000))

    play(broker, settings)

    assert len(predictions(broker)) == 1000
    assert 10 < max(open_ends) <= 50 + 10


def wire_predictions() -> list[Partition]:
    return [Partition("predictions", i) for i in range(2)]


def test_a_slow_learner_keeps_polling_and_gives_up_partitions_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streammaml.worker, "BUSY_S", 0.0)  # as if each record took that long
    monkeypatch.setattr(streammaml.worker, "FIRST_SLICE", 1)
    one = slices(wire.config(), max_poll_records=100)
    two = slices(wire.config(kafka={"instance": "two"}), max_poll_records=100)
    broker = MemoryBroker.of(one)
    steps: Counter[str] = Counter()
    broker.step = lambda name: steps.update([name])
    broker.append(wire.stream(EVENTS, contexts=20))
    first, second = make(broker, one), make(broker, two)
    first.open()
    played = 0
    while played < 10:
        played += first.run_once(timeout_s=0)
    polls = steps["poll"]

    second.open()
    while len(second.learners) == 0:
        played += first.run_once(timeout_s=0)
        second.run_once(timeout_s=0)

    assert polls >= 10, "a poll for each record"
    assert played < 20, "it was in the midst of what it had polled"
    while first.run_once(timeout_s=0) + second.run_once(timeout_s=0):
        pass
    for worker in (first, second):
        worker.close()
    assert Counter(p["event"] for p in predictions(broker)) == Counter(
        f"e-{i}" for i in range(EVENTS)
    )


def test_a_storm_of_drift_adapts_no_oftener_than_its_detector_may() -> None:
    least = 10
    settings = wire.config(
        topics={"partitions": 1},
        learner={
            "detector": {"parameters": {"min_instances": least, "threshold": 0.01, "delta": 0.0}}
        },
    )
    broker = MemoryBroker.of(settings)
    for i in range(600):  # the label turns as soon as it could be learned
        label = "yes" if i // 7 % 2 else "no"
        broker.append([Message("events", b"shop", wire.event(i, label=label))])
    worker = make(broker, settings)

    drain(worker)

    told = [json.loads(r.value or b"") for r in broker.read("adaptations")]
    drifts = [t["offset"] for t in told if t["level"] == "drift"]
    gaps = [after - before for before, after in pairwise(drifts)]
    assert len(drifts) > 10, "it is a storm"
    assert min(gaps) >= least
    assert len(predictions(broker)) == 600
    worker.close()
