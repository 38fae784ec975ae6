"""The worker under faults, as processes on a real broker: no event lost or twice, clear ends."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streammaml.backends.ports import Message
from streammaml.learner import warm_up
from tests import wire
from tests.integration.rig import Rig, WorkerProcess, owned
from tests.kafka_broker import Broker, free_port, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

MakeRig = Callable[..., Rig]
SHORT: dict[str, Any] = {"session_timeout_ms": 3000, "transaction_timeout_ms": 3000}


@pytest.fixture(scope="module", autouse=True)
def compiled_kernels() -> None:
    """In the cache, so that the deadlines here are of the worker and not of the compiler."""
    settings = wire.config()
    warm_up(settings, wire.initialization(settings))


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(servers: str, **kafka: Any) -> Rig:
        folder = tmp_path / f"rig-{len(rigs)}"
        folder.mkdir()
        rigs.append(Rig(servers, folder, **kafka))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.end_all()


def warnings_of(worker: WorkerProcess, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in worker.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def half_way(rig: Rig, worker: WorkerProcess) -> None:
    """Until the worker has published some and has much left."""
    worker.until(lambda: rig.ends("predictions") > rig.sent // 10, "a tenth is published")


def test_without_a_broker_the_worker_backs_off_and_ends_with_69(make_rig: MakeRig) -> None:
    address = f"127.0.0.1:{free_port()}"
    worker = make_rig(address, unavailable_limit_s=3).run()

    assert worker.end(60) == 69

    waits = [line["retry_in_s"] for line in warnings_of(worker, "broker_failed")]
    assert waits[:2] == [0.5, 1.0]
    assert (
        f"gave up after 3 s without a working broker: no Kafka broker at {address}" in worker.log()
    )


def test_a_stop_ends_the_back_off_at_once(make_rig: MakeRig) -> None:
    worker = make_rig(f"127.0.0.1:{free_port()}").run()
    worker.says('"retry_in_s": 8.0')
    started = time.monotonic()

    worker.stop()

    assert time.monotonic() - started < 6.0


def test_a_stop_while_starting_ends_soon_and_well(kafka_servers: str, make_rig: MakeRig) -> None:
    rig = make_rig(kafka_servers)
    rig.create_topics()
    worker = rig.run()
    worker.says("web_ready")

    worker.stop()


def test_a_stop_while_compiling_ends_soon_and_well(
    kafka_servers: str, make_rig: MakeRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cold"))
    rig = make_rig(kafka_servers)
    rig.create_topics()
    worker = rig.run()
    worker.says("compiling_kernels")

    worker.stop()


def test_a_broker_that_comes_in_time_is_used_and_may_hang_for_a_while(
    own_broker: Broker, make_rig: MakeRig
) -> None:
    rig = make_rig(own_broker.bootstrap, **SHORT)
    rig.create_topics()
    rig.events(500)
    own_broker.kill()
    worker = rig.run()
    worker.says("no Kafka broker at")
    own_broker.start()
    rig.finish(worker)

    failures = len(warnings_of(worker, "broker_failed"))
    own_broker.pause()
    worker.until(lambda: len(warnings_of(worker, "broker_failed")) > failures, "it notices")
    own_broker.resume()
    rig.events(500)
    rig.finish(worker)
    worker.stop()

    assert rig.ledger() == 1000


def test_a_broker_that_dies_and_comes_back_costs_no_event(
    own_broker: Broker, make_rig: MakeRig
) -> None:
    rig = make_rig(own_broker.bootstrap, partitions=4)
    rig.create_topics()
    rig.events(30_000)
    worker = rig.run()
    half_way(rig, worker)

    own_broker.kill()
    own_broker.start()
    rig.finish(worker)
    worker.stop()

    assert rig.ledger() == 30_000


def test_a_broker_that_stays_away_ends_idle_and_busy_workers_and_delays_no_stop(
    own_broker: Broker, make_rig: MakeRig
) -> None:
    limit: dict[str, Any] = {"unavailable_limit_s": 2}
    idle = make_rig(own_broker.bootstrap, **limit)
    busy = make_rig(own_broker.bootstrap, **limit, transaction_timeout_ms=4000)
    stopped = make_rig(own_broker.bootstrap, **limit)
    for rig in (idle, busy, stopped):
        rig.create_topics()
    idle.events(100)
    idler = idle.run()
    idle.finish(idler)
    busy.events(40_000)
    stopped.events(40_000)
    worker, leaver = busy.run(), stopped.run()
    half_way(busy, worker)
    half_way(stopped, leaver)

    own_broker.kill()
    leaver.stop()

    assert idler.end(60) == 69
    assert worker.end(60) == 69
    for log in (idler.log(), worker.log()):
        assert "gave up after 2 s without a working broker: no Kafka broker at" in log


def test_a_broker_that_refuses_every_commit_ends_the_worker_too(
    kafka_servers: str, make_rig: MakeRig
) -> None:
    rig = make_rig(kafka_servers, unavailable_limit_s=3)
    rig.create_topics()
    rig.limit_predictions_to("100")
    rig.events(50)
    worker = rig.run()

    assert worker.end(60) == 69

    waits = [line["retry_in_s"] for line in warnings_of(worker, "broker_failed")]
    assert waits[:2] == [0.5, 1.0]
    assert "MessageSizeTooLarge" in worker.log().splitlines()[-1]
    assert rig.ledger() == 0


def test_a_stop_under_full_load_commits_and_the_next_start_goes_on(
    kafka_servers: str, make_rig: MakeRig
) -> None:
    rig = make_rig(kafka_servers, partitions=4)
    rig.create_topics()
    rig.events(10_000)
    rig.produce([Message("events", b"k", b"{")] * 7)
    rig.events(20_000)
    worker = rig.run()
    half_way(rig, worker)

    worker.stop()
    halted = rig.ledger(bad=7)
    successor = rig.run()
    rig.finish(successor)
    successor.stop()

    assert 0 < halted < rig.sent, "it stopped in the middle"
    assert "last_commit_failed" not in worker.log()
    assert rig.ledger(bad=7) == 30_007


def test_of_two_workers_with_one_name_one_ends_and_names_the_cure(
    kafka_servers: str, make_rig: MakeRig
) -> None:
    rig = make_rig(kafka_servers, **SHORT)
    rig.create_topics()
    twins = [rig.run("same"), rig.run("same")]

    def one_has_ended() -> bool:
        rig.events(100)
        return sum(twin.is_running() for twin in twins) == 1

    wait_until(one_has_ended, 60, "one of the twins ends")
    loser, winner = sorted(twins, key=WorkerProcess.is_running)
    rig.finish(winner)
    winner.stop()

    assert loser.end(0) == 1
    assert re.search(r"another process runs as instance 'same'.* --instance", loser.log())
    assert rig.ledger() == rig.sent


def test_workers_that_join_leave_and_die_hand_over_every_event(
    kafka_servers: str, make_rig: MakeRig
) -> None:
    rig = make_rig(kafka_servers, partitions=4, **SHORT)
    rig.create_topics()
    rig.events(5_000)
    first = rig.run("first")
    half_way(rig, first)

    second = rig.run("second")
    flow_until(rig, second, lambda: owned(second) == 2, "the late one has its share")
    first.stop()
    flow_until(rig, second, lambda: owned(second) == 4, "it takes over from the one that left")
    third = rig.run("third")
    flow_until(rig, third, lambda: owned(third) == 2, "the third has its share")
    second.kill()
    flow_until(rig, third, lambda: owned(third) == 4, "it takes over from the one that was killed")
    rig.finish(third)
    third.stop()

    assert rig.ledger() == rig.sent


def test_a_worker_frozen_beyond_its_session_publishes_nothing_twice(
    kafka_servers: str, make_rig: MakeRig
) -> None:
    rig = make_rig(kafka_servers, partitions=2, **SHORT)
    rig.create_topics()
    rig.events(20_000)
    frozen = rig.run("frozen")
    half_way(rig, frozen)

    frozen.send(signal.SIGSTOP)
    other = rig.run("other")
    flow_until(rig, other, lambda: owned(other) == 2, "the other takes over")
    rig.finish(other)
    frozen.send(signal.SIGCONT)
    flow_until(rig, frozen, lambda: owned(frozen) == owned(other) == 1, "the frozen one is back")
    rig.finish(frozen)
    for worker in (frozen, other):
        worker.stop()

    assert rig.ledger() == rig.sent


def flow_until(rig: Rig, worker: WorkerProcess, condition: Callable[[], bool], what: str) -> None:
    """Until something holds, with events coming in."""

    def holds() -> bool:
        if condition():
            return True
        rig.events(100)
        return False

    worker.until(holds, what)


def test_a_topic_of_bad_records_stops_the_worker_at_once(
    kafka_servers: str, make_rig: MakeRig
) -> None:
    rig = make_rig(kafka_servers, partitions=1)
    rig.create_topics()
    rig.events(30)
    rig.produce([Message("events", b"k", b"{")] * 5_000)
    worker = rig.run()

    assert worker.end(60) == 1

    assert re.search(
        rf"more than 50% of the last 1000 records of '{rig.topic('events')}' .*"
        rf"They are in '{rig.topic('dead_letters')}'; .* at offset 100 of partition 0",
        worker.log(),
    )
    assert len(rig.read("dead_letters")) == 70
    assert rig.ledger(bad=70) == 100


BIG = 2_000_000
BAD: list[tuple[str, bytes | None, bytes | None, str]] = [
    ("decode", b"k", b"\xff\xfe{", "not json"),
    ("decode", b"k", b"", "not json"),
    ("decode", b"k", None, "tombstone"),
    ("decode", None, b'{"context": "a', "not json"),
    ("schema", b"k", wire.event(0, features={"a": "warm"}), r"\$\.features\.a"),
    ("schema", b"k", b"17", "Expected `object`, got `int`"),
    ("nonfinite", b"k", wire.event(0, features={"a": 1e13}), "a"),
    ("context", None, wire.event(0, context=""), "context"),
    ("context", b"", b'{"features": {"a": 1}}', "context"),
    ("label", b"k", wire.event(0, label="perhaps"), "perhaps"),
    ("late", b"k", b'{"context": "shop", "id": "e-1", "label": "yes"}', ""),
    ("oversize", b"k", b"x" * BIG, r"\d+ bytes; worker\.max_record_bytes is 2000"),
]


def test_every_kind_of_bad_record_is_a_dead_letter_that_says_where_and_why(
    kafka_servers: str, make_rig: MakeRig
) -> None:
    rig = make_rig(kafka_servers, partitions=1, room=BIG)
    rig.create_topics()
    for _, key, value, _ in BAD:
        rig.produce([Message("events", key, value)])
        rig.events(1)
    worker = rig.run(worker__max_record_bytes=2000)
    rig.finish(worker)
    worker.stop()

    letters = rig.read("dead_letters")
    assert len(letters) == len(BAD)
    for place, (letter, (error, key, value, message)) in enumerate(zip(letters, BAD, strict=True)):
        headers = {name: text.decode() for name, text in letter.headers}
        assert headers.pop("topic") == rig.topic("events")
        assert headers.pop("partition") == "0"
        assert headers.pop("offset") == str(2 * place)
        assert headers.pop("error") == error
        assert re.search(message, headers.pop("message"))
        assert headers == {}
        assert (letter.key, letter.value) == (key, b"" if error == "oversize" else value)
    assert rig.ledger(bad=len(BAD)) == 2 * len(BAD)


def test_garbage_is_a_dead_letter_for_messagepack_too(
    kafka_servers: str, make_rig: MakeRig
) -> None:
    rig = make_rig(kafka_servers, partitions=1)
    rig.create_topics()
    garbage = [b"\xc1", b"\x81", b"\xdf\xff\xff\xff\xff", b"\x91" * 5000, wire.event(1)]
    good = msgspec.msgpack.encode({"context": "shop", "features": {"a": 1.5}, "label": "yes"})
    rig.produce([Message("events", b"k", value) for value in [*garbage, good]])
    worker = rig.run(worker__format="msgpack")
    rig.finish(worker)
    worker.stop()

    letters = rig.read("dead_letters")
    assert [letter.value for letter in letters] == garbage
    assert {dict(letter.headers)["error"] for letter in letters} <= {b"decode", b"schema"}
    assert len(rig.read("predictions")) == 1
