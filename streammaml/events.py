"""The nouns that cross the border of the core: plain values, no behaviour, no I/O.

Shape legend, used in every docstring and comment of this package:
    B  events in a batch              C  rows of a partition's arrays (its capacity)
    D  numbers in x after the schema  K  class slots, or 1 for regression
    S  support-set capacity           P  parameters of the network
    T  tasks (episodes) in a meta-batch
A unit is part of a name: ``timestamp_s``, ``timeout_s``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Context = str
Label = str | int | float | bool
Floats = NDArray[np.float64]
Float32s = NDArray[np.float32]
Codes = NDArray[np.uint8]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """What the core wants the shell to publish and count, aligned with its Batch."""

    predictions: Float32s  # [B, K], class probabilities; or the value, [B, 1]
    spread: Floats  # [B], the context's running mean |error| in units of y; NaN for classes
    loss: Floats  # [B], of the prediction above; NaN where unlabelled
    loss_init: Floats  # [B], of the unadapted initialization
    loss_baseline: Floats  # [B], of plain online gradient descent; NaN where it is off
    levels: Codes  # [B], DriftLevel
    triggers: Codes  # [B], Trigger
    results: Codes  # [B], Result
    loss_before: Floats  # [B], on the newest support examples, NaN where nothing adapted
    loss_after: Floats  # [B]
    support: NDArray[np.int64]  # [B], examples the adaptation used
    gradient_norm: Floats  # [B], of its first inner step, before clipping
    nonfinite: Codes  # [B], 1 where the fast weights gave no finite prediction
    versions: NDArray[np.int64]  # [B], initialization behind the prediction
    evicted: int  # contexts that left memory to make room
