"""Random damage to the files of a store: right values or DamagedError, nothing else, ever."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from streammaml.backends.state import Store
from streammaml.backends.state import store as state
from streammaml.backends.state.sqlite_file import PAGE_BYTES
from streammaml.errors import DamagedError
from streammaml.sealed import seal

TRIALS = 500
CONTEXTS = 400
TOPIC_ID = "mBg3kZ"
OWNER = b"model-01"
UNKNOWN = [b"c/unknown-%d" % i for i in range(20)]

Contents = dict[bytes, bytes]
History = dict[int, Contents]
"""What the store holds, by its position."""


def sealed(key: bytes, turn: int, size: int) -> bytes:
    return seal(key, OWNER, random.Random(turn).randbytes(size))


def change(store: Store, history: History, turn: int, share: float) -> None:
    """Put, change and delete some contexts, as a barrier does."""
    chosen = random.Random(turn)
    contents = dict(history[store.position])
    records: list[tuple[bytes, bytes | None]] = []
    for index in range(CONTEXTS):
        key = b"c/%d" % index
        if chosen.random() < share:
            gone = turn > 0 and chosen.random() < 0.1
            # Some fill a page, some more than one.
            size = chosen.choice((20, 200, 900, 3_000, 12_000 if index % 10 == 0 else 50))
            records.append((key, None if gone else sealed(key, turn, size)))
    records.append((b"@partition", sealed(b"@partition", turn, 30)))
    for key, value in records:
        contents.pop(key, None)
        if value is not None:
            contents[key] = value
    position = store.position + len(records)
    store.barrier(records, position)
    history[position] = contents


def copy(source: Path, target: Path) -> Path:
    """The files of a store as kill -9 would leave them now."""
    target.mkdir(parents=True)
    for file in source.parent.glob(f"{source.name}*"):
        shutil.copy(file, target / file.name)
    return target / source.name


@pytest.fixture(scope="module")
def history() -> History:
    return {0: {}}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory, history: History) -> dict[str, Path]:
    """Files of a store as they are at some moments of its life."""
    folder = tmp_path_factory.mktemp("stores")
    path = folder / "living" / "0.db"
    found = {}
    limit, state.CHECKPOINT_BYTES = state.CHECKPOINT_BYTES, 1 << 40
    try:
        store = Store.open(path, TOPIC_ID)
        change(store, history, 0, 1.0)
        change(store, history, 1, 0.3)
        store.close()
        found["closed"] = copy(path, folder / "closed")
        store = Store.open(path, TOPIC_ID)
        store.take(UNKNOWN)  # from here on no other reader holds a checkpoint up
        change(store, history, 2, 0.1)
        change(store, history, 3, 0.1)
        found["killed before a checkpoint"] = copy(path, folder / "before")
        state.CHECKPOINT_BYTES = 0
        change(store, history, 4, 0.1)
        found["killed after a checkpoint"] = after = copy(path, folder / "after")
        found["killed within a checkpoint"] = within = copy(path, folder / "within")
        old, new = found["killed before a checkpoint"].read_bytes(), after.read_bytes()
        half = len(new) // PAGE_BYTES // 2 * PAGE_BYTES
        within.write_bytes(new[:half] + old[half:])
        within.with_name("0.db-checkpoint").write_text("5")
        state.CHECKPOINT_BYTES = 1 << 40
        change(store, history, 5, 0.05)
        found["killed with a log begun anew"] = copy(path, folder / "anew")
        store.close()
    finally:
        state.CHECKPOINT_BYTES = limit
    return found


def flip(data: bytearray, chosen: random.Random) -> None:
    for _ in range(chosen.choice((1, 1, 1, 4))):
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)


def truncate(data: bytearray, chosen: random.Random) -> None:
    del data[chosen.randrange(len(data)) :]


def lose_pages(data: bytearray, chosen: random.Random) -> None:
    del data[chosen.randrange(len(data) // PAGE_BYTES + 1) * PAGE_BYTES :]


def zero(data: bytearray, chosen: random.Random) -> None:
    start = chosen.randrange(len(data) // PAGE_BYTES + 1) * PAGE_BYTES
    data[start : start + PAGE_BYTES] = bytes(len(data[start : start + PAGE_BYTES]))


def scramble(data: bytearray, chosen: random.Random) -> None:
    start = chosen.randrange(len(data))
    end = min(len(data), start + chosen.choice((4, 16, 512)))
    data[start:end] = chosen.randbytes(end - start)


def flip_within_a_page_head(data: bytearray, chosen: random.Random) -> None:
    """Where a page says how many cells it has and where: the worst place."""
    page = chosen.randrange(max(1, len(data) // PAGE_BYTES))
    at = min(len(data) - 1, page * PAGE_BYTES + chosen.randrange(40))
    data[at] ^= 1 << chosen.randrange(8)


def flip_within_a_key(data: bytearray, chosen: random.Random) -> None:
    """In the index, it hides a context."""
    places = [found.start() for found in re.finditer(rb"c/\d", data)] or [0]
    data[min(len(data) - 1, chosen.choice(places) + 2)] ^= 1 << chosen.randrange(8)


DAMAGES: list[Callable[[bytearray, random.Random], None]] = [
    *(flip, flip, flip_within_a_page_head, flip_within_a_key),
    *(truncate, lose_pages, zero, scramble),
]


def damage(path: Path, chosen: random.Random) -> str:
    log = path.with_name(path.name + "-wal")
    file = log if log.exists() and log.stat().st_size and chosen.random() < 0.5 else path
    kind = chosen.choice(DAMAGES)
    data = bytearray(file.read_bytes())
    kind(data, chosen)
    file.write_bytes(data)
    return f"{kind.__name__} in {file.name}"


def check(store: Store, history: History, keys: list[bytes], size: int) -> None:
    """Every lookup gives what was there at the store's position. DamagedError if it says so."""
    expected = history[store.position]
    for start in range(0, len(keys), size):
        asked = keys[start : start + size]
        assert store.take(asked) == {k: expected[k] for k in asked if k in expected}


def play(template: Path, folder: Path, seed: int, history: History) -> str:
    """One trial; returns when the damage was found. What is served is asserted to be right."""
    chosen = random.Random(seed)
    path = copy(template, folder)
    damage(path, chosen)
    latest = max(history)
    keys = [b"c/%d" % i for i in range(CONTEXTS)] + [b"@partition", b"@none"] + UNKNOWN
    chosen.shuffle(keys)
    store = Store.open(path, TOPIC_ID)
    found = "at read"
    try:
        if store.healed:
            assert store.position == 0
            return "at open"
        # The verifying thread may already be done, and what a lookup says then is its finding.
        check(store, history, keys, chosen.choice((1, 7, 300)))
        found = "by verification"
        assert store.scan(b"c/", b"", 2 * CONTEXTS) == sorted(
            (k, v) for k, v in history[store.position].items() if k.startswith(b"c/")
        )
        # What looks harmless must stay so when it is written to.
        store.barrier([*((k, None) for k in keys), *history[latest].items()], latest)
        check(store, history, keys, 300)
        store.close()
        store = Store.open(path, TOPIC_ID)
        assert store.healed == ""
        check(store, history, keys, 300)
        return "harmless"
    except DamagedError as error:
        reason = str(error)
        store.close()
        store = Store.open(path, TOPIC_ID)
    finally:
        store.close()
    assert str(path) in reason
    assert (store.healed, store.position) == (reason, 0)
    return found


def test_random_damage_is_found_or_harmless(
    templates: dict[str, Path],
    history: History,
    tmp_path: Path,
) -> None:
    counts: Counter[str] = Counter()
    for seed in range(TRIALS):
        name = sorted(templates)[seed % len(templates)]
        folder = tmp_path / str(seed)
        counts[play(templates[name], folder, seed, history)] += 1
        shutil.rmtree(folder)

    assert counts["at open"] > 0
    assert counts["at read"] + counts["by verification"] > 0
    assert counts["harmless"] > 0  # the log's latest transactions, or free pages


@pytest.mark.parametrize("moment", range(5))
def test_what_is_not_damaged_is_whole(
    templates: dict[str, Path], history: History, tmp_path: Path, moment: int
) -> None:
    path = copy(templates[sorted(templates)[moment]], tmp_path / "store")

    store = Store.open(path, TOPIC_ID)

    assert store.healed == ""
    check(store, history, [b"c/%d" % i for i in range(CONTEXTS)] + UNKNOWN, 300)
    store.close()


@pytest.mark.parametrize("lost", ["nothing", "all", "contents", "head", "tail"])
def test_a_broken_off_checkpoint_needs_all_of_its_log(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "living" / "0.db"
    keys = [b"c/%d" % i for i in range(300)]
    store = Store.open(path, TOPIC_ID)
    store.apply([(key, sealed(key, 1, 500)) for key in keys], 1)
    store.close()
    store = Store.open(path, TOPIC_ID)
    store.take(UNKNOWN)
    later = {key: sealed(key, 2, 500) for key in keys}
    store.apply(later.items(), 2)
    killed = copy(path, tmp_path / "killed")
    store.close()
    # The pages are written in their order, and both files have as many.
    new, old = path.read_bytes(), killed.read_bytes()
    half = len(new) // PAGE_BYTES // 2 * PAGE_BYTES
    with killed.open("r+b") as file:
        file.write(new[:half] + old[half:])
    killed.with_name("0.db-checkpoint").write_text("2")
    log = killed.with_name("0.db-wal")
    data = log.read_bytes()
    harm = {"nothing": data, "head": b"?" + data[1:], "tail": data[:-1]}
    log.write_bytes(harm.get(lost, b""))
    if lost == "all":
        log.unlink()

    store = Store.open(killed, TOPIC_ID)

    if lost == "nothing":
        assert (store.healed, store.position, store.take(keys)) == ("", 2, later)
    else:
        assert (store.healed, store.position) == (f"{killed}: a part of its log is lost", 0)
    store.close()


@pytest.mark.parametrize("key", [b"c/123", b"@partition"])
def test_a_key_that_damage_hides_is_not_taken_for_a_new_one(
    templates: dict[str, Path], tmp_path: Path, key: bytes
) -> None:
    path = copy(templates["closed"], tmp_path / "store")
    # In the table and in the index, not where the store lists its own keys.
    places = [found.start() for found in re.finditer(b'(?<!")' + key, path.read_bytes())]
    for place in places:
        with path.open("r+b") as file:
            file.seek(place + len(key) - 1)
            file.write(b"~")

    store = Store.open(path, TOPIC_ID)

    assert places
    with pytest.raises(DamagedError, match=re.escape(str(path))):
        store.take([key])
    store.close()
