"""A Prometheus histogram that takes arrays, since observing one by one costs 1.6 us an event.

Rule: what is not finite is no observation; an infinite one would spoil the sum for good. An
exemplar's text stays below the 128 characters beyond which readers refuse the whole page.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from prometheus_client.core import Exemplar, HistogramMetricFamily
from prometheus_client.registry import Collector

from streammaml.events import Floats

EXEMPLAR_LABEL = "context"
EXEMPLAR_CHARACTERS = 100
"""Of a context's name: with the label's own name it stays below 128."""
FEW = 8
"""Up to so many values a Python loop is cheaper than numpy's fixed cost."""


class BatchHistogram(Collector):
    """Counts in buckets for each value of at most one label, all of them present from the start."""

    def __init__(
        self,
        name: str,
        documentation: str,
        bounds: Sequence[float],
        label: str = "",
        values: Sequence[str] = ("",),
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = [float(b) for b in bounds]
        self._edges = np.array(bounds, np.float64)
        self._label = label
        self._rows = {value: row for row, value in enumerate(values)}
        self._counts = np.zeros((len(values), len(bounds) + 1), np.int64)
        self._sums = [0.0] * len(values)
        self._exemplars: dict[tuple[int, int], tuple[str, float, float]] = {}
        self._lock = threading.Lock()

    def observe_many(
        self,
        values: Floats,
        of: str = "",
        contexts: Sequence[str] = (),
        now_s: float = 0.0,
    ) -> None:
        """Count ``values`` [B] under label value ``of``; those not finite are ignored.

        Where ``contexts`` [B] are given, that of the largest value becomes its bucket's exemplar.
        """
        row = self._rows[of]
        with self._lock:
            if len(values) <= FEW:
                self._add_few(row, values.tolist(), contexts, now_s)
            else:
                self._add_many(row, values, contexts, now_s)

    def _add_few(
        self, row: int, values: list[float], contexts: Sequence[str], now_s: float
    ) -> None:
        largest, place = -math.inf, -1
        for i, value in enumerate(values):
            if math.isfinite(value):
                self._counts[row, bisect_left(self._bounds, value)] += 1
                self._sums[row] += value
                if value > largest:
                    largest, place = value, i
        if contexts and place >= 0:
            self._point(row, largest, contexts[place], now_s)

    def _add_many(self, row: int, values: Floats, contexts: Sequence[str], now_s: float) -> None:
        finite = np.isfinite(values)
        seen = values if finite.all() else values[finite]
        if not len(seen):
            return
        buckets = self._edges.searchsorted(seen)  # the first bound that is not below the value
        self._counts[row] += np.bincount(buckets, minlength=self._counts.shape[1])
        self._sums[row] += float(seen.sum())
        if contexts:
            place = int(np.where(finite, values, -math.inf).argmax())
            self._point(row, float(values[place]), contexts[place], now_s)

    def _point(self, row: int, value: float, context: str, now_s: float) -> None:
        self._exemplars[row, bisect_left(self._bounds, value)] = (context, value, now_s)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(
            self._name, self._documentation, labels=[self._label] if self._label else []
        )
        with self._lock:
            counts = self._counts.cumsum(1).tolist()
            sums, exemplars = list(self._sums), dict(self._exemplars)
        for value, row in self._rows.items():
            buckets = list(self._buckets(row, counts[row], exemplars))
            family.add_metric([value] if self._label else [], buckets, sums[row])
        return [family]

    def _buckets(
        self,
        row: int,
        counts: list[int],
        exemplars: dict[tuple[int, int], tuple[str, float, float]],
    ) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
        for bucket, bound in enumerate([*self._bounds, math.inf]):
            le = str(bound) if bucket < len(self._bounds) else "+Inf"
            count = float(counts[bucket])
            pointed = exemplars.get((row, bucket))
            if pointed is None:
                yield le, count
            else:
                yield le, count, _exemplar(*pointed)


def _exemplar(context: str, value: float, now_s: float) -> Exemplar:
    return Exemplar({EXEMPLAR_LABEL: exemplar_text(context)}, value, now_s or None)


def exemplar_text(context: str) -> str:
    """As much of a context's name as an exemplar takes, and only what UTF-8 can write."""
    return context[:EXEMPLAR_CHARACTERS].encode(errors="replace").decode()
