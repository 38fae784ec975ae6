"""What a publisher promises: all or nothing, and only for the newest of its group."""

from __future__ import annotations

import pytest

from streammaml.backends.ports import Message, Record, Tail
from streammaml.config import Config
from streammaml.errors import BackendError, ConfigError, FencedError
from tests.backends.conformance.worlds import World
from tests.kafka_broker import wait_until


def version(number: int, size: int = 10) -> list[Message]:
    """The two records of a version; their topic is the publisher's affair."""
    headers = [("version", b"%d" % number)]
    value = b"%d" % number + b"." * size
    return [Message("", key, value, headers) for key in (b"v%d" % number, b"current")]


def published(world: World) -> list[tuple[bytes | None, int]]:
    return [as_said(record) for record in world.visible(world.config.topics.initializations)]


def as_said(record: Record) -> tuple[bytes | None, int]:
    return record.key, int(dict(record.headers)["version"])


def with_group(world: World, group: str) -> None:
    world.config = Config.build(world.config.model_dump(), {"outer": {"group": group}})


def test_a_version_is_visible_once_it_is_published(world: World) -> None:
    publisher = world.publisher()
    publisher.publish(version(1))
    first = published(world)
    publisher.publish(version(2))
    publisher.close()

    assert first == [(b"v1", 1), (b"current", 1)]
    assert published(world) == [*first, (b"v2", 2), (b"current", 2)]


def test_values_headers_and_tombstones_arrive_as_they_are(world: World) -> None:
    messages = [*version(3), Message("", b"v1", None)]
    publisher = world.publisher()
    publisher.publish(messages)
    publisher.close()

    found = world.visible(world.config.topics.initializations)
    assert [(r.key, r.value, list(r.headers)) for r in found] == [
        (m.key, m.value, list(m.headers)) for m in messages
    ]


def test_a_second_publisher_fences_the_first(world: World) -> None:
    first = world.publisher()
    first.publish(version(1))
    second = world.publisher()

    for _ in range(2):
        with pytest.raises(FencedError, match=r"another outer loop.*outer\.group"):
            first.publish(version(2))

    second.publish(version(3))
    first.close()
    second.publish(version(4))
    second.close()
    assert published(world) == [
        *((b"v1", 1), (b"current", 1)),
        *((b"v3", 3), (b"current", 3)),
        *((b"v4", 4), (b"current", 4)),
    ]


def test_publishers_of_two_groups_do_not_disturb_each_other(world: World) -> None:
    first = world.publisher()
    with_group(world, "another")
    second = world.publisher()
    first.publish(version(1))
    second.publish(version(2))
    first.publish(version(3))
    for publisher in (first, second):
        publisher.close()

    assert [number for _, number in published(world)] == [1, 1, 2, 2, 3, 3]


def test_a_worker_of_the_same_group_does_not_fence_it(world: World) -> None:
    publisher = world.publisher()
    sink = world.sink("a")
    publisher.publish(version(1))
    sink.close()
    publisher.close()

    assert len(published(world)) == 2


def test_a_version_that_cannot_be_sent_whole_is_not_there_at_all(world: World) -> None:
    publisher = world.publisher()
    one, two = version(1)
    with pytest.raises(BackendError):
        publisher.publish([one, two._replace(partition=7)])
    with pytest.raises(BackendError):
        publisher.publish(version(2))
    publisher.close()
    successor = world.publisher()
    successor.publish(version(3))
    successor.close()

    assert published(world) == [(b"v3", 3), (b"current", 3)]


def seen_by(tail: Tail, count: int) -> list[Record]:
    found: list[Record] = []

    def is_there() -> bool:
        found.extend(tail.poll(0.1))
        return len(found) >= count

    wait_until(is_there, 30.0, f"{count} records")
    return found


def test_a_tail_sees_what_is_published_whole_and_in_order(world: World) -> None:
    tail = world.tail(world.config.topics.initializations)
    publisher = world.publisher()
    for number in range(1, 6):
        publisher.publish(version(number, size=100_000))
    found = seen_by(tail, 10)
    publisher.close()
    tail.close()

    expected = [(key, n) for n in range(1, 6) for key in (b"v%d" % n, b"current")]
    assert [as_said(record) for record in found] == expected


def test_a_missing_topic_is_named_with_the_cure(world: World) -> None:
    topics = world.config.topics.model_copy(update={"initializations": "typo"})
    world.config = world.config.model_copy(update={"topics": topics})

    with pytest.raises(ConfigError, match=r"topic '?typo.*`streammaml topics`"):
        world.publisher()
