"""A thread that reads a whole store once, so that a key that is not found may be believed."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from streammaml.backends.state.sqlite_file import (
    SQLITE_ERRORS,
    Meta,
    checksum_of,
    connect,
    explained,
    is_sound,
)
from streammaml.errors import BackendError, DamagedError

_CHUNK = 256
_TURN_S = 0.05
_RUNNING = threading.Lock()  # one file at a time, or many would keep the worker from its work


class Verification:
    """Begins at once, in its own thread and connection; ``report`` gets what it finds wrong."""

    def __init__(self, path: Path, report: Callable[[BackendError], None]) -> None:
        self._path = path
        self._report = report
        self._stopped = threading.Event()
        self._done = threading.Event()
        self._connection: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._run, name=f"verify {path}", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether all was read, or ``report`` was told why not, in that time."""
        return self._done.wait(timeout_s)

    def stop(self) -> None:
        """Break off, and let go of the file."""
        self._stopped.set()
        while self._thread.is_alive():  # an interruption between two statements is lost
            with suppress(sqlite3.Error):  # it may just be closed
                if self._connection is not None:
                    self._connection.interrupt()
            self._thread.join(_TURN_S)

    def _run(self) -> None:
        try:
            while not _RUNNING.acquire(timeout=_TURN_S):
                if self._stopped.is_set():
                    return
            try:
                with closing(connect(self._path)) as self._connection:
                    self._verify(self._connection)
            finally:
                _RUNNING.release()
        except (*SQLITE_ERRORS, OSError, BackendError) as error:
            problem = error if isinstance(error, BackendError) else explained(self._path, error)
            if isinstance(problem, DamagedError) or not self._stopped.is_set():
                self._report(problem)
        finally:
            self._done.set()

    def _verify(self, connection: sqlite3.Connection) -> None:
        """DamagedError unless every lookup in the file must give what was written."""
        connection.execute("BEGIN")
        meta = Meta.read(self._path, connection)
        # Structure, free pages, and that the index has each row; SQLite works without the GIL.
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != b"ok":
            raise DamagedError(f"{self._path}: {verdict.decode(errors='replace')}")
        count = digest = 0
        cursor = connection.execute("SELECT key, value FROM records")
        while rows := cursor.fetchmany(_CHUNK):
            for key, value in rows:
                if not is_sound(key, value):
                    raise DamagedError(f"{self._path}: the value of {key!r:.80} is damaged")
                digest += checksum_of(value)
            count += len(rows)
            if self._stopped.is_set():
                return
        if (count, digest) != (sum(meta.counts.values()), meta.digest):
            raise DamagedError(f"{self._path}: it does not hold the records written last")
