"""Ends a process whose loop no longer turns, with the stacks of all its threads."""

from __future__ import annotations

import faulthandler
import time

BEAT_EVERY_S = 1.0
STDERR = 2


class Watchdog:
    """Waits for :meth:`beat`; ``limit_s`` without one and the process exits with status 1.

    The wait is C code that needs no interpreter lock, so that a loop stuck inside a library is
    found, too. ``limit_s`` 0 turns it off.
    """

    def __init__(self, limit_s: float, file: int = STDERR) -> None:
        self._limit_s = limit_s
        self._file = file
        self._beaten = 0.0

    def __enter__(self) -> Watchdog:
        self.beat()
        return self

    def __exit__(self, *_: object) -> None:
        if self._limit_s > 0:
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """The loop turns. Arming the wait costs a thread: once a second is enough."""
        now = time.monotonic()
        if self._limit_s > 0 and now - self._beaten >= min(BEAT_EVERY_S, self._limit_s / 4):
            self._beaten = now
            faulthandler.dump_traceback_later(self._limit_s, exit=True, file=self._file)
