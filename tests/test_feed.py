"""The feed: at its rate by the test's own clock, in part, and damaged beyond any worker."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from streammaml.backends.codec import EventDecoder
from streammaml.backends.memory import MemoryBroker, MemoryRecord, MemorySink
from streammaml.backends.ports import Message
from streammaml.config import Config
from streammaml.errors import RejectedError
from streammaml.events import Reason
from streammaml.feed import Fed, FeedPlan, feed
from streammaml.learner.schema import Labels, Schema
from tests import wire


class World:
    """A clock that moves only where the feed waits or the sink hangs."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.stop = _Stop(self)
        self.hangs_s: list[float] = []
        self.sent: list[Message] = []
        self.times_s: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def send(self, messages: list[Message], /) -> None:
        self.sent += messages
        self.times_s += [self.now_s - 1000.0] * len(messages)
        self.now_s += self.hangs_s.pop() if self.hangs_s else 0.0

    def feed(
        self,
        events: Any,
        settings: Config | None = None,
        progress: Callable[[Fed], None] = lambda fed: None,
        **plan: Any,
    ) -> Fed:
        return feed(
            events,
            self,
            settings or wire.config(),
            FeedPlan(name="file", **plan),
            stop=self.stop,
            clock=self.clock,
            progress=progress,
        )


class _Stop(threading.Event):
    """Waiting for a stop moves the world's clock."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self._world.now_s += timeout
        return self.is_set()


def events(count: int) -> list[dict[str, Any]]:
    return [
        {
            "context": f"shop-{i % 3}",
            "features": {"a": 0.1 * i, "b": 1.0, "c": None},
            "label": "yes",
        }
        for i in range(count)
    ]


def decoded(message: Message) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.json.decode(message.value or b"")
    return value


def test_every_event_goes_out_with_its_row_as_id_and_its_context_as_key() -> None:
    world = World()

    fed = world.feed(events(4))

    assert fed.sent == 4
    assert fed.corrupted == 0
    assert [decoded(m) for m in world.sent] == [
        {"id": f"file-{i}", **event} for i, event in enumerate(events(4))
    ]
    assert [m.key for m in world.sent] == [b"shop-0", b"shop-1", b"shop-2", b"shop-0"]
    assert {m.topic for m in world.sent} == {"events"}


def test_an_event_keeps_the_id_it_has_and_a_raw_line_goes_out_as_it_is() -> None:
    world = World()

    world.feed([{"id": "mine", "context": 7}, b"not json"])

    assert decoded(world.sent[0])["id"] == "mine"
    assert world.sent[0].key == b"7"
    assert world.sent[1] == Message("events", None, b"not json")


def test_every_and_limit_choose_rows_but_do_not_rename_them() -> None:
    world = World()

    fed = world.feed(events(20), every=3, limit=4)

    assert [decoded(m)["id"] for m in world.sent] == ["file-0", "file-3", "file-6", "file-9"]
    assert fed.sent == 4


def test_no_row_beyond_the_limit_is_read() -> None:
    world = World()
    read = []

    def endless() -> Iterator[dict[str, Any]]:
        for i, event in enumerate(events(1000)):
            read.append(i)
            yield event

    world.feed(endless(), limit=3)

    assert read == [0, 1, 2]


def test_messagepack_follows_from_the_configuration() -> None:
    world = World()

    world.feed(events(1), wire.config(worker={"format": "msgpack"}))

    assert msgspec.msgpack.decode(world.sent[0].value or b"")["id"] == "file-0"


def test_events_are_spread_over_time_at_a_low_rate() -> None:
    world = World()

    fed = world.feed(events(5), rate=2.0)

    assert world.times_s == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert fed.rate == 2.5  # the last one is not waited for


@pytest.mark.parametrize("rate", [10.0, 333.0, 5_000.0, 60_000.0])
def test_the_rate_is_kept(rate: float) -> None:
    world = World()
    count = int(3 * rate)

    world.feed(events(count), rate=rate)

    assert world.times_s[-1] == pytest.approx(3.0, rel=0.02, abs=1 / rate)
    assert all(t >= i / rate - 1e-6 - 1 / rate for i, t in enumerate(world.times_s))


def test_a_slow_sink_is_caught_up_with_but_not_flooded() -> None:
    world = World()
    world.hangs_s = [10.0]

    world.feed(events(300), rate=100.0)

    assert world.times_s[0] == 0.0
    assert world.times_s.count(10.0) == 100  # one second of events, not ten
    assert world.times_s[-1] == pytest.approx(10.0 + (299 - 100) / 100, rel=0.02)


def test_without_a_rate_nothing_waits() -> None:
    world = World()

    world.feed(events(2000))

    assert world.now_s == 1000.0
    assert len(world.sent) == 2000


def test_a_stop_ends_it_between_two_events() -> None:
    world = World()

    def stopping() -> Iterator[dict[str, Any]]:
        for i, event in enumerate(events(100)):
            if i == 10:
                world.stop.set()
            yield event

    fed = world.feed(stopping(), rate=5.0)

    assert fed.sent == len(world.sent) == 10


def test_progress_is_told_twice_a_second_and_at_the_end() -> None:
    world = World()
    told: list[Fed] = []

    fed = world.feed(events(21), progress=told.append, rate=10.0)

    assert [f.sent for f in told] == [6, 11, 16, 21, 21]
    assert told[-1] == fed
    assert told[1].rate == pytest.approx(11.0)


def test_no_events_are_no_events() -> None:
    assert World().feed([]) == Fed(sent=0, corrupted=0, rate=0.0)


def reason_of(message: Message, settings: Config) -> Reason | None:
    """What a worker says of it; each with its own classes, as on an own partition."""
    record = MemoryRecord(*("events", 0, 0, 0), message.key, message.value, ())
    worker = settings.worker
    decode = EventDecoder(settings.features, worker.format, worker.max_record_bytes)
    try:
        event = decode(record)
    except RejectedError as error:
        return error.reason
    found = Schema(settings.features).collate([event], Labels(settings.label)).rejected
    return found[0].reason if found else None


def with_features(features: list[dict[str, Any]]) -> Config:
    return Config.build(wire.config().model_dump(), {"features": features})


CONFIGS = {
    "classes": wire.config(),
    "msgpack": wire.config(worker={"format": "msgpack"}),
    "open classes": wire.config(label={"classes": []}),
    "the class of the damage": wire.config(label={"classes": ["yes", "no-such-class"]}),
    "values": wire.config(label={"classes": [], "task": "regression"}),
    "no numbers": with_features([{"name": "a", "type": "boolean"}]),
    "no features": with_features([]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_damaged_event_is_rejected_and_no_other(name: str) -> None:
    settings, world = CONFIGS[name], World()
    label = 1.5 if name == "values" else "yes"
    whole = [
        {"context": "s", "features": {} if "no" in name else {"a": 1.0}, "label": label}
        for _ in range(400)
    ]

    fed = world.feed(whole, settings, corrupt=0.3, seed=1)

    reasons = Counter(reason_of(message, settings) for message in world.sent)
    assert fed.sent == 400
    assert fed.corrupted == 400 - reasons[None]
    assert 80 < fed.corrupted < 160
    assert {Reason.DECODE, Reason.SCHEMA, Reason.CONTEXT} <= set(reasons)


def test_all_kinds_of_damage_come_in_turn() -> None:
    world = World()

    world.feed(events(12), corrupt=1.0)

    reasons = [reason_of(message, wire.config()) for message in world.sent]
    assert reasons[:6] == [
        *(Reason.DECODE, Reason.SCHEMA, Reason.SCHEMA),
        *(Reason.NONFINITE, Reason.CONTEXT, Reason.LABEL),
    ]
    assert reasons[6:] == reasons[:6]
    assert world.sent[4].key is None
    assert world.sent[5].key == b"shop-2"


def test_events_without_features_or_context_are_damaged_for_certain_too() -> None:
    world, settings = World(), wire.config()
    bare: list[Any] = [{"id": "late", "context": "s", "label": "yes"}, {"context": "s"}, b"{}"]

    world.feed(bare * 12, settings, corrupt=1.0)

    assert None not in {reason_of(message, settings) for message in world.sent}


def test_the_same_seed_damages_the_same_events() -> None:
    runs = []
    for seed in (5, 5, 6):
        world = World()
        world.feed(events(200), corrupt=0.2, seed=seed)
        runs.append([m.value for m in world.sent])

    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_nothing_is_damaged_unasked() -> None:
    world = World()

    fed = world.feed(events(500))

    assert fed.corrupted == 0
    assert {reason_of(m, wire.config()) for m in world.sent} == {None}


def test_a_sink_of_the_worker_takes_a_feed() -> None:
    settings, world = wire.config(), World()
    broker = MemoryBroker.of(settings)
    sink = MemorySink(broker, settings, "feeder")

    plan = FeedPlan(name="file")
    fed = feed(events(30), sink, settings, plan, stop=world.stop, clock=world.clock)

    assert fed.sent == 30
