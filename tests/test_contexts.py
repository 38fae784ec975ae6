"""What a worker says of its contexts, and what the topic says after it has stopped."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from streammaml.backends.memory import MemoryBroker, MemoryStateLog
from streammaml.backends.ports import Message, Record, StateReader
from streammaml.config import Config, spec_of
from streammaml.errors import DamagedError, IncompatibleError, UnavailableError
from streammaml.events import Batch
from streammaml.initialization import draw
from streammaml.inspection import stored
from streammaml.inspection.remote import Reply, context_path, get, listing_path
from streammaml.inspection.running import find_context
from streammaml.inspection.stored import find_stored, list_stored
from streammaml.learner import Learner
from streammaml.observers import watched
from streammaml.query import Query, Sort
from streammaml.worker import Worker
from tests import wire

EVENTS = 600
CONTEXTS = 12
TIMEOUT_S = 20.0
NAMES = ["a/b", "ü?&#", "%2F", "line\nbreak", "\u202e", " ", "store-17"]


def settings(**sections: dict[str, Any]) -> Config:
    return wire.config(**{"web": {"port": 0}, **sections})


class Scene:
    """A worker behind its web server, and all that it was fed played."""

    def __init__(self, config: Config, messages: list[Message]) -> None:
        self.config = config
        self.broker = MemoryBroker.of(config)
        self.broker.append(messages)
        self.watch, self.server = watched(config)
        connect = wire.Connector(self.broker, config)
        self.worker = Worker(config, draw(spec_of(config), seed=0), connect, [self.watch])
        wire.drain(self.worker)
        self.watch.follow(self.worker)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The worker's loop turns in a thread; it stops cleanly afterwards."""
        stop = threading.Event()
        loop = threading.Thread(target=self.worker.run, args=(stop,))
        with self.server:
            loop.start()
            try:
                yield
            finally:
                stop.set()
                loop.join()

    def listing(self, query: Query) -> dict[str, Any]:
        return answered(get(self.server.address, listing_path(query), TIMEOUT_S))

    def context(self, name: str) -> dict[str, Any]:
        return answered(get(self.server.address, context_path(name), TIMEOUT_S))

    def asks(self, path: str) -> Reply:
        return get(self.server.address, path, TIMEOUT_S)

    @property
    def log(self) -> MemoryStateLog:
        return MemoryStateLog(self.broker, self.config)

    def stored(self, name: str, config: Config | None = None) -> dict[str, Any] | None:
        return find_stored(config or self.config, self.log, 2, name, lambda done, note: None)

    def stored_list(self, query: Query) -> dict[str, Any]:
        return list_stored(self.config, self.log, 2, query, lambda done, note: None)


def answered(reply: Reply) -> dict[str, Any]:
    assert reply.status == 200, reply.text
    assert reply.value is not None
    return reply.value


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """It has contexts of 50 labels each, and is asked only."""
    made = Scene(settings(), wire.stream(EVENTS, CONTEXTS))
    with made.running():
        yield made


def key(sort: Sort, line: dict[str, Any]) -> tuple[float, str]:
    name = {Sort.APPLIED: "events", Sort.LAST_OFFSET: "last_offset"}.get(sort, sort.value)
    number = 0 if sort is Sort.NAME else line[name]
    return (float("inf") if number is None else -number, line["context"])


@pytest.mark.parametrize("sort", Sort)
@pytest.mark.parametrize("limit", [1, 5, 12, 1000])
def test_a_listing_has_the_first_by_what_it_is_sorted_by(
    scene: Scene, sort: Sort, limit: int
) -> None:
    whole = scene.listing(Query(sort, 1000))["contexts"]

    found = scene.listing(Query(sort, limit))

    assert found["contexts"] == sorted(whole, key=lambda line: key(sort, line))[:limit]
    assert (found["in_memory"], found["matched"]) == (CONTEXTS, CONTEXTS)
    assert {line["context"] for line in whole} == {f"shop-{i}" for i in range(CONTEXTS)}


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("*", 12), ("shop-1*", 3), ("shop-?", 10), ("shop-[23]", 2), ("SHOP*", 0), ("shop", 0)],
)
def test_a_filter_is_a_glob_over_names(scene: Scene, pattern: str, count: int) -> None:
    found = scene.listing(Query(pattern=pattern))

    assert (len(found["contexts"]), found["matched"]) == (count, count)
    assert found["in_memory"] == CONTEXTS


def test_a_line_of_a_listing_agrees_with_the_whole_state(scene: Scene) -> None:
    for line in scene.listing(Query())["contexts"]:
        found = scene.context(line["context"])

        state, detector = found["state"], found["state"]["detector"]
        assert found["partition"] == line["partition"]
        names = ("labels", "labels_in_segment", "events", "last_offset", "initialization")
        assert {name: state[name] for name in names} == {name: line[name] for name in names}
        assert state["adapted"] == line["adapted"]
        assert (detector["mean"], detector["statistic"]) == (line["loss"], line["statistic"])
        assert sum(state["stored_bytes"].values()) == line["stored_bytes"]


def test_weights_that_are_the_initialization_are_at_no_distance(scene: Scene) -> None:
    lines = scene.listing(Query())["contexts"]

    for line in lines:
        distance = scene.context(line["context"])["state"]["weights"]["distance"]
        assert (distance > 0) == line["adapted"]
    assert any(line["adapted"] for line in lines)


def test_a_context_that_is_not_there_is_not_found(scene: Scene) -> None:
    reply = scene.asks(context_path("shop-99"))

    assert reply.status == 404
    assert "no context of this name" in json.loads(reply.text)["error"]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("sort=weight", "no sort 'weight': there are loss, labels"),
        ("limit=0", "limit must be from 1 to 1000"),
        ("limit=1001", "limit must be from 1 to 1000"),
        ("limit=-1", "limit must be a number from 1 to 1000"),
        ("limit=" + "9" * 5000, "limit must be a number"),
        ("limit=", "limit must be a number"),
        ("filter=" + "x" * 1025, "more than 1024 characters"),
        ("order=loss", "no parameter 'order'"),
        ("&".join(f"limit={i}" for i in range(1, 40)), "fields"),
    ],
)
def test_what_cannot_be_listed_is_a_bad_request(scene: Scene, query: str, why: str) -> None:
    reply = scene.asks(f"/api/contexts?{query}")

    assert reply.status == 400
    assert why in json.loads(reply.text)["error"]


def test_a_pattern_cannot_keep_the_server_busy(scene: Scene) -> None:
    begun = time.monotonic()

    scene.listing(Query(pattern="*a" * 500))

    assert time.monotonic() - begun < TIMEOUT_S / 4


# What leaves memory, and what is not there to ask


def test_a_context_on_disk_is_found_by_name_and_counted() -> None:
    config = settings(learner={"hidden": [8], "max_contexts": 4})
    scene = Scene(config, wire.stream(EVENTS, CONTEXTS))
    scene.worker.commit(whole=list(scene.worker.tenures))

    with scene.running():
        listed = scene.listing(Query())
        tiers = {f"shop-{i}": scene.context(f"shop-{i}")["tier"] for i in range(CONTEXTS)}

    in_memory = {line["context"] for line in listed["contexts"]}
    assert {name for name, tier in tiers.items() if tier == "memory"} == in_memory
    assert len(in_memory) == listed["in_memory"] <= 8
    assert listed["on_disk"] == CONTEXTS
    assert set(tiers.values()) == {"memory", "disk"}


def test_without_a_worker_or_its_answer_the_service_is_unavailable() -> None:
    scene = Scene(settings(), wire.stream(10))
    with scene.server:
        scene.watch.follow(None)
        none = [scene.asks(path) for path in ("/api/contexts", "/api/contexts/shop-1")]
        with pytest.raises(TimeoutError, match="busy for 0"):
            find_context(scene.worker, "shop-1", 0.01)  # its loop does not turn
    scene.worker.close()

    assert [reply.status for reply in none] == [503, 503]
    assert json.loads(none[0].text)["error"] == "the worker does not run; try again"


def test_nothing_is_denied_before_all_is_restored() -> None:
    config = settings()
    first = Scene(config, wire.stream(EVENTS, CONTEXTS))
    first.worker.close()
    worker = Worker(config, wire.initialization(config), wire.Connector(first.broker, config))
    worker.open()
    worker.run_once(timeout_s=0)
    restoring = worker.is_restoring
    found: list[BaseException] = []

    def ask() -> None:
        try:
            find_context(worker, "shop-99", TIMEOUT_S)
        except TimeoutError as error:
            found.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    while asker.is_alive():
        worker._mailbox.serve()
        asker.join(0.001)
    worker.close()

    assert restoring
    assert "partitions 0, 1 are being restored" in str(found[0])


def test_a_context_in_two_partitions_is_told_with_the_other_one() -> None:
    messages = [Message("events", b"shop", wire.event(i), partition=int(i >= 3)) for i in range(10)]
    scene = Scene(settings(), messages)
    with scene.running():
        found = scene.context("shop")

    assert (found["partition"], found["also_in"], found["state"]["events"]) == (1, [0], 7)
    assert (scene.stored("shop") or {})["also_in"] == [0]


# The topic after a clean stop


KINDS: dict[str, dict[str, Any]] = {
    "classes": {},
    "open classes": {"label": {"classes": [], "max_classes": 5}},
    "regression": {"label": {"task": "regression", "classes": []}},
    "river's detector": {"learner": {"hidden": [8], "detector": {"name": "ADWIN"}}},
    "baseline": {"learner": {"hidden": [8], "baseline_rate": 0.1}},
    "spilled": {"learner": {"hidden": [8], "max_contexts": 4}},
    "categories": {
        "features": [
            {"name": "a"},
            {"name": "open", "type": "boolean"},
            {"name": "day", "type": "category", "categories": ["Mon", "Tue"]},
        ]
    },
}


def elaborate(seed: int, kind: str) -> list[Message]:
    """Events of contexts with odd names; some without a label, with gaps, or predicted only."""
    rng = random.Random(seed)
    messages = []
    for i in range(rng.randrange(50, EVENTS)):
        context = rng.choice(NAMES) if rng.random() < 0.5 else f"shop-{rng.randrange(CONTEXTS)}"
        label: str | float | None = rng.choice(["no", "yes", None])
        if kind == "regression" and label is not None:
            label = rng.gauss(0, 3)
        features: dict[str, Any] = {"a": rng.choice([None, rng.gauss(0, 1)])}
        features |= {"b": rng.gauss(5, 1), "c": 1e-9}
        features |= {"open": rng.random() < 0.5, "day": rng.choice(["Mon", "Sun", None])}
        value = wire.event(i, context, label, features=features)
        messages.append(Message("events", context.encode("utf-8", "replace"), value))
    return messages


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_topic_tells_after_a_clean_stop_what_the_worker_told_before(
    seed: int, kind: str
) -> None:
    scene = Scene(settings(**KINDS[kind]), elaborate(seed, kind))
    names = [*NAMES, *(f"shop-{i}" for i in range(CONTEXTS))]
    with scene.running():
        before = {
            name: reply.value
            for name in names
            if (reply := scene.asks(context_path(name))).status == 200
        }
        listed = scene.listing(Query(Sort.NAME, 1000))

    after = {name: found for name in names if (found := scene.stored(name)) is not None}
    kept = scene.stored_list(Query(Sort.NAME, 1000))

    assert len(before) > 5
    assert without_place(after) == without_place(before)
    assert kept["in_topic"] == len(before)
    assert kept["offsets"] == listed["offsets"]
    if kind == "spilled":  # a listing of the worker is of what is in memory
        lines = {line["context"]: line for line in kept["contexts"]}
        assert [lines[line["context"]] for line in listed["contexts"]] == listed["contexts"]
    else:
        assert kept["contexts"] == listed["contexts"]


def without_place(found: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, without where it was read."""
    plain: dict[str, Any] = json.loads(json.dumps(found))
    for one in plain.values():
        del one["source"]
        one.pop("tier", None)
    return plain


@pytest.mark.parametrize("sort", Sort)
def test_a_listing_of_the_topic_is_sorted_and_cut_as_that_of_a_worker(sort: Sort) -> None:
    scene = Scene(settings(), wire.stream(EVENTS, CONTEXTS))
    with scene.running():
        listed = scene.listing(Query(sort, 5, "shop-*"))

    kept = scene.stored_list(Query(sort, 5, "shop-*"))

    assert (kept["contexts"], kept["matched"]) == (listed["contexts"], CONTEXTS)


def test_the_topic_tells_what_the_last_barrier_held_and_its_offset() -> None:
    scene = Scene(settings(), wire.stream(EVENTS, CONTEXTS))
    scene.worker.commit(whole=list(scene.worker.tenures))
    events = (scene.stored("shop-1") or {})["state"]["events"]
    scene.broker.append(wire.stream(EVENTS, CONTEXTS, seed=1))
    wire.drain(scene.worker)
    with scene.running():
        newer = scene.context("shop-1")
        older = scene.stored("shop-1") or {}

    assert older["state"]["events"] == events < newer["state"]["events"]
    assert older["offset"] < newer["offset"]


def test_a_topic_without_state_has_no_contexts() -> None:
    scene = Scene(settings(), [])
    scene.worker.close()

    assert scene.stored("shop-1") is None
    assert scene.stored_list(Query())["contexts"] == []


def test_the_state_of_another_model_is_refused_with_the_difference() -> None:
    scene = Scene(settings(), wire.stream(EVENTS, CONTEXTS))
    scene.worker.close()
    other = settings(learner={"hidden": [16]})

    with pytest.raises(IncompatibleError, match="network: "):
        scene.stored("shop-1", other)
    with pytest.raises(IncompatibleError, match="network: "):
        list_stored(other, scene.log, 2, Query(), lambda done, note: None)


def test_a_damaged_record_of_the_topic_is_found() -> None:
    scene = Scene(settings(), wire.stream(EVENTS, CONTEXTS))
    scene.worker.close()
    broken = next(r for r in scene.broker.read("state") if r.key == b"c/shop-1")
    value = bytearray(broken.value or b"")
    value[40] ^= 1
    message = Message("state", broken.key, bytes(value), (), broken.partition)
    scene.broker.append([message])

    with pytest.raises(DamagedError, match="shop-1"):
        scene.stored("shop-1")
    with pytest.raises(DamagedError, match="shop-1"):
        scene.stored_list(Query())


class SilentLog(MemoryStateLog):
    """The log of a broker that stops to answer; also its own reader."""

    position, end = 0, 10

    def reader(self, index: int, start: int) -> StateReader:
        return self

    def read(self, timeout_s: float) -> Sequence[Record]:
        return []


def test_a_broker_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(settings(), [])
    scene.worker.close()
    monkeypatch.setattr(stored, "QUIET_LIMIT_S", 0.05)

    with pytest.raises(UnavailableError, match="nothing of partition 0"):
        find_stored(scene.config, SilentLog(scene.broker, scene.config), 2, "x", lambda *_: None)


# Size


MANY = 100_000
TURN_S = 0.1
"""On a busy machine; alone it is less than ten milliseconds."""


def test_a_hundred_thousand_contexts_keep_the_loop_for_a_moment_only() -> None:
    config = settings(
        learner={"hidden": [2], "max_contexts": MANY, "support_size": 4, "warmup": []}
    )
    learner = Learner(config, draw(spec_of(config), seed=0))
    names = [f"shop-{i}" for i in range(MANY)]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(MANY, learner.width)).astype(np.float32)
    learner.step(Batch(contexts=names, x=x, y=rng.integers(0, 2, MANY).astype(float)))

    def took(sort: Sort) -> float:
        begun = time.monotonic()
        learner.column(sort)
        return time.monotonic() - begun

    begun = time.monotonic()
    found = learner.glances(names[-1000:])
    glance_s = time.monotonic() - begun

    assert len(learner.lines(found)) == 1000
    assert glance_s < TURN_S
    assert max(min(took(sort) for _ in range(3)) for sort in Sort) < TURN_S
