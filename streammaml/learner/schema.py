"""From decoded events to a batch: features to numbers, labels to class slots.

Rule: what is not right is returned with its reason, never raised and never dropped; a rejected
event leaves no trace, not even a new class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np

from streammaml.config import NUMBER_LIMIT, Feature, FeatureType, LabelConfig
from streammaml.errors import InitializationError, RejectedError
from streammaml.events import (
    Batch,
    Event,
    Float32s,
    Floats,
    Label,
    Reason,
    Task,
    canonical,
    is_wide,
)

LABEL_LENGTH = 256
"""Of a class that an open list may learn: every prediction repeats it."""


class Rejected(NamedTuple):
    place: int
    """In what was given."""
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Collated:
    """A batch, and what could not join it."""

    batch: Batch
    kept: list[int]
    """Place of each event of the batch in what was given."""
    rejected: list[Rejected] = field(default_factory=list)
    unknown_categories: int = 0


class Labels:
    """The classes of a partition by slot, or plain numbers for a regression."""

    def __init__(self, config: LabelConfig, known: Sequence[Label] = ()) -> None:
        self._config = config
        self._open = config.task is Task.CLASSIFICATION and not config.classes
        self.classes: list[Label] = list(config.classes or known)
        self._slots = {canonical(label): i for i, label in enumerate(self.classes)}
        self._exact: dict[str | int, int] = {}  # found before, as JSON wrote them

    @property
    def names(self) -> list[str]:
        return list(self._slots)

    def check_order(self, classes: Sequence[Label]) -> None:
        """InitializationError unless ``classes``, if any, have the slots that they have here."""
        theirs = [canonical(label) for label in classes]
        shared = min(len(theirs), len(self.names))
        if theirs[:shared] != self.names[:shared]:
            raise InitializationError(
                f"its classes {theirs[:5]}… have other places than this partition's "
                f"{self.names[:5]}…: close the list in label.classes"
            )

    def foresee(self, classes: Sequence[Label]) -> None:
        """Give classes that an open list does not have the next slots, while there are any."""
        for label in classes:
            name = canonical(label)
            fits = len(self.classes) < self._config.slots and len(name) <= LABEL_LENGTH
            fits = fits and not is_wide(label)
            if self._open and fits and name not in self._slots:
                self.classes.append(label)
                self._slots[name] = len(self._slots)

    def encode(self, label: Label) -> float:
        """Class slot, or the value. A new class of an open list gets the next slot."""
        if self._config.task is Task.REGRESSION:
            return _value(label)
        if type(label) is str or type(label) is int:  # most are, and need no other text
            slot = self._exact.get(label)
            if slot is not None:
                return slot
        if isinstance(label, float) and not math.isfinite(label):
            raise RejectedError(Reason.NONFINITE, f"label {label} is not finite")
        name = canonical(label)
        slot = self._slots.get(name)
        if slot is not None:
            if type(label) is str or type(label) is int:
                self._exact[label] = slot
            return slot
        if not self._open:
            raise RejectedError(Reason.LABEL, f"label {name!r:.80} is not in label.classes")
        if len(self.classes) == self._config.slots:
            raise RejectedError(
                Reason.LABEL,
                f"label {name!r:.80} would be class {len(self.classes) + 1}; "
                f"label.max_classes is {self._config.slots}",
            )
        if len(name) > LABEL_LENGTH:
            raise RejectedError(
                Reason.LABEL, f"label {name!r:.80}… has more than {LABEL_LENGTH} characters"
            )
        if is_wide(label):
            raise RejectedError(Reason.LABEL, f"label {name!r:.80} has more than 64 bits")
        self.foresee([label])
        return self._slots[name]


def _value(label: Label) -> float:
    if isinstance(label, str | bool):
        raise RejectedError(Reason.LABEL, f"label {label!r:.80} is not a number")
    try:
        value = float(label)
    except OverflowError:
        value = math.inf
    if not abs(value) <= NUMBER_LIMIT:
        raise RejectedError(
            Reason.NONFINITE, f"label {value} is not finite or beyond {NUMBER_LIMIT:g}"
        )
    return value


class Schema:
    """How a features struct becomes D numbers: numbers as they are, booleans 0/1, one-hot rest."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = tuple(features)
        self._slots = {
            column: {name: slot for slot, name in enumerate(f.categories)}
            for column, f in enumerate(features)
            if f.type is FeatureType.CATEGORY
        }
        self._ranges = [(column, f) for column, f in enumerate(features) if f.range is not None]
        self.width = sum(len(f.categories) or 1 for f in features)

    def collate(self, events: Sequence[Event], labels: Labels) -> Collated:
        """Stack events in their order; ``labels`` learns the classes of those that are kept."""
        whole = [
            i
            for i, e in enumerate(events)
            if e.features is not None and e.context is not None and e.context != ""
        ]
        rejected = []
        if len(whole) < len(events):
            rejected = [_incomplete(i, events[i]) for i in sorted({*range(len(events))} - {*whole})]
        rows = [msgspec.structs.astuple(events[i].features) for i in whole]
        numbers, unknown = self._numbers(rows)
        bad = self._bad(numbers, rows)
        kept: list[int] = []
        keep: list[int] = []
        y: list[float] = []
        for row, i in enumerate(whole):
            label = events[i].label
            try:
                if bad and row in bad:
                    raise bad[row]
                y.append(math.nan if label is None else labels.encode(label))
            except RejectedError as error:
                rejected.append(Rejected(i, error.reason, str(error)))
                continue
            kept.append(i)
            keep.append(row)
        if len(keep) < len(rows):
            numbers = numbers[keep]
        batch = Batch(
            contexts=[str(events[i].context) for i in kept],
            x=self._one_hot(numbers),
            y=np.array(y, np.float64),
        )
        return Collated(
            batch=batch, kept=kept, rejected=sorted(rejected), unknown_categories=unknown
        )

    def _numbers(self, rows: list[tuple[object, ...]]) -> tuple[Floats, int]:
        """One number for each feature, NaN where missing; categories as their slot, else −1."""
        shape = (len(rows), len(self._features))
        if not self._slots:
            return np.array(rows, np.float64).reshape(shape), 0
        numbers = np.empty(shape)
        unknown = 0
        for column, values in enumerate(zip(*rows, strict=True)):
            slots = self._slots.get(column)
            if slots is not None:
                found = [None if v is None else slots.get(canonical(v), -1) for v in values]
                unknown += found.count(-1)
                values = tuple(found)
            numbers[:, column] = np.array(values, np.float64)
        return numbers, unknown

    def _bad(self, numbers: Floats, rows: list[tuple[object, ...]]) -> dict[int, RejectedError]:
        """Rows with a number that is NaN, infinite, too large or out of its range."""
        bad: dict[int, RejectedError] = {}
        odd = ~(np.abs(numbers) <= NUMBER_LIMIT)
        if odd.any():
            for row, column in np.argwhere(odd).tolist():
                if rows[row][column] is not None:
                    bad[row] = self._nonfinite(column, numbers[row, column])
        for column, feature in self._ranges:
            low, high = feature.range or (-math.inf, math.inf)
            values = numbers[:, column]
            for row in np.flatnonzero((values < low) | (values > high)).tolist():
                bad.setdefault(
                    row,
                    RejectedError(
                        Reason.SCHEMA,
                        f"feature {feature.name!r} is {values[row]:g}, outside [{low:g}, {high:g}]",
                    ),
                )
        return bad

    def _nonfinite(self, column: int, value: float) -> RejectedError:
        return RejectedError(
            Reason.NONFINITE,
            f"feature {self._features[column].name!r} is {value:g}: not finite, or beyond "
            f"{NUMBER_LIMIT:g}; a missing number is null",
        )

    def _one_hot(self, numbers: Floats) -> Float32s:
        if not self._slots:
            return np.ascontiguousarray(numbers, np.float32)
        x = np.zeros((len(numbers), self.width), np.float32)
        first = 0
        for column in range(len(self._features)):
            values, slots = numbers[:, column], self._slots.get(column)
            if slots is None:
                x[:, first] = values
                first += 1
                continue
            for slot in range(len(slots)):
                x[:, first + slot] = np.where(np.isnan(values), np.nan, values == slot)
            first += len(slots)
        return x


def _incomplete(place: int, event: Event) -> Rejected:
    if event.context is None or event.context == "":
        return Rejected(
            place, Reason.CONTEXT, "no context: give the field `context` or a record key"
        )
    if event.label is None:
        return Rejected(place, Reason.SCHEMA, "neither features nor a label")
    return Rejected(
        place, Reason.LATE, "a label without features: labels that come later are not joined yet"
    )
