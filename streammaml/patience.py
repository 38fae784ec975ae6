"""When to try again after a failure, and when to give up."""

from __future__ import annotations

FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 10.0


class Patience:
    """Waits that grow, up to a limit since the broker last carried something out."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._failing_since: float | None = None
        self._backoff_s = FIRST_BACKOFF_S

    def heard(self) -> None:
        """The broker has carried something out."""
        self._failing_since, self._backoff_s = None, FIRST_BACKOFF_S

    def failed(self, now: float) -> float | None:
        """Seconds until the next try, the last of which is made at the limit; None: give up."""
        if self._failing_since is None:
            self._failing_since = now
        left_s = self._failing_since + self._limit_s - now
        if left_s <= 0:
            return None
        wait_s = min(self._backoff_s, left_s)
        self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)
        return wait_s
