"""What the live page shows, in bounded memory: sums over intervals of events, and totals.

Rule: a thread adds, other threads read; an interval's mean is of the losses counted in it. When
there are too many intervals, neighbours are merged in pairs, so old and new ones are as wide.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streammaml.backends.after_drift import MODELS, AfterDrift
from streammaml.events import Context, Decisions, DriftLevel, Floats, Result, Trigger

MAX_POINTS = 600
MAX_SWAPS = 50
RATE_S = 5.0
"""Events a second are counted over so long."""
FIRST_WIDTH = 10
SMOOTH_SHARE = 30
"""The curve's moving mean runs over 1/30 of the points."""

Sum = tuple[float, int]
"""The sum of some losses, and how many they are."""


@dataclass(slots=True)
class _Interval:
    """What happened between the previous interval's end and ``end``, counted in events."""

    end: int = 0
    losses: dict[str, Sum] = field(default_factory=dict)
    drifts: int = 0

    def add(self, losses: Mapping[str, Sum], drifts: int, end: int) -> None:
        for model, (total, count) in losses.items():
            mine, counted = self.losses.get(model, (0.0, 0))
            self.losses[model] = (mine + total, counted + count)
        self.drifts += drifts
        self.end = end


class Board:
    """Loss curves of the models, drift marks and totals, for any number of events.

    ``role`` is what the page calls the process, ``loss`` what the losses are.
    """

    def __init__(
        self,
        max_points: int = MAX_POINTS,
        width: int = FIRST_WIDTH,
        *,
        role: str = "worker",
        loss: str = "loss",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._known = {"role": role, "process": uuid.uuid4().hex[:12], "loss": loss}
        self._rate = Rate(clock)
        self._after_drift = AfterDrift()
        self._swaps: deque[dict[str, int]] = deque(maxlen=MAX_SWAPS)
        self._note = ""
        self._max_points = max_points
        self._width = width
        self._closed: list[_Interval] = []
        self._open = _Interval()
        self._total = _Interval()
        self._counts = {"adaptations": 0, "accepted": 0, "rejected": 0}
        self._state = "starting"
        self._gauges: dict[str, int | None] = {
            "lag": None,
            "contexts": None,
            "initialization": None,
        }
        self._lock = threading.Lock()

    def observe(self, contexts: Sequence[Context], decisions: Decisions, rejected: int = 0) -> None:
        """Add a batch as the core decided it; ``rejected`` records had no place in it."""
        with self._lock:
            self._after_drift.observe(contexts, decisions)
        losses = {
            "init": total(decisions.loss_init),
            "adapted": total(decisions.loss),
            "baseline": total(decisions.loss_baseline),
        }
        self.update(
            events=len(decisions.loss),
            losses={model: found for model, found in losses.items() if found[1]},
            drifts=int(np.count_nonzero(decisions.levels == DriftLevel.DRIFT)),
            adaptations=int(np.count_nonzero(decisions.triggers != Trigger.NONE)),
            accepted=int(np.count_nonzero(decisions.results == Result.ACCEPTED)),
            rejected=rejected,
        )

    def update(
        self,
        *,
        events: int = 0,
        losses: Mapping[str, Sum] | None = None,
        drifts: int = 0,
        adaptations: int = 0,
        accepted: int = 0,
        rejected: int = 0,
    ) -> None:
        """Add what happened since the last call; ``losses`` gives (sum, count) for each model."""
        with self._lock:
            end = self._total.end + events
            self._rate.add(end)
            for interval in (self._total, self._open):
                interval.add(losses or {}, drifts, end)
            self._counts["adaptations"] += adaptations
            self._counts["accepted"] += accepted
            self._counts["rejected"] += rejected
            begin = self._closed[-1].end if self._closed else 0
            if end - begin >= self._width:
                self._closed.append(self._open)
                self._open = _Interval(end=end)
                if len(self._closed) > self._max_points:
                    self._halve()

    def state(self, name: str) -> None:
        """Say which state holds now. Of a worker that starts (again) nothing is known."""
        with self._lock:
            self._state = name
            if name == "starting":
                self._gauges |= {"lag": None, "contexts": None}

    def note(self, text: str) -> None:
        """Set what the page says beside the state; empty for nothing."""
        with self._lock:
            self._note = text

    def initialization(self, version: int) -> None:
        """Set the version served; if another one was, the swap is marked."""
        with self._lock:
            before, self._gauges["initialization"] = self._gauges["initialization"], version
            if before not in (None, version):
                self._swaps.append({"events": self._total.end, "version": version})

    def lag(self, records: int | None) -> None:
        """Set how many records wait, over all assigned partitions; None: nobody knows."""
        with self._lock:
            self._gauges["lag"] = records

    def contexts(self, count: int) -> None:
        with self._lock:
            self._gauges["contexts"] = count

    def summary(self) -> dict[str, Any]:
        """Everything the page shows, as JSON can carry it; null where there is no number."""
        with self._lock:
            closed, losses = list(self._closed), dict(self._total.losses)
            recovery, swaps = self._after_drift.curves(), list(self._swaps)
            summary = {
                **self._known,
                "state": self._state,
                "note": self._note,
                "events_per_s": self._rate.now(),
                "events": self._total.end,
                "drifts": self._total.drifts,
                **self._counts,
                **self._gauges,
            }
        models = [*MODELS, *(m for m in losses if m not in MODELS)]
        window = max(1, len(closed) // SMOOTH_SHARE)
        curves = {m: _moving_mean(closed, m, window) for m in models if m in losses}
        return summary | {
            "models": {m: _row(losses[m], curve) for m, curve in curves.items()},
            "curve": {
                "events": [i.end for i in closed],
                "losses": curves,
                "drifts": [i.drifts for i in closed],
                "window": _span(closed, window),
            },
            "recovery": recovery,
            "swaps": swaps,
        }

    def _halve(self) -> None:
        """Merge neighbours in pairs; of an odd number the last one goes back to the open one."""
        if len(self._closed) % 2:
            self._open = _merged(self._closed.pop(), self._open)
        self._closed = [
            _merged(*pair) for pair in zip(self._closed[::2], self._closed[1::2], strict=True)
        ]
        self._width *= 2


class Rate:
    """Events a second, over the latest seconds; one thread at a time."""

    def __init__(self, clock: Callable[[], float], span_s: float = RATE_S) -> None:
        self._clock = clock
        self._span_s = span_s
        self._samples = deque([(clock(), 0)])
        self._latest = 0

    def add(self, total: int) -> None:
        """Say how many events there were by now."""
        self._latest = total
        self._sample()

    def now(self) -> float:
        now_s = self._sample()
        begin_s, before = self._samples[0]
        least_s = self._span_s / 20  # from sample to sample
        elapsed_s = min(max(now_s - begin_s, least_s), self._span_s + least_s)
        return round((self._latest - before) / elapsed_s, 1)

    def _sample(self) -> float:
        """Note the total at times; the time now."""
        now_s = self._clock()
        if now_s - self._samples[-1][0] >= self._span_s / 20:
            self._samples.append((now_s, self._latest))
            self._forget(now_s)
        return now_s

    def _forget(self, now_s: float) -> None:
        """Keep one sample that is as old as the span, to count from."""
        while len(self._samples) > 1 and self._samples[1][0] <= now_s - self._span_s:
            self._samples.popleft()


def total(losses: Floats) -> Sum:
    """The sum of the finite losses, and how many they are."""
    finite = losses[np.isfinite(losses)]
    return float(finite.sum()), len(finite)


def _merged(first: _Interval, second: _Interval) -> _Interval:
    """A new one: a reader may hold the old ones."""
    both = _Interval(first.end, dict(first.losses), first.drifts)
    both.add(second.losses, second.drifts, second.end)
    return both


def _row(losses: Sum, curve: Sequence[float | None]) -> dict[str, float | int | None]:
    return {
        "mean": _mean(*losses),
        "latest": next((value for value in reversed(curve) if value is not None), None),
        "losses": losses[1],
    }


def _mean(loss_sum: float, count: int) -> float | None:
    mean = loss_sum / count if count else math.nan
    return float(f"{mean:.5g}") if math.isfinite(mean) else None


def _moving_mean(intervals: Sequence[_Interval], model: str, window: int) -> list[float | None]:
    """Mean of each interval and those before it within the window, every loss counting alike."""
    if not intervals:
        return []
    found = np.array([interval.losses.get(model, (0.0, 0)) for interval in intervals])  # [n, 2]
    # Summed anew for each point: what one huge loss takes from a running sum never comes back.
    padded = np.concatenate([np.zeros((window - 1, 2)), found])
    with np.errstate(over="ignore"):  # a sum beyond all numbers has no mean
        windows = np.lib.stride_tricks.sliding_window_view(padded, window, axis=0).sum(-1)
    return [_mean(loss_sum, int(count)) for loss_sum, count in windows.tolist()]


def _span(intervals: Sequence[_Interval], window: int) -> int:
    """Events that the latest point of the curve stands for."""
    if not intervals:
        return 0
    begin = intervals[-window - 1].end if len(intervals) > window else 0
    return intervals[-1].end - begin
