"""The nouns that cross the border of the core: plain values, no behaviour, no I/O.

Shape legend, used in every docstring and comment of this package:
    B  events in a batch              C  rows of a partition's arrays (its capacity)
    D  numbers in x after the schema  K  class slots, or 1 for regression
    S  support-set capacity           P  parameters of the network
    T  tasks (episodes) in a meta-batch
A unit is part of a name: ``timestamp_s``, ``timeout_s``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

Context = str
Label = str | int | float | bool
Floats = NDArray[np.float64]
Float32s = NDArray[np.float32]
Codes = NDArray[np.uint8]
Ints = NDArray[np.int64]

NO_OFFSETS: Ints = np.zeros(0, np.int64)
NO_TIMES: Floats = np.zeros(0)
"""Stand for what a batch was not given."""


def canonical(value: Label) -> str:
    """One text for each class or category, however JSON wrote it: 3, 3.0 and "3" are the same."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def is_wide(label: object) -> bool:
    """Whether it is a whole number beyond the 64 bits that every format has for one."""
    return isinstance(label, int) and not -(2**63) <= label < 2**63


class Task(StrEnum):
    CLASSIFICATION = "classification"
    REGRESSION = "regression"


class DriftLevel(IntEnum):
    """What the drift detector says of a context after its latest loss."""

    STABLE = 0
    WARNING = 1
    DRIFT = 2


class Trigger(IntEnum):
    """Why a context adapted."""

    NONE = 0
    WARMUP = 1
    DRIFT = 2
    SCHEDULE = 3


class Result(IntEnum):
    """What became of an adaptation's candidate."""

    NONE = 0
    ACCEPTED = 1
    REJECTED = 2
    DIVERGED = 3


class Reason(StrEnum):
    """Why a record became a dead letter."""

    DECODE = "decode"
    SCHEMA = "schema"
    NONFINITE = "nonfinite"
    CONTEXT = "context"
    LABEL = "label"
    OVERSIZE = "oversize"
    LATE = "late"
    DUPLICATE = "duplicate"


class Event(msgspec.Struct, gc=False):
    """One decoded message. ``features`` is a struct of the schema's fields, in their order."""

    context: str | int | None = None
    features: Any = None
    label: Label | None = None
    id: str | int | None = None
    timestamp: datetime | float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Events of one partition, stacked for the core in offset order."""

    contexts: list[Context]  # B
    x: Float32s  # [B, D], NaN where missing
    y: Floats  # [B], class slot or value; NaN where unlabelled
    offsets: Ints = field(default_factory=lambda: NO_OFFSETS)  # [B], −1: not from a log
    times: Floats = field(default_factory=lambda: NO_TIMES)  # [B], of events, in s; NaN: unknown

    def __post_init__(self) -> None:
        size = len(self.contexts)
        if self.offsets is NO_OFFSETS:
            object.__setattr__(self, "offsets", np.full(size, -1, np.int64))
        if self.times is NO_TIMES:
            object.__setattr__(self, "times", np.full(size, np.nan))


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A window of one context's labelled events, oldest first: support set, then query set."""

    context: Context
    partition: int
    labels: int
    """Of the context, when this was emitted: the window is its labels up to this one."""
    support: int
    """n: the first examples are the support set, the others the query set."""
    x: Float32s  # [n + Q, D], raw, NaN where missing
    y: Floats  # [n + Q], class slot, or value
    offsets: Ints  # [n + Q], of the events; −1: not from a log
    label_offsets: Ints  # [n + Q], of their labels
    shift: Floats  # [2, D] what the stream's scaler, and the context's, subtracts from x
    inverse: Floats  # [2, D] and multiplies by then; 0 where constant
    y_scale: Floats  # [2] mean and standard deviation of the labels
    classes: tuple[Label, ...] = ()
    """By slot, as the partition knew them; empty in a regression."""


class Packed(NamedTuple):
    """What the core decided about a batch, in few arrays; :class:`Decisions` names their rows."""

    probabilities: Float32s  # [2, B, K]
    numbers: Floats  # [9, B]
    counts: NDArray[np.int64]  # [2, B]
    codes: Codes  # [4, B]


Array = TypeVar("Array", Float32s, Floats, Codes, NDArray[np.int64])


class _Row(Generic[Array]):
    """A row of a packed array, under a name."""

    def __init__(self, field: str, row: int) -> None:
        self._field = field
        self._row = row

    def __get__(self, decisions: Decisions, owner: type[Decisions]) -> Array:
        row: Array = getattr(decisions.packed, self._field)[self._row]
        return row


class Decisions:
    """What the core wants the shell to publish and count, aligned with its Batch."""

    __slots__ = ("evicted", "expired", "packed")

    def __init__(self, packed: Packed, evicted: int = 0, expired: int = 0) -> None:
        self.packed = packed
        self.evicted = evicted  # contexts that left memory to make room
        self.expired = expired  # contexts that began anew: not seen for longer than state.ttl_s

    predictions = _Row[Float32s]("probabilities", 0)  # [B, K] of classes; or the value, [B, 1]
    initial = _Row[Float32s]("probabilities", 1)  # the same, of the unadapted initialization
    # A loss is a log-loss, p floored at .002; in a regression |error| in standard deviations of y.
    loss = _Row[Floats]("numbers", 0)  # [B], of the prediction; NaN where unlabelled
    loss_init = _Row[Floats]("numbers", 1)  # [B], of the unadapted initialization
    loss_baseline = _Row[Floats]("numbers", 2)  # [B], of online gradient descent; NaN if off
    signal = _Row[Floats]("numbers", 3)  # [B], what the drift detector was fed
    loss_before = _Row[Floats]("numbers", 4)  # [B], on the newest support; NaN: not adapted
    loss_after = _Row[Floats]("numbers", 5)  # [B], of the candidate on the same examples
    spread = _Row[Floats]("numbers", 6)  # [B], the context's mean |error|; NaN for classes
    gradient_norm = _Row[Floats]("numbers", 7)  # [B], first inner step, before clipping
    seconds = _Row[Floats]("numbers", 8)  # [B], that the adaptation took; NaN without a clock
    support = _Row[NDArray[np.int64]]("counts", 0)  # [B], examples the adaptation used
    versions = _Row[NDArray[np.int64]]("counts", 1)  # [B], initialization behind the prediction
    levels = _Row[Codes]("codes", 0)  # [B], DriftLevel
    triggers = _Row[Codes]("codes", 1)  # [B], Trigger
    results = _Row[Codes]("codes", 2)  # [B], Result
    nonfinite = _Row[Codes]("codes", 3)  # [B], 1: the fast weights gave no finite prediction
