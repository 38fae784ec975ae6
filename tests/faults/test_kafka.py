"""Faults of broker, network, topics and workers on real Kafka, each with the whole ledger.

The numbers are those of the fault list. Longer forms: ``STREAMMAML_LONG_TESTS=1`` for the broker
that hangs 400 s and for more seeds, ``python -m tests.faults.kafka_ledger`` for more kills.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kafka  # type: ignore[import-untyped]  # kafka-python has no types
import pytest

from streammaml.learner import warm_up
from tests import wire
from tests.backends.test_unreadable import PAYLOAD, batches, change
from tests.conftest import make_broker
from tests.faults import kafka_ledger
from tests.faults.kafka_ledger import Fleet, Producer, drifting, rig_of
from tests.faults.undisturbed import differing, found, log_of, undisturbed, violations
from tests.integration.rig import Rig, WorkerProcess, await_an_end, owned
from tests.kafka_broker import Broker, Cluster, wait_until
from tests.proxy import Proxy

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

LONG = os.environ.get("STREAMMAML_LONG_TESTS") == "1"
long_only = pytest.mark.skipif(not LONG, reason="takes minutes: STREAMMAML_LONG_TESTS=1")
MakeRig = Callable[..., Rig]
SHORT: dict[str, Any] = {"session_timeout_ms": 3000, "transaction_timeout_ms": 3000}


@pytest.fixture(scope="module", autouse=True)
def compiled_kernels() -> None:
    settings = wire.config()
    warm_up(settings, wire.initialization(settings))


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(servers: str, partitions: int = 2, **kafka_settings: Any) -> Rig:
        folder = tmp_path / f"rig-{len(rigs)}"
        folder.mkdir()
        rig = Rig(servers, folder, partitions=partitions, **kafka_settings)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.end_all()


def create(rig: Rig, **sections: Any) -> Rig:
    """Its topics, with barriers every other second unless told otherwise."""
    rig.configure_with(**{"state": {"barrier_interval_s": 2.0}, **sections})
    rig.create_topics()
    return rig


def exact(rig: Rig) -> None:
    assert violations(rig, rig.config) == []


def admin_of(rig: Rig) -> Any:
    return kafka.KafkaAdminClient(bootstrap_servers=rig.servers)


# --- 14, 27, 28: workers that die, leave and meet their double ------------------------------------


def test_14_kills_of_workers_and_broker_do_not_show(own_broker: Broker, tmp_path: Path) -> None:
    folder = tmp_path / "rig"
    folder.mkdir()
    rig = rig_of(own_broker.bootstrap, folder, "10s")

    assert kafka_ledger.play(own_broker, rig, kills=6, broker_kills=1, seed=14) == []

    log = log_of(rig)
    log[0].pop()
    assert violations(rig, rig.config, log) != [], "the check sees a difference of one event"


@pytest.mark.parametrize("seed", range(27, 32) if LONG else [27])
def test_27_13_workers_that_join_and_leave_at_random_times_do_not_show(
    kafka_servers: str, make_rig: MakeRig, seed: int
) -> None:
    rig = create(make_rig(kafka_servers, 6, **SHORT), learner={"max_contexts": 20})
    rng = random.Random(seed)
    fleet = Fleet(rig, ["a", "b", "c"])
    producer = Producer(rig, 400, drifting(seed))
    try:
        for _ in range(5):
            name = rng.choice(fleet.instances)
            fleet.current(name).says("web_ready")  # it listens to signals
            time.sleep(rng.uniform(0, 2.5))  # the moment is random, not a condition
            fleet.current(name).stop()
            fleet.start(name)
    finally:
        producer.stop()
    rig.finish(fleet.current("a"))
    fleet.stop()

    exact(rig)


def test_28_nothing_of_a_fenced_twin_is_visible(kafka_servers: str, make_rig: MakeRig) -> None:
    rig = create(make_rig(kafka_servers, **SHORT))
    producer = Producer(rig, 400, drifting(28))
    try:
        twins = [rig.run("same", state__directory=str(rig.folder / f"state-{i}")) for i in range(2)]
        await_an_end(twins, 60)
    finally:
        producer.stop()
    loser, winner = sorted(twins, key=WorkerProcess.is_running)
    rig.finish(winner)
    winner.stop()

    assert loser.end(0) == 1
    assert re.search(r"another process runs as.* --instance", loser.log())
    exact(rig)


# --- 2, 10, 11, 12: the broker and the way to it --------------------------------------------------


def test_02_a_damaged_batch_is_a_dead_letter_and_the_rest_goes_on(
    tmp_path: Path, make_rig: MakeRig
) -> None:
    broker = make_broker(tmp_path / "kafka")
    broker.start()
    try:
        rig = create(make_rig(broker.bootstrap, 1))
        for _ in range(5):
            rig.events(100)
        log = log_of(rig)
        topic_id = rig.topic_id("events")
        broker.stop()
        file = broker.segment(rig.topic("events"), 0)
        bad = batches(file)[2]
        change(file, bad.at + PAYLOAD, None)
        broker.start()

        worker = rig.run()
        rig.finish(worker)
        worker.stop()

        (letter,) = rig.read("dead_letters")
        headers = dict(letter.headers)
        span = range(int(headers["offset"]), int(headers["last_offset"]) + 1)
        assert span == range(bad.first, bad.last + 1)
        assert letter.value == b""
        assert worker.log().count('"event": "unreadable"') == 3
        readable = {0: [r for r in log[0] if r.offset not in span]}
        actual = found(rig)
        actual.outputs["dead_letters"].clear()
        assert differing(rig.config, undisturbed(rig.config, readable, topic_id), actual) == []
    finally:
        broker.kill()


@pytest.mark.parametrize(
    "seconds", [5, pytest.param(40, marks=long_only), pytest.param(400, marks=long_only)]
)
def test_10_a_broker_that_hangs_costs_no_event(
    own_broker: Broker, make_rig: MakeRig, seconds: int
) -> None:
    rig = create(make_rig(own_broker.bootstrap, transaction_timeout_ms=6000))
    producer = Producer(rig, 200, drifting(seconds))
    try:
        worker = rig.run()
        worker.until(lambda: rig.committed() > 200, "it works")
        producer.stop()

        own_broker.pause()
        time.sleep(seconds)  # the fault itself
        ended = not worker.is_running()
        own_broker.resume()
    finally:
        producer.stop()
    assert ended == (seconds > 300), "unavailable_limit_s is 300"
    if ended:
        assert worker.end(0) == 69
        worker = rig.run()
    rig.events(500)
    rig.finish(worker)
    worker.stop()

    exact(rig)


def test_11_killed_leaders_of_three_brokers_lose_nothing(tmp_path: Path, make_rig: MakeRig) -> None:
    make_broker(tmp_path / "probe")  # skips where there is no Kafka
    cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.start()
        rig = create(make_rig(cluster.bootstrap, 3, **SHORT), topics={"replication": 3})
        producer = Producer(rig, 200, drifting(11))
        worker = rig.run()
        try:
            for turn in range(4 if LONG else 2):
                worker.until(is_in_sync(rig), "all replicas are in sync", 90.0)
                before = rig.committed()
                topic = rig.topic("events" if turn % 2 == 0 else "state")
                leader = leader_of(rig, topic, turn % 3)
                broker = next(b for b in cluster.brokers if b.node == leader)
                broker.kill()
                worker.until(lambda b=before: rig.committed() > b + 100, "it goes on", 60.0)  # type: ignore[misc]
                broker.start()
        finally:
            producer.stop()
        rig.finish(worker)
        worker.stop()

        exact(rig)
    finally:
        cluster.kill()


def partitions_of(rig: Rig, *topics: str) -> list[dict[str, Any]]:
    admin = admin_of(rig)
    try:
        return [p for t in admin.describe_topics(list(topics)) for p in t["partitions"]]
    finally:
        admin.close()


def leader_of(rig: Rig, topic: str, index: int) -> int:
    found_ = {p["partition_index"]: p["leader_id"] for p in partitions_of(rig, topic)}
    return int(found_[index])


def is_in_sync(rig: Rig) -> Callable[[], bool]:
    names = [rig.topic(name) for name in ("events", "state", "predictions")]
    names += ["__transaction_state", "__consumer_offsets"]
    return lambda: all(len(p["isr_nodes"]) == 3 for p in partitions_of(rig, *names))


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[tuple[Broker, Proxy]]:
    with Proxy() as proxy:
        probe = make_broker(tmp_path / "probe")  # skips where there is no Kafka
        broker = Broker(tmp_path / "kafka", aside_advertised=proxy.port)
        assert probe.port != broker.port
        proxy.target = broker.aside
        broker.start()
        yield broker, proxy
        broker.kill()


def by(proxy: Proxy) -> dict[str, str]:
    return {"kafka__bootstrap_servers": f"127.0.0.1:{proxy.port}"}


@pytest.mark.parametrize("direction", ["to_broker", "to_client"])
def test_12_a_worker_that_is_cut_off_is_replaced_and_comes_back(
    proxied: tuple[Broker, Proxy], make_rig: MakeRig, direction: str
) -> None:
    broker, proxy = proxied
    rig = create(make_rig(broker.bootstrap, **SHORT))
    producer = Producer(rig, 200, drifting(12))
    try:
        far, near = rig.run("far", **by(proxy)), rig.run("near")
        far.until(lambda: owned(far) == owned(near) == 1, "each has a partition")

        proxy.deafen(direction)
        near.until(lambda: owned(near) == 2, "the other takes over")
        before = rig.committed()
        near.until(lambda: rig.committed() > before + 200, "it goes on")
        proxy.heal()
        far.until(lambda: owned(far) == owned(near) == 1, "it is back")
    finally:
        producer.stop()
    rig.finish(near)
    for worker in (far, near):
        worker.stop()

    exact(rig)


def test_12_a_slow_and_a_broken_link_cost_no_event(
    proxied: tuple[Broker, Proxy], make_rig: MakeRig
) -> None:
    broker, proxy = proxied
    rig = create(make_rig(broker.bootstrap, session_timeout_ms=10_000))
    producer = Producer(rig, 200, drifting(13))
    try:
        far = rig.run("far", **by(proxy))
        far.until(lambda: rig.committed() > 200, "it works")
        for _ in range(5):
            before = rig.committed()
            proxy.reset()
            far.until(lambda b=before: rig.committed() > b, "it goes on after a reset")  # type: ignore[misc]
        proxy.slow(0.5)
        before = rig.committed()
        far.until(lambda: rig.committed() > before + 500, "it goes on by a slow link", 120.0)
        proxy.heal()
    finally:
        producer.stop()
    rig.finish(far)
    far.stop()

    exact(rig)


# --- 22, 23, 31: topics and offsets that change ---------------------------------------------------


def stopped_after(rig: Rig, events: int) -> None:
    """A worker has played so many events and left."""
    rig.events(events)
    worker = rig.run()
    rig.finish(worker)
    worker.stop()


def refused(rig: Rig, cure: str, **sets: Any) -> None:
    worker = rig.run(**sets)
    assert worker.end(60) in (1, 78), worker.log()
    assert re.search(cure, worker.log()), worker.log()


def test_22_a_topic_made_anew_stops_the_worker_until_that_is_accepted(
    kafka_servers: str, make_rig: MakeRig
) -> None:
    rig = create(make_rig(kafka_servers, 1))
    rig.events(300)
    worker = rig.run()
    rig.finish(worker)
    admin = admin_of(rig)
    admin.delete_topics([rig.topic("events")])
    wait_until(lambda: rig.topic("events") not in admin.list_topics(), 30, "it is gone")
    admin.close()
    assert set(rig.ensure_topics()) == {"created", "exists"}, "no client made it"
    rig.sent = 0
    rig.events(100)

    assert worker.end(120) in (1, 78), worker.log()
    assert re.search("deleted and made again.*kafka.on_gap=accept|no topic", worker.log())
    refused(rig, "deleted and made again.*kafka.on_gap=accept")

    again = rig.run(kafka__on_gap="accept")
    again.until(lambda: len(rig.read("predictions")) == 400, "the new ones are predicted")
    again.stop()
    once_more = rig.run()  # the state now knows the new topic
    rig.events(50)
    once_more.until(lambda: len(rig.read("predictions")) == 450, "it goes on")
    once_more.stop()


def test_22_deleted_records_stop_the_worker_until_that_is_accepted(
    kafka_servers: str, make_rig: MakeRig
) -> None:
    rig = create(make_rig(kafka_servers, 1))
    stopped_after(rig, 300)
    rig.events(200)
    admin = admin_of(rig)
    admin.delete_records({kafka.TopicPartition(rig.topic("events"), 0): 350})
    admin.close()

    refused(rig, "50 records are lost.*To go on at 350: --set kafka.on_gap=accept")

    worker = rig.run(kafka__on_gap="accept")
    rig.finish(worker)
    worker.stop()
    offsets = sorted(p["offset"] for p in rig.predictions())
    assert offsets == [*range(300), *range(350, 500)]


def test_23_expired_offsets_are_the_barriers(kafka_servers: str, make_rig: MakeRig) -> None:
    rig = create(make_rig(kafka_servers, 2, **SHORT))
    stopped_after(rig, 300)
    forget_offsets(rig, 2)
    assert rig.committed() == 0

    stopped_after(rig, 200)

    assert rig.committed() == 500
    exact(rig)


def forget_offsets(rig: Rig, partitions: int) -> None:
    """Delete the group's offsets, which the broker does once its session is over."""
    admin = admin_of(rig)
    parts = [kafka.TopicPartition(rig.topic("events"), p) for p in range(partitions)]

    def deleted() -> bool:
        answers = admin.delete_group_offsets(rig.name, parts)
        return all(answer is kafka.errors.NoError for answer in answers.values())

    try:
        wait_until(deleted, 30, "the group has no member")
    finally:
        admin.close()


def test_31_more_partitions_stop_the_worker_until_that_is_accepted(
    kafka_servers: str, make_rig: MakeRig
) -> None:
    rig = create(make_rig(kafka_servers, 2))
    stopped_after(rig, 300)
    admin = admin_of(rig)
    admin.create_partitions({rig.topic("events"): 3})
    assert "kafka-topics.sh --alter" in " ".join(rig.ensure_topics())

    refused(rig, r"3 partitions now and had 2 before.*--set kafka.on_partition_change=accept")
    refused(rig, "has 2 partitions.*`streammaml topics`", kafka__on_partition_change="accept")
    admin.create_partitions({rig.topic("state"): 3})
    admin.close()
    rig.events(100)
    worker = rig.run(kafka__on_partition_change="accept")
    worker.until(lambda: rig.committed() == 400, "it goes on")
    worker.stop()
    assert len(rig.predictions()) == 400
    assert {p["partition"] for p in rig.predictions()} == {0, 1, 2}
