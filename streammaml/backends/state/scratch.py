"""What must leave memory between two barriers: a file that lives as long as the process.

Values are appended to the file, and where the latest of each key lies is held in memory (some
250 bytes a key), so no damage on the disk can make a key look as if it were not there. The next
barrier takes everything over and empties it; what a dead process left is deleted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from streammaml.errors import DamagedError
from streammaml.sealed import is_whole

_CHUNK = 256


class Scratch:
    """Sealed values by key; None: deleted since the barrier. OSError where the disk fails."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._places: dict[bytes, tuple[int, int] | None] = {}
        self.size_bytes = 0
        """Of the file: with the values that a later one of the same key superseded."""

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def put(self, items: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Keep the items, or, where the disk fails, the first ones of them."""
        items = iter(items)
        while chunk := list(islice(items, _CHUNK)):
            places: dict[bytes, tuple[int, int] | None] = {}
            end = self.size_bytes
            for key, value in chunk:
                places[key] = None if value is None else (end, len(value))
                end += len(value or b"")
            self._write(b"".join(value for _, value in chunk if value))
            self._places.update(places)
            self.size_bytes = end

    def get(self, key: bytes) -> bytes | None:
        """The latest value, None where the key was deleted; KeyError if it is not here.

        DamagedError if the value is not what was put.
        """
        place = self._places[key]
        if place is None:
            return None
        offset, length = place
        value = os.pread(self._file, length, offset)
        if not is_whole(key, value):
            raise DamagedError(f"{self._path}: the spilled value of {key!r:.80} is damaged")
        return value

    def items(self) -> Iterator[tuple[bytes, bytes | None]]:
        """The latest value of each key, in the order in which the keys came."""
        for key in list(self._places):
            yield key, self.get(key)

    def clear(self) -> None:
        self._places.clear()
        self.size_bytes = 0
        os.ftruncate(self._file, 0)

    def close(self) -> None:
        os.close(self._file)
        self._path.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        offset, left = self.size_bytes, memoryview(data)
        while left:
            written = os.pwrite(self._file, left, offset)
            offset, left = offset + written, left[written:]
