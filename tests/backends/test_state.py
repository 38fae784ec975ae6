"""The local store: what it holds, what a restart keeps, and that damage is never served."""

from __future__ import annotations

import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streammaml.backends.state import Store, sqlite_file, store_path
from streammaml.errors import DamagedError, StoreError
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


def test_a_prefix_ends_where_the_next_one_begins(path: Path) -> None:
    store = Store.open(path, TOPIC_ID)
    names = [b"c/", b"c/a", b"c/a\xff", b"c/a\xff\xff", b"c/b", b"c0", b"w/a", b"@p", b"\xff\xff"]
    store.apply([(key, sealed(key)) for key in names], 1)

    assert [key for key, _ in store.scan(b"c/", b"", 9)] == names[:5]
    assert [key for key, _ in store.scan(b"c/", b"c/a\xff", 1)] == [b"c/a\xff\xff"]
    assert [key for key, _ in store.scan(b"c/a\xff", b"", 9)] == names[2:4]
    assert [key for key, _ in store.scan(b"\xff", b"", 9)] == [b"\xff\xff"]
    assert [store.count(p) for p in (b"", b"c/", b"c/a", b"@", b"@p", b"x/")] == [9, 5, 3, 1, 1, 0]
    store.close()


@pytest.mark.parametrize(
    "names",
    [
        ("../../etc", "..", "/root"),
        (".", "a/b", "c\\d"),
        ("", "", ""),
        ("g" * 300, "i\0\n", "ünï·\udc80"),
    ],
)
def test_no_name_leads_out_of_the_directory(tmp_path: Path, names: tuple[str, str, str]) -> None:
    path = store_path(tmp_path, *names, 3)

    assert path.parent.parent == tmp_path
    assert path.resolve().parent.parent == tmp_path.resolve()
    Store.open(path, TOPIC_ID).close()


def test_names_that_look_alike_have_stores_of_their_own(tmp_path: Path) -> None:
    names = [("a-b", "c", "d"), ("a", "b-c", "d"), ("a/b", "c", "d"), ("a.b", "c", "d")]

    assert len({store_path(tmp_path, *n, 0) for n in names}) == len(names)
    assert store_path(tmp_path, *names[0], 0) != store_path(tmp_path, *names[0], 1)


def test_a_file_of_another_format_is_moved_aside(path: Path) -> None:
    Store.open(path, TOPIC_ID).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA application_id = {sqlite_file.APPLICATION_ID - 1}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()

    store = Store.open(path, TOPIC_ID)

    assert "another program or release" in store.healed
    assert [p.name for p in (path.parent / "damaged").iterdir()] == ["1-0.db"]
    store.close()


def test_a_file_with_a_trigger_is_moved_aside(path: Path) -> None:
    Store.open(path, TOPIC_ID).close()
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records WHERE key = 'a'; END"
    )
    connection.close()

    store = Store.open(path, TOPIC_ID)

    assert "its tables are not a store's" in store.healed
    store.close()


@pytest.mark.parametrize("word", [b"CREATE TABLE records", b"value BLOB", b"tablerecords"])
def test_damaged_text_that_sqlite_would_quote_is_damage(path: Path, word: bytes) -> None:
    Store.open(path, TOPIC_ID).close()
    data = path.read_bytes()
    assert word in data
    path.write_bytes(data.replace(word, word[:5] + b"\xd4" + word[6:]))

    store = Store.open(path, TOPIC_ID)

    assert store.healed
    store.close()


def test_only_the_latest_damaged_files_are_kept(path: Path) -> None:
    for turn in range(7):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"no database {turn}")
        Store.open(path, TOPIC_ID).close()

    kept = sorted((path.parent / "damaged").iterdir())

    assert [p.name for p in kept] == ["5-0.db", "6-0.db", "7-0.db"]
    assert kept[-1].read_text() == "no database 6"


def test_a_condemned_store_refuses_and_is_made_anew(path: Path) -> None:
    store = Store.open(path, TOPIC_ID)
    store.apply([record("c/a")], 1)
    store.condemn("it smells")

    with pytest.raises(DamagedError, match="it smells"):
        store.take([b"c/a"])
    with pytest.raises(DamagedError, match="it smells"):
        store.apply([record("c/a")], 2)
    store.close()
    store = Store.open(path, TOPIC_ID)
    assert (store.healed, store.position, store.get(b"c/a")) == ("it smells", 0, None)
    store.close()


def test_a_damaged_spilled_value_is_found(path: Path) -> None:
    store = Store.open(path, TOPIC_ID)
    store.apply([record("c/a")], 1)
    store.spill([record("c/a", b"spilled")])
    scratch = path.with_name("0.db-scratch")
    scratch.write_bytes(scratch.read_bytes().replace(b"spilled", b"spillet"))

    with pytest.raises(DamagedError, match="spilled value of b'c/a'"):
        store.take([b"c/a"])
    with pytest.raises(DamagedError, match="spilled value of b'c/a'"):
        store.barrier([], 2)
    store.close()
    store = Store.open(path, TOPIC_ID)  # the barrier's values were never in doubt
    assert (store.healed, store.position, store.get(b"c/a")) == ("", 1, sealed(b"c/a"))
    store.close()


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let the system refuse to make any file larger than ``size`` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("step", ["apply", "barrier", "spill"])
def test_a_full_disk_leaves_the_old_state(path: Path, step: str) -> None:
    store = Store.open(path, TOPIC_ID)
    old = [record(f"c/{i}", b"old" * 100) for i in range(500)]
    new = [record(f"c/{i}", b"new" * 1_000) for i in range(500)]
    store.apply(old, 500)
    store.spill(new[:10])

    write = store.spill if step == "spill" else partial(getattr(store, step), position=1_000)
    with files_end_at(400_000), pytest.raises(StoreError, match=r"0\.db: .*: "):
        write(new)

    assert store.position == 500
    assert store.take([key for key, _ in old[10:20]]) == dict(old[10:20]) or step == "spill"
    store.barrier(new, 1_000)
    assert store.take([key for key, _ in new]) == dict(new)
    store.close()
    store = Store.open(path, TOPIC_ID)
    assert (store.healed, store.position) == ("", 1_000)
    assert store.take([key for key, _ in new]) == dict(new)
    store.close()


def test_a_full_disk_at_a_checkpoint_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(path, TOPIC_ID)
    store.apply([record(f"c/{i}", b"x" * 2_000) for i in range(100)], 100)
    monkeypatch.setattr("streammaml.backends.state.store.CHECKPOINT_BYTES", 0)

    with files_end_at(100_000), pytest.raises(StoreError):
        store.apply([record("c/0", b"later")], 101)

    store.close()
    store = Store.open(path, TOPIC_ID)
    assert (store.healed, store.position in (100, 101), store.count(b"c/")) == ("", True, 100)
    store.close()


def test_a_place_that_cannot_be_is_told_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "0.db").mkdir()

    for path in (tmp_path / "file" / "0.db", tmp_path / "0.db"):
        with pytest.raises(StoreError, match=r"0\.db: .*state\.directory"):
            Store.open(path, TOPIC_ID)


def test_a_locked_file_is_told_with_its_cure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_S", 0.01)
    store = Store.open(path, TOPIC_ID)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreError, match="--instance"):
        store.apply([record("c/a")], 1)

    other.close()
    store.apply([record("c/a")], 1)
    store.close()


def test_a_second_writer_is_told(path: Path) -> None:
    one, two = Store.open(path, TOPIC_ID), Store.open(path, TOPIC_ID)
    one.apply([record("c/a")], 1)

    with pytest.raises(StoreError, match="--instance"):
        two.apply([record("c/b")], 1)

    two.close()
    assert one.take([b"c/a", b"c/b"]) == dict([record("c/a")])
    one.close()


def test_one_thread_goes_on_where_another_stopped(path: Path) -> None:
    store = Store.open(path, TOPIC_ID)
    store.apply([record("c/a")], 1)
    store.close()
    store = Store.open(path, TOPIC_ID)
    seen: list[dict[bytes, bytes]] = []

    def work() -> None:
        seen.append(store.take([b"c/a", b"c/none"]))
        store.spill([record("c/b")])
        store.barrier([record("c/c")], 4)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [dict([record("c/a")])]
    assert (store.position, store.count(b"c/")) == (4, 3)
    store.close()


WRITER = """
import sys
from pathlib import Path
from streammaml.backends.state import store as module
from streammaml.sealed import seal

module.CHECKPOINT_BYTES = 400_000
path, topic_id = Path(sys.argv[1]), sys.argv[2]
store = module.Store.open(path, topic_id)
for turn in range(store.position + 1, 1 << 30):
    items = [(b"c/%d" % i, seal(b"c/%d" % i, b"model-01", b"%d" % turn * 300)) for i in range(400)]
    items.append((b"t/%d" % turn, seal(b"t/%d" % turn, b"model-01", b"")))
    items.append((b"t/%d" % (turn - 1), None))
    if turn % 2:
        store.apply(items, turn)
    else:
        store.spill(items[:200])
        store.barrier(items[200:], turn)
    print(turn, flush=True)
"""


def test_kill_9_leaves_a_whole_state(path: Path) -> None:
    chosen = random.Random(9)
    for _ in range(6):
        command = [sys.executable, "-c", WRITER, str(path), TOPIC_ID]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            told = int(writer.stdout.readline())
            time.sleep(chosen.random() * 0.3)
            writer.kill()
            told = max([told, *map(int, writer.stdout.read().split("\n")[:-1])])

        store = Store.open(path, TOPIC_ID)

        assert store.healed == ""
        turn = store.position
        assert turn >= told
        assert store.scan(b"t/", b"", 9) == [(b"t/%d" % turn, sealed(b"t/%d" % turn, b""))]
        assert store.scan(b"c/", b"", 999) == sorted(
            record(f"c/{i}", b"%d" % turn * 300) for i in range(400)
        )
        store.close()


KEYS = st.sampled_from([b"c/a", b"c/b", b"c/\xff", b"c/", b"w/a", b"@partition", b"@swaps"])
ITEMS = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=3)), max_size=6)


class StoreMachine(RuleBasedStateMachine):
    """A store against two dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "0.db"
        self.store = Store.open(self.path, TOPIC_ID)
        self.records: dict[bytes, bytes] = {}
        self.spilled: dict[bytes, bytes | None] = {}
        self.position = 0

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def write(self, items: Iterable[tuple[bytes, bytes | None]]) -> None:
        for key, value in items:
            self.records.pop(key, None)
            if value is not None:
                self.records[key] = value
        self.position += 1

    @rule(bodies=ITEMS)
    def apply(self, bodies: Items) -> None:
        self.write(whole(bodies))
        self.store.apply(whole(bodies), self.position)

    @rule(bodies=ITEMS)
    def spill(self, bodies: Items) -> None:
        self.spilled.update(whole(bodies))
        self.store.spill(whole(bodies))

    @rule(bodies=ITEMS)
    def barrier(self, bodies: Items) -> None:
        self.write([*self.spilled.items(), *whole(bodies)])
        self.spilled.clear()
        self.store.barrier(whole(bodies), self.position)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.spilled.clear()
        self.store = Store.open(self.path, TOPIC_ID)

    @rule(keys=st.lists(KEYS))
    def take(self, keys: list[bytes]) -> None:
        now = {**self.records, **self.spilled}
        expected = {k: v for k in keys if (v := now.get(k)) is not None}
        assert self.store.take(keys) == expected

    @rule(prefix=st.sampled_from([b"", b"c/", b"@", b"c/a"]), after=KEYS, limit=st.integers(0, 5))
    def scan(self, prefix: bytes, after: bytes, limit: int) -> None:
        found = sorted((k, v) for k, v in self.records.items() if k.startswith(prefix))
        assert self.store.count(prefix) == len(found)
        assert self.store.scan(prefix, after, limit) == [r for r in found if r[0] > after][:limit]

    @invariant()
    def the_rest_agrees(self) -> None:
        assert (self.store.position, self.store.healed) == (self.position, "")
        assert dict(self.store.spilled()) == self.spilled


Items = list[tuple[bytes, bytes | None]]


def whole(bodies: Items) -> Items:
    return [(key, None if body is None else sealed(key, body)) for key, body in bodies]


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
