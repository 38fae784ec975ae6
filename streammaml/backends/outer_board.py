"""What the outer loop's page shows, in bounded memory: the latest runs, and what they published.

Rule: the loop's thread tells, other threads read; a run is a mapping of JSON values.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Mapping
from typing import Any

MAX_RUNS = 300
MAX_PUBLISHED = 20
RESULTS = ("published", "rejected", "skipped", "failed")


class OuterBoard:
    """Runs by result, their meta-losses, the reservoir, and the versions with their reports."""

    def __init__(
        self,
        capacity: int,
        period_s: float,
        *,
        max_runs: int = MAX_RUNS,
        max_published: int = MAX_PUBLISHED,
    ) -> None:
        self._known = {"role": "outer loop", "process": uuid.uuid4().hex[:12], "period_s": period_s}
        self._capacity = capacity
        self._runs: deque[Mapping[str, Any]] = deque(maxlen=max_runs)
        self._published: deque[Mapping[str, Any]] = deque(maxlen=max_published)
        self._results = dict.fromkeys(RESULTS, 0)
        self._kept = {"episodes": 0, "contexts": 0}
        self._read = {"accepted": 0, "rejected": 0, "duplicate": 0}
        self._version: int | None = None
        self._training: dict[str, int] | None = None
        self._lock = threading.Lock()

    def episodes(self, accepted: int, rejected: int, duplicate: int) -> None:
        """Count what was read."""
        with self._lock:
            self._read["accepted"] += accepted
            self._read["rejected"] += rejected
            self._read["duplicate"] += duplicate

    def reservoir(self, episodes: int, contexts: int) -> None:
        with self._lock:
            self._kept = {"episodes": episodes, "contexts": contexts}

    def serving(self, version: int) -> None:
        with self._lock:
            self._version = version

    def training(self, step: int, steps: int) -> None:
        """Say how far the run is that goes on now."""
        with self._lock:
            self._training = {"step": step, "steps": steps}

    def ran(self, run: Mapping[str, Any]) -> None:
        """Add a run; of its gate's report only what was published is kept."""
        with self._lock:
            self._training = None
            self._results[run["result"]] += 1
            line = {name: value for name, value in run.items() if name != "report"}
            self._runs.append(line | {"number": sum(self._results.values())})
            if run["result"] == "published":
                self._published.append(run)

    def summary(self) -> dict[str, Any]:
        """Everything the page shows, as JSON can carry it."""
        with self._lock:
            training, version = self._training, self._version
            state = "starting" if version is None else "waiting" if training is None else "training"
            return {
                **self._known,
                "state": state,
                "training": training,
                "initialization": version,
                "results": dict(self._results),
                "reservoir": {**self._kept, "capacity": self._capacity},
                "episodes": dict(self._read),
                "runs": list(self._runs),
                "published": list(self._published),
            }
