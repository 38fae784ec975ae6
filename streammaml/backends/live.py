"""What is pushed to the pages: a summary about once a second, written once for all of them.

Rule: there is no thread here. Each client's own thread waits for the next frame, and the first one
to find it due makes it; while nobody looks, nothing is made.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

EVERY_S = 1.0
MOST_CLIENTS = 16
RECONNECT_MS = 1000


class Live:
    """Server-sent events of ``summary`` for a bounded number of clients, until closed."""

    def __init__(
        self,
        summary: Callable[[], dict[str, Any]],
        every_s: float = EVERY_S,
        most_clients: int = MOST_CLIENTS,
    ) -> None:
        self._summary = summary
        self._every_s = every_s
        self._places = threading.BoundedSemaphore(most_clients)
        self._closed = threading.Event()
        self._making = threading.Lock()
        self._number = 0
        self._made_at = -every_s
        self._frame = b""

    def enter(self) -> bool:
        """Take a place; False if there is none. Who took one must ``leave``."""
        return self._places.acquire(blocking=False)

    def leave(self) -> None:
        self._places.release()

    def close(self) -> None:
        """End every client's frames at once."""
        self._closed.set()

    def frames(self) -> Iterator[bytes]:
        """The bytes for one client: the present now, then each new frame."""
        yield b"retry: %d\n\n" % RECONNECT_MS
        seen = 0
        while not self._closed.is_set():
            with self._making:
                wait_s = self._made_at + self._every_s - time.monotonic()
                if wait_s <= 0:
                    self._make()
                number, frame = self._number, self._frame
            if number != seen:
                seen = number
                yield frame
            else:
                self._closed.wait(wait_s)

    def _make(self) -> None:
        text = json.dumps(self._summary(), allow_nan=False, separators=(",", ":"))
        self._frame = b"data: %b\n\n" % text.encode()
        self._made_at = time.monotonic()
        self._number += 1
