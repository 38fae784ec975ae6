"""Faults of the disk and of what lies there: full, refusing, damaged; and many contexts."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import streammaml.worker
from streammaml.backends.memory import MemoryBroker
from streammaml.backends.ports import Message, Partition
from streammaml.config import Config
from streammaml.errors import StoreError
from tests import wire
from tests.faults.test_records import make, play, predictions
from tests.wire import drain

State = dict[tuple[int, bytes | None], bytes | None]


def state(broker: MemoryBroker) -> State:
    """The latest value of each key."""
    return {(r.partition, r.key): r.value for r in broker.read("state")}


def test_a_worker_waits_while_the_disk_is_full_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streammaml.worker, "LAG_EVERY_S", -1.0)
    monkeypatch.setattr(streammaml.worker, "DISK_CHECK_S", -1.0)
    free = [10**12]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    settings = wire.config(state={"min_free_mb": 100.0})
    broker = MemoryBroker.of(settings)
    steps: Counter[str] = Counter()
    broker.step = lambda name: steps.update([name])
    broker.append(wire.stream(40))
    worker = make(broker, settings)
    drain(worker)

    free[0] = 10**7
    worker.run_once(timeout_s=0)
    broker.append(wire.stream(40))
    polls = steps["poll"]
    played = [worker.run_once(timeout_s=0) for _ in range(5)]
    waiting = len(predictions(broker))
    free[0] = 10**12
    while worker.run_once(timeout_s=0) or len(predictions(broker)) < 80:
        worker.commit()

    assert played == [0] * 5
    assert steps["poll"] >= polls + 5, "the group heard of it meanwhile"
    assert waiting == 40
    assert len(predictions(broker)) == 80
    worker.close()


def test_a_disk_that_refuses_ends_the_worker_with_its_own_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "no-folder"
    file.write_text("")
    settings = wire.config(state={"directory": str(file)}, kafka={"unavailable_limit_s": 0.2})
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(10))

    with pytest.raises(StoreError, match=r"gave up after 0\.2 s.*state\.directory") as caught:
        make(broker, settings).run(threading.Event())

    assert caught.value.exit_code == 74
    assert predictions(broker) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in range(100, len(data), 997):
        data[place] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)


def undisturbed(settings: Config) -> tuple[State, list[bytes | None]]:
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(200))
    play(broker, settings)
    return state(broker), [r.value for r in broker.read("predictions")]


@pytest.mark.parametrize("damage", [flip, cut, overwrite, Path.unlink])
def test_a_damaged_store_is_made_anew_from_the_topic_to_the_same_bits(
    damage: Callable[[Path], object],
) -> None:
    settings = wire.config()
    broker = MemoryBroker.of(settings)
    messages = wire.stream(200)
    broker.append(messages[:120])
    play(broker, settings)
    files = sorted(Path(settings.state.directory).rglob("*.db"))
    for file in files:
        damage(file)
    broker.append(messages[120:])

    play_until_settled(broker, settings)

    expected, outputs = undisturbed(wire.config())
    assert len(files) == 2
    assert state(broker) == expected
    assert [r.value for r in broker.read("predictions")] == outputs


def play_until_settled(broker: MemoryBroker, settings: Config) -> None:
    """As ``run`` does: what is found damaged is repaired by the next life."""
    worker = make(broker, settings)
    stop = threading.Event()
    running = threading.Thread(target=worker.run, args=(stop,))
    running.start()
    ends = [Partition("events", i) for i in range(2)]
    with broker.changed:
        settled = broker.changed.wait_for(
            lambda: all(broker.committed("streammaml", p) == broker.span(p)[1] for p in ends), 60
        )
    stop.set()
    running.join(60)
    assert settled


def test_many_contexts_stay_within_their_room_and_leave_with_time() -> None:
    clock = [1_700_000_000_000]
    settings = wire.config(
        learner={"max_contexts": 20},
        topics={"partitions": 1},
        state={"ttl_s": 60.0, "barrier_events": 0},
        worker={"max_poll_records": 100},
    )
    topics = (
        *("events", "predictions", "adaptations", "dead-letters"),
        *("state", "episodes", "initializations"),
    )
    broker = MemoryBroker(dict.fromkeys(topics, 1), now_ms=lambda: clock[0])
    worker = make(broker, settings)

    def play_contexts(names: range) -> None:
        values = [(f"c-{i}", wire.event(i, f"c-{i}", timestamp=clock[0] / 1000)) for i in names]
        broker.append([Message("events", name.encode(), value) for name, value in values])
        drain(worker)

    play_contexts(range(2000))
    (tenure,) = worker.tenures.values()
    (learner,) = worker.learners.values()
    crowded = (len(learner), tenure.stored_contexts)
    clock[0] += 3_600_000
    play_contexts(range(5000, 5010))

    assert crowded == (20, 2000)
    assert tenure.stored_contexts == 10
    assert len(predictions(broker)) == 2010
    tombstones = [key for (_, key), value in state(broker).items() if value is None]
    assert sum(key is not None and key.startswith(b"c/") for key in tombstones) == 2000
    worker.close()
