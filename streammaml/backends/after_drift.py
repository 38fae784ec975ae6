"""How the models' losses go on after a drift, over the latest drifts of any contexts.

Rule: a drift has a slot of a ring from its alarm on, and follows its context's next labels; so
memory is bounded, and a batch in which nothing is followed costs two look-ups. The label that gave
the alarm does not count: it was chosen for its loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np

from streammaml.events import Context, Decisions, DriftLevel, Floats, Ints

MODELS = ("init", "adapted", "baseline")
MAX_DRIFTS = 100
HORIZON = 60
SMOOTH = 5
"""Labels that a point of the curve is the mean over, itself in their middle."""


class AfterDrift:
    """Losses [model, drift, labels since it] of the latest drifts; one thread at a time."""

    def __init__(self, max_drifts: int = MAX_DRIFTS, horizon: int = HORIZON) -> None:
        self._losses = np.full((len(MODELS), max_drifts, horizon), np.nan)
        self._ages = np.zeros(max_drifts, np.int64)
        self._owners: list[Context | None] = [None] * max_drifts
        self._slots: dict[Context, int] = {}
        self._drifts = 0

    def observe(self, contexts: Sequence[Context], decisions: Decisions) -> None:
        """Add a batch: what followed the drifts that are known, and its own ones."""
        alarms = np.flatnonzero(decisions.levels == DriftLevel.DRIFT).tolist()
        if not (alarms or self._slots):
            return
        losses = np.stack((decisions.loss_init, decisions.loss, decisions.loss_baseline))
        begin = 0
        for alarm in alarms:
            self._extend(contexts[begin:alarm], losses[:, begin:alarm])
            self._begin(contexts[alarm])
            begin = alarm + 1
        self._extend(contexts[begin:], losses[:, begin:])

    def curves(self) -> dict[str, Any]:
        """Mean loss by labels since the drift, as JSON values; a model without any is left out."""
        known = min(self._drifts, len(self._ages))
        losses = self._losses[:, :known]
        counts = np.isfinite(losses).sum(axis=1)
        sums = np.nansum(losses, axis=1)
        kernel = np.ones(SMOOTH)
        means = {
            model: _means(np.convolve(s, kernel, "same"), np.convolve(n, kernel, "same"), n)
            for model, s, n in zip(MODELS, sums, counts, strict=True)
            if n.any()
        }
        return {
            "labels": list(range(1, losses.shape[2] + 1)),
            "losses": means,
            "counts": counts[MODELS.index("adapted")].tolist(),
            "drifts": known,
            "window": SMOOTH,
        }

    def _begin(self, context: Context) -> None:
        """Give the drift the oldest slot."""
        slot = self._drifts % len(self._ages)
        owner = self._owners[slot]
        if owner is not None and self._slots.get(owner) == slot:
            del self._slots[owner]
        self._owners[slot] = context
        self._slots[context] = slot
        self._losses[:, slot] = np.nan
        self._ages[slot] = 0
        self._drifts += 1

    def _extend(self, contexts: Sequence[Context], losses: Floats) -> None:
        """Append losses [model, B] to the drifts of their contexts, in order."""
        if not (self._slots and contexts):
            return
        slots = np.fromiter(map(self._slots.get, contexts, repeat(-1)), np.int64, len(contexts))
        places = np.flatnonzero((slots >= 0) & np.isfinite(losses[1]))
        if not len(places):
            return
        slots = slots[places]
        ages = self._ages[slots] + _ranks(slots)
        inside = ages < self._losses.shape[2]
        self._losses[:, slots[inside], ages[inside]] = losses[:, places[inside]]
        self._ages[slots] = ages + 1  # of equal ones the last counts, the oldest
        for slot in set(slots[ages + 1 >= self._losses.shape[2]].tolist()):
            owner = self._owners[slot]
            if owner is not None:
                del self._slots[owner]


def _ranks(slots: Ints) -> Ints:
    """How many equal ones stand before each."""
    order = np.argsort(slots, kind="stable")
    ordered = slots[order]
    first = np.searchsorted(ordered, ordered)
    ranks = np.empty_like(slots)
    ranks[order] = np.arange(len(slots)) - first
    return ranks


def _means(sums: Floats, counts: Floats, own: Ints) -> list[float | None]:
    """None where no drift has got so far."""
    return [
        float(f"{s / n:.5g}") if here and n else None
        for s, n, here in zip(sums.tolist(), counts.tolist(), own.tolist(), strict=True)
    ]
