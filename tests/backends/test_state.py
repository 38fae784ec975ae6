"""The local store: what it holds, what a restart keeps, and that damage is never served."""

from __future__ import annotations

from pathlib import Path

import pytest

from streammaml.backends.state import Store, store_path
from streammaml.errors import DamagedError
from streammaml.sealed import OVERHEAD_BYTES, seal

TOPIC_ID = "mBg3kZ"
OWNER = b"model-01"


def sealed(key: bytes, body: bytes = b"body") -> bytes:
    return seal(key, OWNER, body)


def record(name: str, body: bytes = b"body") -> tuple[bytes, bytes]:
    key = name.encode()
    return key, sealed(key, body)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return store_path(tmp_path, "group", "host-1", "state", 0)


def test_an_empty_store_has_position_0_and_nothing(path: Path) -> None:
    store = Store.open(path, TOPIC_ID)

    assert (store.position, store.healed) == (0, "")
    assert store.take([b"c/a", b"@partition"]) == {}
    store.close()


def test_records_and_their_position_outlive_a_restart(path: Path) -> None:
    store = Store.open(path, TOPIC_ID)
    store.apply([record("c/a"), record("c/b"), record("c/a", b"later"), (b"c/b", None)], 7)
    store.close()

    store = Store.open(path, TOPIC_ID)

    assert (store.position, store.healed) == (7, "")
    assert store.take([b"c/a", b"c/b"]) == dict([record("c/a", b"later")])
    store.close()


def test_spilled_values_come_first_and_a_restart_forgets_them(path: Path) -> None:
    store = Store.open(path, TOPIC_ID)
    store.apply([record("c/a"), record("c/b"), record("c/c")], 3)
    store.spill([record("c/a", b"spilled"), (b"c/b", None)])

    assert store.take([b"c/a", b"c/b", b"c/c"]) == dict([record("c/a", b"spilled"), record("c/c")])
    store.close()
    store = Store.open(path, TOPIC_ID)
    assert store.take([b"c/a", b"c/b"]) == dict([record("c/a"), record("c/b")])
    assert (store.position, store.spilled_bytes) == (3, 0)
    store.close()


def test_a_barrier_takes_over_what_was_spilled_and_memory_wins(path: Path) -> None:
    store = Store.open(path, TOPIC_ID)
    store.apply([record("c/a"), record("c/b"), record("c/c")], 3)
    store.spill([record("c/a", b"spilled"), (b"c/b", None), record("c/d", b"spilled")])

    store.barrier([record("c/d", b"memory"), record("@partition")], 9)

    assert list(store.spilled()) == []
    assert store.scan(b"c/", b"", 10) == [
        record("c/a", b"spilled"),
        record("c/c"),
        record("c/d", b"memory"),
    ]
    assert (store.position, store.spilled_bytes, store.count(b"c/")) == (9, 0, 3)
    store.close()


def test_what_is_not_whole_does_not_come_in(path: Path) -> None:
    store = Store.open(path, TOPIC_ID)
    store.apply([record("c/a")], 1)

    with pytest.raises(DamagedError, match="c/b"):
        store.apply([record("c/c"), (b"c/b", bytes(OVERHEAD_BYTES))], 3)

    assert store.take([b"c/a", b"c/c"]) == dict([record("c/a")])
    assert store.position == 1
    store.close()


def test_a_store_of_another_topic_is_deleted(path: Path) -> None:
    store = Store.open(path, TOPIC_ID)
    store.apply([record("c/a")], 1)
    store.close()

    store = Store.open(path, "another")

    assert "mirrors" in store.healed
    assert (store.position, store.get(b"c/a")) == (0, None)
    assert not (path.parent / "damaged").exists()
    store.close()
