"""River's detectors, one for each context, and what they were fed: their durable form.

A river detector has no bytes that we could trust another release to read. So its newest inputs are
kept, and it is built again by feeding them to a new one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from river import base

from streammaml.errors import DamagedError
from streammaml.events import Context, DriftLevel
from streammaml.learner import detectors
from streammaml.learner.snapshot import DETECTOR, Item, key_of
from streammaml.sealed import OVERHEAD_BYTES, seal, unseal

REMEMBERED = 512


class Watch:
    """The detectors of a partition by row; none where the compiled one is used.

    A detector that comes back equals the one that left if it had seen at most 512 inputs since its
    last drift. Beyond, it has seen only the newest 512: near to equal for detectors that forget
    (ADWIN's window, DDM's mean of many), the same again for any after its next drift.
    """

    def __init__(self, prototype: detectors.Detector | None, fingerprint: bytes) -> None:
        self._prototype = prototype
        self._fingerprint = fingerprint
        self._binary = isinstance(prototype, base.BinaryDriftDetector)
        self._dtype = np.dtype("u1" if self._binary else "<f8")
        self.detectors: dict[int, detectors.Detector] = {}
        self._inputs: dict[int, deque[float]] = {}
        self._changed: set[int] = set()  # since the mark
        self._stored: set[int] = set()  # rows whose inputs may stand on the shelf
        self._taken: set[int] = set()  # of these, in the latest snapshot as they are now

    def __bool__(self) -> bool:
        return self._prototype is not None

    def update(self, row: int, signal: float, wrong: bool) -> DriftLevel:
        """Feed the loss, or whether the class was wrong; a drift ends the detector."""
        value = wrong if self._binary else signal
        level = self._feed(row, value)
        self._touch(row)
        if level is DriftLevel.DRIFT:
            self._drop(row)
        return level

    def _touch(self, row: int) -> None:
        self._changed.add(row)
        self._taken.discard(row)

    def _feed(self, row: int, value: float) -> DriftLevel:
        detector = self.detectors.get(row)
        if detector is None:
            assert self._prototype is not None
            detector = self.detectors[row] = self._prototype.clone()
            self._inputs[row] = deque(maxlen=REMEMBERED)
        detector.update(value)  # type: ignore[arg-type]  # a bool where it must be one
        self._inputs[row].append(value)
        return detectors.level_of(detector)

    def _drop(self, row: int) -> None:
        self.detectors.pop(row, None)
        self._inputs.pop(row, None)

    def begin(self, row: int) -> None:
        """The context in this row begins anew."""
        if row in self.detectors or row in self._stored:
            self._touch(row)
            self._drop(row)

    def forget(self, row: int) -> None:
        """The row is free."""
        self._drop(row)
        self._changed.discard(row)
        self._taken.discard(row)
        self._stored.discard(row)

    def inputs(self, row: int) -> list[float]:
        return list(self._inputs.get(row, ()))

    def size(self, inputs: Sequence[float]) -> int:
        """Bytes of so many inputs, sealed; 0: they are not stored."""
        return OVERHEAD_BYTES + len(inputs) * self._dtype.itemsize if inputs else 0

    def is_stored(self, row: int) -> bool:
        return row in self._stored

    def changes(self, names: list[Context], rows: Iterable[int]) -> Iterator[Item]:
        """The ``d/`` items of those rows that changed since the mark."""
        if not self._changed:
            return
        for row in self._changed.intersection(rows):
            key = key_of(DETECTOR, names[row])
            inputs = self._inputs.get(row)
            if inputs:
                body = np.array(inputs, self._dtype).tobytes()
                yield key, seal(key, self._fingerprint, body)
            elif row in self._stored:
                yield key, None

    def taken(self) -> None:
        """A snapshot was taken."""
        self._taken = set(self._changed)
        self._stored |= self._taken & self._inputs.keys()

    def mark(self) -> None:
        """What the latest snapshot held is durable."""
        self._stored -= self._taken - self._inputs.keys()
        self._changed -= self._taken
        self._taken.clear()

    def restore(self, row: int, key: bytes, value: bytes) -> None:
        """Build the detector of a row again; DamagedError or IncompatibleError as ``unseal``."""
        for number in self.unpack(key, value):
            self._feed(row, bool(number) if self._binary else number)
        self._stored.add(row)

    def unpack(self, key: bytes, value: bytes) -> list[float]:
        body = unseal(key, self._fingerprint, value)
        if len(body) % self._dtype.itemsize or len(body) > REMEMBERED * self._dtype.itemsize:
            raise DamagedError(f"the stored value of {key!r:.80} is damaged: {len(body)} bytes")
        values = np.frombuffer(body, self._dtype)
        if not np.isfinite(values).all() or (self._binary and values.max(initial=0) > 1):
            raise DamagedError(f"the stored value of {key!r:.80} is damaged: a number cannot be")
        numbers: list[float] = values.tolist()
        return numbers
