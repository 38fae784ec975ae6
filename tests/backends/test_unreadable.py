"""Records that the client cannot decode: told with their place, and passed over batch by batch.

On memory as modelled, on Kafka with bytes changed in its files and with a codec that is missing.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import kafka  # type: ignore[import-untyped]  # kafka-python has no types
import pytest

from streammaml.backends.kafka import client_settings
from streammaml.backends.ports import Partition, Record
from streammaml.errors import UnreadableError
from tests.backends.conformance.worlds import (
    KafkaWorld,
    MemoryWorld,
    Reader,
    World,
    drive,
    numbered,
    unique_config,
)
from tests.conftest import make_broker
from tests.kafka_broker import wait_until

BATCHES, SIZE = 10, 20
END = BATCHES * SIZE


class Batch(NamedTuple):
    at: int  # in the file
    first: int
    last: int


class Damage(NamedTuple):
    """Bytes to change in batches, and what follows for a reader of 20 records a batch."""

    batches: tuple[int, ...]
    byte: int  # of the batch
    value: int | None  # None: another one
    bad: int
    readable: int
    rest: int


PAYLOAD, CODEC, LAST = 70, 22, 23
CASES = {
    "a batch amid others": Damage((4,), PAYLOAD, None, 80, 100, 100),
    "the first batch": Damage((0,), PAYLOAD, None, 0, 20, 180),
    "the last batch": Damage((9,), PAYLOAD, None, 180, 200, 0),
    "two in a row and a later one": Damage((3, 4, 6), PAYLOAD, None, 60, 100, 20),
    "all from one on": Damage((7, 8, 9), PAYLOAD, None, 140, 200, 0),
    "its codec": Damage((4,), CODEC, 7, 80, 100, 100),
    "its last offset, to an earlier one": Damage((4,), LAST + 3, 5, 80, 86, 100),
    "its last offset, to a later one": Damage((4,), LAST + 2, 3, 80, 100, 100),
}

BEHIND_MARKER = len(CASES)
"""The partition whose bad batch follows the marker of a transaction."""


def batches(file: Path) -> list[Batch]:
    found, data, at = [], file.read_bytes(), 0
    while at < len(data):
        first, length = struct.unpack_from(">qi", data, at)
        (last,) = struct.unpack_from(">i", data, at + LAST)
        found.append(Batch(at, first, first + last))
        at += 12 + length
    return found


def change(file: Path, at: int, value: int | None) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        (old,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([old ^ 0x55 if value is None else value]))


def fill(
    world: World,
    topic: str,
    partition: int,
    codec: str = "lz4",
    count: int = 1,
    transactional_id: str | None = None,
) -> None:
    """Whole batches of SIZE records."""
    producer = kafka.KafkaProducer(
        **client_settings(world.config.kafka, 10.0),
        linger_ms=5000,
        compression_type=codec,
        transactional_id=transactional_id,
    )
    if transactional_id:
        producer.init_transactions()
        producer.begin_transaction()
    for _ in range(count):
        for i in range(SIZE):
            producer.send(topic, b"%d" % i * 50, b"k", partition=partition)
        producer.flush()
    if transactional_id:
        producer.commit_transaction()
    producer.close()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaWorld]:
    """Partition after partition damaged as the cases say; the state topic like the first."""
    broker = make_broker(tmp_path_factory.mktemp("kafka"))
    broker.start()
    world = KafkaWorld(unique_config(broker.bootstrap, partitions=len(CASES) + 1))
    topics = world.config.topics
    for i in range(len(CASES)):
        fill(world, topics.events, i, count=BATCHES)
    fill(world, topics.state, 0, count=BATCHES)
    fill(world, topics.events, BEHIND_MARKER, transactional_id=secrets.token_hex(4))
    fill(world, topics.events, BEHIND_MARKER, count=2)
    broker.stop()
    damage = [(topics.events, i, case) for i, case in enumerate(CASES.values())]
    for topic, i, case in [*damage, (topics.state, 0, next(iter(CASES.values())))]:
        file = broker.segment(topic, i)
        found = batches(file)
        assert [(b.first, b.last) for b in found] == [
            (n, n + SIZE - 1) for n in range(0, END, SIZE)
        ]
        for b in case.batches:
            change(file, found[b].at + case.byte, case.value)
    file = broker.segment(topics.events, BEHIND_MARKER)
    assert [b.first for b in batches(file)] == [0, SIZE, SIZE + 1, 2 * SIZE + 1]
    change(file, batches(file)[2].at + PAYLOAD, None)
    broker.start()
    yield world
    broker.kill()


@pytest.mark.kafka
@pytest.mark.parametrize("name", CASES)
def test_a_bad_batch_is_told_and_can_be_passed_over(damaged: KafkaWorld, name: str) -> None:
    case = CASES[name]
    partition = Partition(damaged.config.topics.events, list(CASES).index(name))
    first = started(damaged, partition, 0)

    told = failure(first)
    after = first.source.next_readable(partition, told.offset)
    first.close()
    second = started(damaged, partition, after)
    rest = until_end_or_bad(second, partition)

    assert (told.topic, told.partition, told.offset) == (partition.topic, partition.index, case.bad)
    assert len(first.values) == case.bad
    assert after == case.readable
    assert rest == case.rest
    second.close()


def started(world: World, partition: Partition, offset: int) -> Reader:
    """A reader of one partition."""
    reader = Reader(world, "a", start=False)
    drive(reader, until=lambda: partition in reader.assigned, what="an assignment")
    reader.source.start(partition, offset)
    return reader


def failure(reader: Reader) -> UnreadableError:
    """What its polls end with, again and again."""
    with pytest.raises(UnreadableError) as caught:
        drive(reader, until=lambda: False, what="an error")
    with pytest.raises(UnreadableError):
        reader.poll()
    return caught.value


def until_end_or_bad(reader: Reader, partition: Partition) -> int:
    """How many records come."""
    with suppress(UnreadableError):
        drive(reader, until=lambda: reader.source.position(partition) == END, what="the end")
    return len(reader.values)


@pytest.mark.kafka
def test_the_place_is_where_a_reader_would_go_on(damaged: KafkaWorld) -> None:
    """It has not seen the marker before the bad batch, and comes back to before it."""
    partition = Partition(damaged.config.topics.events, BEHIND_MARKER)
    first = started(damaged, partition, 0)
    told = failure(first)
    after = first.source.next_readable(partition, told.offset)
    first.close()
    again = started(damaged, partition, told.offset)

    assert failure(again).offset == told.offset == SIZE
    assert after == 2 * SIZE + 1

    again.close()


@pytest.mark.kafka
def test_an_error_that_waits_is_not_lost_in_a_pause(damaged: KafkaWorld) -> None:
    partition = Partition(damaged.config.topics.events, 0)
    reader = started(damaged, partition, 0)
    drive(reader, until=lambda: len(reader.values) == 80, what="what can be read")
    reader.source.pause()

    assert failure(reader).offset == 80

    reader.close()


@pytest.mark.kafka
def test_a_bad_batch_of_the_state_is_told(damaged: KafkaWorld) -> None:
    log = damaged.state_log()
    reader = log.reader(0, 0)
    found: list[Record] = []

    def is_done() -> bool:
        found.extend(reader.read(1.0))
        return False

    with pytest.raises(UnreadableError) as caught:
        wait_until(is_done, 30.0, "an error")
    with pytest.raises(UnreadableError):
        reader.read(1.0)

    assert len(found) == reader.position == caught.value.offset == 80
    assert caught.value.topic == damaged.config.topics.state
    reader.close()
    log.close()


@pytest.mark.kafka
def test_a_tail_passes_over_what_is_bad_without_waiting(damaged: KafkaWorld) -> None:
    tail = damaged.tail(damaged.config.topics.events)
    found: Counter[int] = Counter()
    slowest_s = 0.0

    def is_done() -> bool:
        nonlocal slowest_s
        started = time.monotonic()
        found.update(record.partition for record in tail.poll(0.0))  # type: ignore[attr-defined]
        slowest_s = max(slowest_s, time.monotonic() - started)
        return tail.caught_up

    wait_until(is_done, 60.0, "the end")
    tail.close()

    good = [END - SIZE * len(case.batches) for case in CASES.values()]
    assert found == dict(enumerate([*good, 2 * SIZE]))
    assert slowest_s < 5.0


@pytest.mark.kafka
def test_a_codec_that_is_missing_is_named_and_its_batches_are_passed_over(
    kafka_servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = KafkaWorld(unique_config(kafka_servers, partitions=1))
    partition = Partition(world.config.topics.events, 0)
    for codec, count in (("lz4", 1), ("zstd", 3), ("lz4", 1), ("zstd", 1)):
        fill(world, partition.topic, 0, codec, count)
    monkeypatch.setattr("kafka.codec.zstd", None)
    reader = started(world, partition, 0)

    told = failure(reader)

    assert told.offset == 20
    assert "zstd" in str(told)
    assert "`streammaml doctor`" in str(told)
    assert reader.source.next_readable(partition, 20) == 80
    assert reader.source.next_readable(partition, 35) == 80
    assert reader.source.next_readable(partition, 100) == 120
    monkeypatch.undo()
    assert reader.source.next_readable(partition, 20) == 20
    reader.close()


def test_the_memory_twin_tells_and_passes_over_too() -> None:
    world = MemoryWorld(unique_config(partitions=2))
    topics = world.config.topics
    one, two = (Partition(topics.events, i) for i in range(2))
    world.produce(numbered(topics.events, 100))
    ends = {p: world.broker.span(p)[1] for p in (one, two)}
    world.broker.damage(one, 3, 7)
    world.broker.damage(one, 7, 9)
    world.broker.damage(two, ends[two] - 1, ends[two])
    reader = Reader(world, "a")

    told = failure(reader)

    assert len(reader.values) == 3 + ends[two] - 1
    assert (told.partition, told.offset) in {(0, 3), (1, ends[two] - 1)}
    assert reader.source.next_readable(one, 3) == 9
    assert reader.source.next_readable(two, ends[two] - 1) == ends[two]
    reader.close()


def test_a_tail_of_the_memory_twin_passes_over_what_is_bad() -> None:
    world = MemoryWorld(unique_config(partitions=1))
    partition = Partition(world.config.topics.events, 0)
    world.produce(numbered(partition.topic, 10))
    for start, stop in ((2, 4), (4, 5), (9, 10)):
        world.broker.damage(partition, start, stop)
    tail = world.tail(partition.topic)
    found: list[int] = []
    while not tail.caught_up:
        found += [record.offset for record in tail.poll(0.0)]

    assert found == [0, 1, 5, 6, 7, 8]


def test_the_memory_twin_too_tells_where_a_reader_would_go_on() -> None:
    world = MemoryWorld(unique_config(partitions=1))
    partition = Partition(world.config.topics.events, 0)
    with Reader(world, "b") as other:
        other.commit(numbered(partition.topic, 3))
    world.produce(numbered(partition.topic, 3))
    world.broker.damage(partition, 4, 5)
    reader = Reader(world, "a")

    told = failure(reader)

    assert told.offset == len(reader.values) == 3
    assert reader.source.next_readable(partition, 3) == 5
    reader.close()
