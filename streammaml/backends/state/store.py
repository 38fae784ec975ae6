"""The local store of one partition of ``state``: what the topic holds, in a SQLite file.

It can always be deleted, or made anew from the topic, so a doubtful file is replaced by an empty
one. What must not happen is that a damaged one is believed: each value has a checksum, and a key
that is not found counts as absent only once the whole file has been verified, which a thread does
from the opening on. A restart therefore need not wait for it.

``records`` has the keys and sealed values of the topic. ``meta`` is one sealed value: the topic,
the position in it, how many records there are and the sum of their checksums. Each transaction
counts up ``user_version``, which lies in page 1, the first that a checkpoint writes: a file that
is ahead of its own log has lost a part of the log, and mixes old and new pages.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import NoReturn, Self, TypeVar

from streammaml.backends.state.scratch import Scratch
from streammaml.backends.state.sqlite_file import (
    OWN,
    SQLITE_ERRORS,
    Meta,
    OtherTopicError,
    check_header,
    check_schema,
    checksum_of,
    connect,
    create,
    explained,
    free_bytes,
    is_sound,
    kind_of,
    remove,
    set_aside,
    sibling,
    sizes,
)
from streammaml.backends.state.verification import Verification
from streammaml.errors import BackendError, DamagedError, StoreError
from streammaml.sealed import is_whole

CHECKPOINT_BYTES = 32 << 20
"""A log of this size is written to the file after the transaction that reached it."""
_CHUNK = 256
_T = TypeVar("_T")
_TRANSACTIONS = 0x7FFF_FFFF  # what user_version can hold
_UPSERT = "INSERT INTO records VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


def store_path(directory: Path, group: str, instance: str, topic: str, index: int) -> Path:
    """Where the store of one partition lies: a readable folder that no name can lead out of."""
    names = (group, instance, topic)
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", "-".join(names))[:80]
    digest = sha256(repr(names).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return directory / f"{readable}-{digest}" / f"{index:d}.db"


class Store:
    """The records of one partition as of ``position``, and what was spilled since.

    For one thread at a time, not always the same one. Every method raises DamagedError once
    damage is found anywhere in the file: close the store, and ``open`` moves the file aside.
    StoreError means that the disk refused, and that a transaction was done whole or not at all.
    """

    healed: str
    """Why the file that was there was not used; empty if it was, or if there was none."""

    @classmethod
    def open(cls, path: Path, topic_id: str) -> Self:
        """Open the store, or make one; ``position`` 0 says that it is empty.

        A file that is damaged, of another format, or already condemned goes to ``damaged/``
        beside it; one that mirrors another topic than ``topic_id`` is deleted.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            condemned = sibling(path, "-condemned")
            healed = ""
            try:
                if condemned.exists():
                    raise DamagedError(condemned.read_text("utf-8", "replace"))
                return cls(path, topic_id)
            except OtherTopicError as error:
                healed = str(error)
                remove(path)
            except DamagedError as error:
                healed = str(error)
                set_aside(path)
            store = cls(path, topic_id)
            store.healed = healed
            return store
        except OSError as error:
            raise explained(path, error) from error

    def __init__(self, path: Path, topic_id: str) -> None:
        """Use ``open``: this raises for a file that cannot be used, and leaves it there."""
        self.healed = ""
        self._path = path
        self._mark = sibling(path, "-checkpoint")
        self._problem: BackendError | None = None
        self._judging = threading.Lock()
        self._verification: Verification | None = None
        found = path.exists()
        written = check_header(path) if found else 0
        try:
            self._connection = connect(path)
        except SQLITE_ERRORS as error:
            raise explained(path, error) from error
        try:
            if not found:
                create(self._connection, Meta(topic_id))
            self._meta = self._checked_meta(topic_id, written)
            self._scratch = Scratch(sibling(path, "-scratch"))
        except SQLITE_ERRORS as error:
            self._connection.close()
            raise explained(path, error) from error
        except BaseException:
            self._connection.close()
            raise
        if self._meta.counts:
            self._verification = Verification(path, self._report)

    @property
    def position(self) -> int:
        """Next offset of the partition to be read."""
        return self._meta.position

    @property
    def spilled_bytes(self) -> int:
        """What ``spill`` has written since the last barrier, superseded values included."""
        return self._scratch.size_bytes

    @property
    def size_bytes(self) -> int:
        """What the store takes on the disk."""
        return sizes(self._path) + self._scratch.size_bytes

    def wait_verified(self, timeout_s: float) -> bool:
        """Whether the file is verified, after at most ``timeout_s``."""
        return self._verification is None or self._verification.wait(timeout_s)

    @property
    def is_verified(self) -> bool:
        """Whether to look for a key that is not there takes no time."""
        return self._verification is None or self._verification.is_done

    def free_bytes(self) -> int:
        """What is free on the disk, for this user."""
        with self._guarded():
            return free_bytes(self._path)

    def get(self, key: bytes) -> bytes | None:
        """The value of one key; see ``take``."""
        return self.take((key,)).get(key)

    def take(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The sealed values of those keys that are there: spilled ones, else the barrier's.

        Waits for the verification if a key is not found, unless it is one of the worker's own.
        """
        found: dict[bytes, bytes] = {}
        with self._guarded():
            stored = []
            for key in keys:
                if key not in self._scratch:
                    stored.append(key)
                elif (value := self._scratch.get(key)) is not None:
                    found[key] = value
            for chunk in _chunks(stored):
                rows = self._select("key, value", chunk)
                for key, value in rows:
                    self._check_value(key, value)
                    found[key] = value
                if len(rows) < len(chunk):
                    self._check_absent(key for key in chunk if key not in found)
        return found

    def own(self) -> dict[bytes, bytes]:
        """The worker's own records, those with keys that begin with ``@``; at once."""
        return self.take([key.encode("latin-1") for key in self._meta.own])

    def scan(self, prefix: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """At most ``limit`` records as of the barrier with keys beyond ``after``, in their order.

        Waits for the verification, as does ``count`` with a prefix that is no kind of key.
        """
        with self._guarded():
            self._wait()
            where, bounds = _between(prefix)
            rows = self._connection.execute(
                f"SELECT key, value FROM records WHERE {where} AND key > ? ORDER BY key LIMIT ?",
                (*bounds, after, limit),
            ).fetchall()
            for key, value in rows:
                self._check_value(key, value)
            return rows

    def count(self, prefix: bytes) -> int:
        """How many keys as of the barrier begin so; at once for ``c/`` and its like, or ``@``."""
        with self._guarded():
            if prefix == kind_of(prefix).encode("latin-1") and prefix[-1:] in (b"/", OWN):
                return self._meta.counts.get(kind_of(prefix), 0)
            self._wait()
            where, bounds = _between(prefix)
            (count,) = self._connection.execute(
                f"SELECT count(*) FROM records WHERE {where}", bounds
            ).fetchone()
            return int(count)

    def spill(self, items: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Keep what must leave memory between two barriers (None: deleted since).

        The next barrier takes it over; a restart forgets it.
        """
        with self._guarded():
            self._scratch.put(items)

    def spilled(self) -> Iterator[tuple[bytes, bytes | None]]:
        """What was spilled since the last barrier, the latest of each key."""
        with self._guarded():
            yield from self._scratch.items()

    def apply(self, records: Iterable[tuple[bytes, bytes | None]], position: int) -> None:
        """Bring up to date with records of the topic (None deletes), the later one winning.

        All of it happens, or nothing. DamagedError, without blame for the file, if the value of
        a record is not whole.
        """
        with self._guarded():
            self._write(records, position)

    def barrier(self, records: Iterable[tuple[bytes, bytes | None]], position: int) -> None:
        """As ``apply``, for what was spilled and then for ``records``; nothing is spilled then."""
        with self._guarded():
            self._write(chain(self._scratch.items(), records), position)
            self._scratch.clear()

    def condemn(self, reason: str) -> None:
        """Let this and each later call raise DamagedError, and the next ``open`` start anew."""
        with self._judging:
            if isinstance(self._problem, DamagedError):
                return
            self._problem = DamagedError(reason)
            with suppress(OSError):  # on such a disk the next open fails anyway
                sibling(self._path, "-condemned").write_text(reason, "utf-8")

    def close(self) -> None:
        """Stop the verification and let go of the file. Not an error where the disk refuses."""
        if self._verification is not None:
            self._verification.stop()
        with suppress(OSError):
            self._scratch.close()
        with suppress(*SQLITE_ERRORS, OSError):
            if self._problem is None:
                self._checkpoint()
        with suppress(sqlite3.Error):
            self._connection.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Raise the problem there is, and turn what comes from below into one."""
        self._raise_problem()
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except (*SQLITE_ERRORS, OSError) as error:
            problem = explained(self._path, error)
            if isinstance(problem, DamagedError):
                self._damaged(str(problem))
            raise problem from error

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise type(self._problem)(str(self._problem))

    def _wait(self) -> None:
        if self._verification is not None:
            self._verification.wait()
        self._raise_problem()

    def _check_value(self, key: object, value: object) -> None:
        if not is_sound(key, value):
            self._damaged(f"{self._path}: the value of {key!r:.80} is damaged")

    def _report(self, problem: BackendError) -> None:
        if isinstance(problem, DamagedError):
            self.condemn(str(problem))
        else:
            self._problem = problem

    def _damaged(self, reason: str) -> NoReturn:
        self.condemn(reason)
        raise DamagedError(str(self._problem))

    def _check_absent(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            if not key.startswith(OWN):
                self._wait()
            elif key.decode("latin-1") in self._meta.own:
                self._damaged(f"{self._path}: the record {key!r:.80} cannot be found")

    def _select(self, columns: str, keys: list[bytes]) -> list[tuple[bytes, bytes]]:
        """Rows of records by key; few different statements, so that SQLite knows them."""
        room = 1 << (len(keys) - 1).bit_length()
        marks = ",".join("?" * room)
        return self._connection.execute(
            f"SELECT {columns} FROM records WHERE key IN ({marks})",
            keys + keys[-1:] * (room - len(keys)),
        ).fetchall()

    def _write(self, records: Iterable[tuple[bytes, bytes | None]], position: int) -> None:
        meta = deepcopy(self._meta)
        meta.position = position
        meta.transaction = (meta.transaction + 1) & _TRANSACTIONS
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            (before,) = self._connection.execute("PRAGMA user_version").fetchone()
            if before != self._meta.transaction:
                raise StoreError(
                    f"{self._path}: another process writes to it: give each its own --instance"
                )
            for chunk in _chunks(records):
                self._write_chunk(dict(chunk), meta)
            self._connection.execute("UPDATE meta SET sealed = ?", (meta.sealed(),))
            self._connection.execute(f"PRAGMA user_version = {meta.transaction}")
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._meta = meta
        if sibling(self._path, "-wal").stat().st_size >= CHECKPOINT_BYTES:
            self._checkpoint()

    def _write_chunk(self, latest: dict[bytes, bytes | None], meta: Meta) -> None:
        for key, value in latest.items():
            if value is not None and not is_whole(key, value):
                raise DamagedError(f"the value of {key!r:.80} that came is damaged")
        old = dict(self._select("key, substr(value, -4)", list(latest)))
        own = set(meta.own)
        for key, value in latest.items():
            kind = kind_of(key)
            if key in old:
                if not isinstance(old[key], bytes):
                    self._damaged(f"{self._path}: the value of {key!r:.80} is damaged")
                meta.digest -= checksum_of(old[key])
                meta.counts[kind] = meta.counts.get(kind, 0) - 1
                own.discard(key.decode("latin-1"))
            if value is not None:
                meta.digest += checksum_of(value)
                meta.counts[kind] = meta.counts.get(kind, 0) + 1
                if kind == "@":
                    own.add(key.decode("latin-1"))
        meta.own = sorted(own)
        self._connection.executemany(
            "DELETE FROM records WHERE key = ?", ((k,) for k, v in latest.items() if v is None)
        )
        self._connection.executemany(_UPSERT, ((k, v) for k, v in latest.items() if v is not None))

    def _checked_meta(self, topic_id: str, written: int) -> Meta:
        """What the file says of itself. DamagedError if it contradicts itself."""
        check_schema(self._path, self._connection)
        meta = Meta.read(self._path, self._connection)
        (transaction,) = self._connection.execute("PRAGMA user_version").fetchone()
        if transaction != meta.transaction or written > transaction:
            raise DamagedError(f"{self._path}: a part of its log is lost")
        # A checkpoint was broken off: only with all of its log is the file worth anything.
        if self._mark.exists():
            needed = self._mark.read_bytes() or b"0"
            if not needed.isdigit() or transaction < int(needed) or not self._run_checkpoint():
                raise DamagedError(f"{self._path}: a part of its log is lost")
        if meta.topic_id != topic_id:
            raise OtherTopicError(f"{self._path}: it mirrors the topic {meta.topic_id!r:.80}")
        return meta

    def _checkpoint(self) -> None:
        """Write the log to the file, as far as the verification lets it."""
        self._mark.write_text(str(self._meta.transaction))
        self._run_checkpoint()

    def _run_checkpoint(self) -> int:
        """The mark of it stays until all is written; returns how long the log was."""
        row = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        _, frames, written = row
        if frames == written:
            self._mark.unlink()
        return int(frames)


def _chunks(items: Iterable[_T]) -> Iterator[list[_T]]:
    items = iter(items)
    while chunk := list(islice(items, _CHUNK)):
        yield chunk


def _between(prefix: bytes) -> tuple[str, tuple[bytes, ...]]:
    """The condition that a key begins with ``prefix``."""
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return "key >= ?", (prefix,)
    return "key >= ? AND key < ?", (prefix, stem[:-1] + bytes([stem[-1] + 1]))
