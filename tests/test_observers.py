"""What metrics, page and health learn of a worker, on the memory backend."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client import generate_latest

import streammaml.misplaced
from streammaml.backends.instruments import STATES
from streammaml.backends.memory import MemoryBroker
from streammaml.backends.ports import Message, Rebalance
from streammaml.backends.web import WebServer
from streammaml.config import Config
from streammaml.observers import Watch, watched
from streammaml.worker import Worker
from tests import wire
from tests.kafka_broker import wait_until

EVENTS = 300
BAD = 3


def settings() -> Config:
    return with_web(port=0)


def with_web(**web: int) -> Config:
    return wire.config(web=web, learner={"hidden": [8], "baseline_rate": 0.01})


class Scene:
    """A watched worker and a broker; a new one has some events and some bad records.

    Given a broker, the worker is the next life of one that was there before.
    """

    def __init__(self, config: Config | None = None, broker: MemoryBroker | None = None) -> None:
        self.config = config or settings()
        if broker is None:
            broker = MemoryBroker.of(self.config)
            broker.append(wire.stream(EVENTS))
            broker.append([Message("events", b"k", b"{")] * BAD)
        self.broker = broker
        self.watch, self.server = watched(self.config)
        connect = wire.Connector(broker, self.config)
        self.worker = Worker(self.config, wire.initialization(self.config), connect, [self.watch])

    def play(self) -> None:
        self.watch.follow(self.worker)
        wire.drain(self.worker)

    def report(self) -> None:
        """Turn the loop until it has counted what it keeps."""
        before = self.worker._lag_at
        while self.worker._lag_at == before:
            self.worker.run_once(timeout_s=0.01)

    def metric_of_state(self) -> str:
        """The one state that holds."""
        (state,) = (s for s in STATES if self.metric("worker_state", state=s) == 1)
        return state

    def metric(self, name: str, **labels: str) -> float | None:
        return self.watch.metrics.registry.get_sample_value(f"streammaml_{name}", labels)


def status(server: WebServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(server.address + path, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_metrics_count_what_the_worker_did() -> None:
    scene = Scene()

    scene.play()

    assert scene.metric("events_consumed_total", topic="events") == EVENTS + BAD
    assert scene.metric("events_rejected_total", reason="decode") == BAD
    for model in ("init", "adapted", "baseline"):
        assert scene.metric("prequential_loss_count", model=model) == EVENTS
    assert scene.metric("worker_state", state="ready") == 1


def test_page_and_metrics_say_the_same() -> None:
    scene = Scene()
    with scene.server:
        scene.play()

        summary = json.loads(status(scene.server, "/api/summary")[1])
        metrics = status(scene.server, "/metrics")[1]

    assert (summary["events"], summary["rejected"], summary["state"]) == (EVENTS, BAD, "ready")
    assert set(summary["models"]) == {"init", "adapted", "baseline"}
    total = scene.metric("prequential_loss_sum", model="adapted")
    assert total is not None
    assert summary["models"]["adapted"]["mean"] == pytest.approx(total / EVENTS, rel=1e-4)
    assert f'streammaml_events_rejected_total{{reason="decode"}} {BAD}.0' in metrics


def test_a_worker_is_ready_once_it_owns_a_partition() -> None:
    scene = Scene()
    with scene.server:
        before = status(scene.server, "/readyz")[0]
        scene.play()
        after = status(scene.server, "/readyz")[0]
        scene.worker.close()
        closed = status(scene.server, "/readyz")[0]

    assert (before, after, closed) == (503, 200, 503)


def test_a_worker_is_not_ready_while_it_restores() -> None:
    before = Scene()
    before.play()
    before.worker.close()
    scene = Scene(before.config, before.broker)
    scene.watch.follow(scene.worker)
    with scene.server:
        scene.worker.open()
        scene.worker.run_once(timeout_s=0)  # the partitions come, and wait for their state
        restoring = status(scene.server, "/readyz")[0], scene.metric_of_state()
        scene.play()
        restored = status(scene.server, "/readyz")[0], scene.metric_of_state()
        scene.worker.close()

    assert restoring == (503, "restoring")
    assert restored == (200, "ready")


def test_a_worker_that_has_lost_its_last_partition_is_ready_no_longer() -> None:
    scene = Scene()
    scene.play()
    first, second = scene.worker.tenures

    states = []
    for partition in (first, second):
        scene.worker._on_rebalance(Rebalance(revoked=frozenset({partition})))
        states.append(scene.metric_of_state())

    assert states == ["ready", "starting"]
    assert scene.metric("contexts", tier="memory") == 0


def test_a_worker_that_gives_its_partitions_back_at_its_end_is_draining() -> None:
    scene = Scene()
    scene.play()
    stop = threading.Event()
    stop.set()

    scene.worker.run(stop)

    assert scene.metric("assigned_partitions") == 0
    assert scene.metric_of_state() == "draining"


def test_the_lag_is_known_once_a_partition_flows() -> None:
    scene = Scene()
    with scene.server:
        scene.watch.lag({})
        before = json.loads(status(scene.server, "/api/summary")[1])["lag"]
        scene.play()
        scene.report()
        after = json.loads(status(scene.server, "/api/summary")[1])["lag"]

    assert (before, after) == (None, 0)


def test_the_metrics_tell_of_barriers_and_of_what_is_on_disk() -> None:
    scene = Scene()
    scene.play()
    scene.report()

    assert scene.metric("barriers_total", result="committed") == 1  # of both partitions
    assert scene.metric("barriers_total", result="aborted") == 0
    assert (scene.metric("barrier_bytes_sum") or 0) > 1000
    assert scene.metric("barrier_duration_seconds_count") == 1
    assert scene.metric("contexts", tier="memory") == scene.metric("contexts", tier="disk") == 5
    for kind in ("parameters", "buffers", "disk"):
        assert (scene.metric("state_bytes", kind=kind) or 0) > 1000


def test_what_is_replayed_is_counted_apart() -> None:
    config = settings()
    first = Scene(config)
    first.play()
    first.worker.commit(whole=list(first.worker.tenures))
    first.broker.append(wire.stream(EVENTS, seed=1))
    wire.drain(first.worker)  # committed, without a barrier
    assert first.metric("events_replayed_total") == 0

    second = Scene(config, first.broker)  # the first one is dead
    second.play()

    assert second.metric("events_replayed_total") == EVENTS
    assert second.metric("events_consumed_total", topic="events") in (None, 0.0)
    assert second.metric("predictions_total", outcome="correct") == 0


def test_a_context_in_two_partitions_counts_once() -> None:
    config = settings()
    broker = MemoryBroker.of(config)
    for round_ in range(2):
        for partition in (0, 1):
            for context in ("shop", f"own-{partition}"):
                value = wire.event(round_, context)
                broker.append([Message("events", context.encode(), value, (), partition)])
    scene = Scene(config, broker)

    wire.drain(scene.worker)

    assert scene.metric("contexts_misplaced_total") == 1


def test_beyond_a_bound_misplaced_contexts_are_no_longer_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streammaml.misplaced, "MOST_TOLD", 2)
    config = settings()
    broker = MemoryBroker.of(config)
    scene = Scene(config, broker)
    for i in range(4):
        name = f"shop-{i}"
        for partition in (0, 1):
            value = wire.event(i, name)
            broker.append([Message("events", name.encode(), value, (), partition)])
            wire.drain(scene.worker)

    assert scene.metric("contexts_misplaced_total") == 2


def test_the_contexts_with_the_highest_losses_are_shown_where_asked_for() -> None:
    scene = Scene(with_web(port=0, top_contexts=2))
    scene.watch.follow(scene.worker)
    stop = threading.Event()
    loop = threading.Thread(target=scene.worker.run, args=(stop,))
    loop.start()
    try:
        wait_until(lambda: shown(scene) == ["1", "2"], 60, "two ranks")
    finally:
        stop.set()
        loop.join()
    scene.watch.follow(None)

    assert shown(scene) == []  # nobody answers, and nothing is made up


def shown(scene: Scene) -> list[str]:
    """Ranks that the page of metrics shows, of contexts that there are."""
    text = generate_latest(scene.watch.metrics.registry).decode()
    found = re.findall(r'loss_topk\{context="shop-\d",rank="(\d)"\} \d', text)
    return sorted(found)


def test_the_loop_has_no_age_before_it_turns() -> None:
    scene = Scene()

    before = scene.watch.loop_age_s()
    scene.play()

    assert before == 0.0
    assert 0.0 <= scene.watch.loop_age_s() < 60.0


def test_events_without_a_time_leave_the_newest_time_alone() -> None:
    config = settings()
    broker = MemoryBroker.of(config)
    times = [None, "2026-11-22T10:00:00Z", None, 1000.0]
    values = [wire.event(i, timestamp=time) for i, time in enumerate(times)]
    broker.append([Message("events", b"shop", value) for value in values])
    watch, _ = watched(config)
    worker = Worker(config, wire.initialization(config), wire.Connector(broker, config), [watch])

    worker.open()
    while worker.run_once(timeout_s=0) or worker.is_restoring:
        pass

    newest = watch.metrics.registry.get_sample_value("streammaml_last_event_timestamp_seconds")
    assert newest == 1_795_341_600  # 2026-11-22T10:00:00Z
    assert watch.metrics.registry.get_sample_value("streammaml_event_age_seconds_count") == 2


def test_a_swapped_initialization_is_told_and_marked_on_the_page() -> None:
    scene = Scene()
    scene.watch.initialization("loaded", 1)
    scene.play()
    scene.watch.initialization("worse", 1)  # what came was not taken
    scene.watch.initialization("loaded", 2)
    with scene.server:
        summary = json.loads(status(scene.server, "/api/summary")[1])

    assert summary["initialization"] == scene.metric("init_version", role="worker") == 2
    assert summary["swaps"] == [{"events": EVENTS, "version": 2}]


def test_the_page_says_what_its_losses_are() -> None:
    regression = wire.config(web={"port": 0}, label={"task": "regression", "classes": []})
    for config, name in ((settings(), "Log-loss"), (regression, "Absolute error")):
        _, server = watched(config)
        with server:
            assert json.loads(status(server, "/api/summary")[1])["loss"].startswith(name)


def test_two_watches_share_nothing() -> None:
    first, second = Scene(), Scene()

    first.play()

    assert second.metric("events_consumed_total", topic="events") in (None, 0.0)
    assert isinstance(second.watch, Watch)
