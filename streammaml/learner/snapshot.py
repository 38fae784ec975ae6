"""The durable form of a partition's learner: keys and values of the compacted topic ``state``.

``c/<context>`` the light part of a context   ``w/<context>`` its fast weights, unless they are θ
``d/<context>`` what a detector of river was fed
``@stream`` what is stream-wide, the classes and the version in use   ``@init/<version>`` an
initialization

Every value is sealed (``streammaml.sealed``); its body is little-endian numbers without gaps. A
light part ends with the ring in the order of its slots, cut off behind the last one that is
filled. There are two rings: the short one has the support set; the long one, where episodes are
sent, has QUERY more examples, each with an offset. Its size says which one a light part has, and
either is read as the other: then as many of the newest examples are taken as fit, and what is not
known of those that are missed is UNKNOWN. Format 1 has the short one only.

Rule: nothing that was read reaches an array before its size and range were checked, since
compiled code checks no bounds.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streammaml.config import Config, spec_of
from streammaml.errors import DamagedError
from streammaml.events import QUERY, Context, Float32s, Label, Task, canonical
from streammaml.learner import detectors
from streammaml.learner.state import UNKNOWN, ContextState, Ints, StreamState
from streammaml.sealed import OVERHEAD_BYTES, seal, unseal

LIGHT, WEIGHTS, DETECTOR = b"c/", b"w/", b"d/"
STREAM, INITIALIZATION = b"@stream", b"@init/"
CHUNK_BYTES = 1 << 20
"""Packed at once: what is copied stays in the cache."""

Item = tuple[bytes, bytes | None]
"""Key and value; None where the key is to be deleted."""
Records = NDArray[Any]
"""A structured array [n], one record for each context: ``Format.light``."""

# In front of every light part, so that these can be read without a configuration.
FRONT: list[tuple[Any, ...]] = [
    ("labels", "<i8"),
    ("segment", "<i8"),
    ("version", "<i8"),
    ("at_init", "u1"),
    ("ledger", "<i8", (3,)),
    ("seen", "<f8"),
]
SEEN = struct.Struct("<d")
SEEN_PLACE = 12 + np.dtype(FRONT[:-1]).itemsize
"""12 bytes of a sealed value stand before its body."""
LABELS = struct.Struct("<q")


def key_of(kind: bytes, context: Context) -> bytes:
    return kind + context.encode("utf-8", "surrogatepass")


def context_of(key: bytes) -> Context:
    """The context of a ``c/``, ``w/`` or ``d/`` key."""
    return key[2:].decode("utf-8", "surrogatepass")


def description_of(config: Config) -> dict[str, Any]:
    """All that must agree for stored bytes to mean the same, as plain JSON values."""
    label, learner = config.label, config.learner
    compiled = detectors.is_compiled(learner.detector, label.task)
    return {
        "task": label.task.value,
        "features": [[f.name, f.type.value, list(f.categories)] for f in config.features],
        "classes": list(label.classes),
        "class slots": label.slots,
        "network": _network(config),
        "support_size": learner.support_size,
        "baseline": learner.baseline_rate > 0,
        "detector": "compiled" if compiled else learner.detector.name,
    }


def _network(config: Config) -> list[int | str]:
    """The sizes; of a custom network also its path and a hash of its parameters' shapes."""
    spec = spec_of(config)
    if not spec.network:
        return [*spec.sizes]
    shapes = hashlib.sha256(json.dumps(spec.parameters).encode()).hexdigest()[:16]
    return [*spec.sizes, spec.network, shapes]


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions, one line each."""
    found = [(name, theirs.get(name), ours.get(name)) for name in {**ours, **theirs}]
    return [
        f"{name}: {json.dumps(there):.200} there, {json.dumps(here):.200} here"
        for name, there, here in found
        if there != here
    ]


def fingerprint_of(config: Config) -> bytes:
    """Hash of :func:`description_of`, 8 bytes."""
    return hashlib.sha256(json.dumps(description_of(config)).encode()).digest()[:8]


def is_expired(light: bytes, clock_s: float, ttl_s: float) -> bool:
    """Whether the context of a stored ``c/`` value was not seen for longer than ``ttl_s``.

    Reads one number of the sealed value, whose checksum is the caller's to check. It must be the
    newest value: a context that is in memory, or was spilled since, may have been seen later.
    """
    if ttl_s <= 0 or len(light) < SEEN_PLACE + SEEN.size:
        return False
    seen: float = SEEN.unpack_from(light, SEEN_PLACE)[0]
    return seen + ttl_s < clock_s


class Ring(NamedTuple):
    """How the examples of a context stand behind a light part."""

    slots: int
    slot: np.dtype[Any]

    def size(self, labels: int) -> int:
        """Bytes of the slots that are filled."""
        return min(max(labels, 0), self.slots) * self.slot.itemsize


class Format:
    """How the state of one configuration stands in bytes."""

    def __init__(self, config: Config) -> None:
        spec = spec_of(config)
        width = spec.sizes[0] // 2
        regression = config.label.task is Task.REGRESSION
        self.fingerprint = fingerprint_of(config)
        self.has_offsets = config.episodes.enabled
        self.slots = config.label.slots
        self.parameters = sum(int(np.prod(shape)) for shape in spec.shapes().values())
        self._regression = regression
        fields: list[tuple[Any, ...]] = [*FRONT, ("detector", "<f8", (4,))]
        if regression:
            fields.append(("error_scale", "<f8"))
        fields += [(name, "<f8", (width,)) for name in ("x_count", "x_mean", "x_m2")]
        if config.learner.baseline_rate > 0:
            fields.append(("baseline", "<f4", (self.parameters,)))
        self._fields = [field[0] for field in fields]
        self._fixed = np.dtype(fields).itemsize
        example = [("x", "<f4", (width,)), ("y", "<f8" if regression else "<u2")]
        size = config.learner.support_size
        short = Ring(size, np.dtype(example))
        long = Ring(size + QUERY, np.dtype([*example, ("offset", "<i8")]))
        self._ring, self._other = (long, short) if self.has_offsets else (short, long)
        self.light = np.dtype([*fields, ("support", self._ring.slot, (self._ring.slots,))])
        each = ("x_count", "x_mean", "x_m2", "x_shift", "x_variance", "x_inverse")
        self._stream = np.dtype(
            [
                ("version", "<i8"),
                *((name, "<f8", (width,)) for name in each),
                *((name, "<f8", (2,)) for name in ("y_moments", "y_scale", "y_range")),
                ("counts", "<i8", (2,)),
                ("known", "u1", (self.slots,)),
                ("clock", "<f8", (1,)),
            ]
        )

    @property
    def ring(self) -> int:
        """R."""
        return self._ring.slots

    def sizes(self, record: Records) -> dict[str, int]:
        """Bytes of a context's sealed parts, by name; 0: the part is not stored."""
        heavy = 0 if record["at_init"] else 4 * self.parameters + OVERHEAD_BYTES
        return {"light": self._size(int(record["labels"])) + OVERHEAD_BYTES, "weights": heavy}

    def stored_sizes(self, labels: Ints, at_init: NDArray[np.uint8]) -> Ints:
        """Bytes of the sealed parts of contexts [n] together, a river detector's aside."""
        ring = np.minimum(labels, self.ring) * self._ring.slot.itemsize
        light = self._fixed + ring + OVERHEAD_BYTES
        sizes: Ints = light + (at_init == 0) * (4 * self.parameters + OVERHEAD_BYTES)
        return sizes

    @property
    def largest(self) -> int:
        """Bytes of a light part with a full ring, sealed."""
        return self.light.itemsize + OVERHEAD_BYTES

    # --- contexts -------------------------------------------------------------------------------

    def gather(self, contexts: ContextState, rows: Ints) -> Records:
        """Copy the light part of ``rows`` [n] into records."""
        records = np.empty(len(rows), self.light)
        for name in self._fields:
            records[name] = getattr(contexts, name)[rows]
        support = records["support"]
        support["x"] = contexts.support_x[rows]
        support["y"] = contexts.support_y[rows]
        if self.has_offsets:
            support["offset"] = contexts.support_offsets[rows]
        return records

    def scatter(self, contexts: ContextState, rows: Ints, records: Records) -> None:
        """The reverse: write records that were read into ``rows`` [n]."""
        for name in self._fields:
            getattr(contexts, name)[rows] = records[name]
        contexts.support_x[rows] = records["support"]["x"]
        contexts.support_y[rows] = records["support"]["y"]
        if self.has_offsets:
            contexts.support_offsets[rows] = records["support"]["offset"]

    def pack(
        self, contexts: ContextState, names: Sequence[Context], rows: Ints
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and sealed light part of ``rows`` [n]; ``names`` has all contexts by row."""
        for first in range(0, len(rows), many := max(1, CHUNK_BYTES // self.light.itemsize)):
            part = rows[first : first + many]
            records = self.gather(contexts, part)
            filled = np.minimum(records["labels"], self.ring)
            starts = np.arange(len(part)) * self.light.itemsize
            ends = (starts + self._fixed + filled * self._ring.slot.itemsize).tolist()
            raw = records.tobytes()
            for row, start, end in zip(part.tolist(), starts.tolist(), ends, strict=True):
                key = key_of(LIGHT, names[row])
                yield key, seal(key, self.fingerprint, raw[start:end])

    def unpack(self, keys: Sequence[bytes], values: Sequence[bytes]) -> Records:
        """Open sealed light parts.

        DamagedError or IncompatibleError, as ``unseal``; DamagedError also where a size or a value
        cannot be.
        """
        records = np.zeros(len(keys), self.light)
        raw = records.view(np.uint8)
        others = []
        start = 0
        for place, (key, value) in enumerate(zip(keys, values, strict=True)):
            body = unseal(key, self.fingerprint, value)
            size = len(body)
            labels = LABELS.unpack_from(body)[0] if size >= self._fixed else 0
            if size == self._size(labels):
                raw[start : start + size] = np.frombuffer(body, np.uint8)
            elif size == self._fixed + self._other.size(labels):
                raw[start : start + self._fixed] = np.frombuffer(body[: self._fixed], np.uint8)
                others.append((place, body))
            else:
                raise _damaged(key, f"it has {size} bytes")
            start += self.light.itemsize
        for place, body in others:
            self._place_again(records[place], body)
        bad = self._impossible(records)
        if bad.any():
            raise _damaged(keys[int(bad.argmax())], "a number in it cannot be")
        return records

    def _size(self, labels: int) -> int:
        return self._fixed + self._ring.size(labels)

    def _place_again(self, record: Any, body: memoryview) -> None:
        """Take the newest examples out of the other ring; they are at least a support set."""
        theirs, ours = np.frombuffer(body[self._fixed :], self._other.slot), record["support"]
        labels = int(record["labels"])
        newest = np.arange(labels - min(len(theirs), self.ring), labels)
        for name in ("x", "y"):
            ours[name][newest % self.ring] = theirs[name][newest % len(theirs)]
        if self.has_offsets:
            ours["offset"][: min(labels, self.ring)] = UNKNOWN

    def _impossible(self, records: Records) -> NDArray[np.bool_]:
        """Which records [n] hold a number that no learner writes."""
        ledger, detector, support = records["ledger"], records["detector"], records["support"]
        good = (records["labels"] >= 0) & (records["segment"] >= 0)
        good &= records["segment"] <= records["labels"]
        good &= records["labels"] <= ledger[:, 0]
        good &= (records["version"] >= 0) & (records["at_init"] <= 1) & (ledger[:, 1] >= -1)
        good &= ~np.isinf(records["seen"])
        good &= np.isfinite(detector[:, :3]).all(1) & (detector[:, 0] >= 0)
        good &= detector[:, 3] > -np.inf  # infinite before the first loss; false for NaN
        for name in ("x_count", "x_mean", "x_m2"):
            good &= np.isfinite(records[name]).all(1)
        good &= (records["x_count"] >= 0).all(1) & (records["x_m2"] >= 0).all(1)
        if self._regression:
            scale = records["error_scale"]
            good &= np.isfinite(scale) & (scale > 0) & np.isfinite(support["y"]).all(1)
        else:
            good &= (support["y"] < self.slots).all(1)
        if "baseline" in self._fields:
            good &= np.isfinite(records["baseline"]).all(1)
        good &= ~np.isinf(support["x"]).any((1, 2))  # NaN is a missing number
        if self.has_offsets:
            good &= (support["offset"] >= UNKNOWN).all(1)
        return np.logical_not(good)

    def pack_weights(
        self, contexts: ContextState, names: Sequence[Context], rows: Ints
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and sealed fast weights of ``rows`` [n]."""
        size = 4 * self.parameters
        for first in range(0, len(rows), many := max(1, CHUNK_BYTES // size)):
            part = rows[first : first + many]
            weights = contexts.fast[part]
            assert np.isfinite(weights).all()  # the kernel lets no other replace them
            raw = weights.tobytes()
            for i, row in enumerate(part.tolist()):
                key = key_of(WEIGHTS, names[row])
                yield key, seal(key, self.fingerprint, raw[i * size : (i + 1) * size])

    def unpack_weights(self, keys: Sequence[bytes], values: Sequence[bytes]) -> Float32s:
        """Open sealed fast weights: [n, P]. Errors as for :meth:`unpack`."""
        weights = np.empty((len(keys), self.parameters), np.float32)
        for i, (key, value) in enumerate(zip(keys, values, strict=True)):
            body = unseal(key, self.fingerprint, value)
            if len(body) != 4 * self.parameters:
                raise _damaged(key, f"it has {len(body)} bytes")
            weights[i] = np.frombuffer(body, "<f4")
        bad = ~np.isfinite(weights).all(1)
        if bad.any():
            raise _damaged(keys[int(bad.argmax())], "a weight is not finite")
        return weights

    # --- stream-wide ----------------------------------------------------------------------------

    def pack_stream(self, stream: StreamState, version: int, classes: Sequence[Label]) -> bytes:
        """Seal the stream-wide state, the version in use, and the classes by slot."""
        record = np.zeros(1, self._stream)
        record["version"] = version
        for name in self._stream.names or ():
            if name != "version":
                record[name] = getattr(stream, name)
        names = json.dumps(list(classes), separators=(",", ":")).encode()
        return seal(STREAM, self.fingerprint, record.tobytes() + names)

    def unpack_stream(self, value: bytes, stream: StreamState) -> tuple[int, list[Label]]:
        """Fill ``stream``; return the version in use and the classes. Errors as for ``unpack``."""
        body = unseal(STREAM, self.fingerprint, value)
        size = self._stream.itemsize
        if len(body) < size:
            raise _damaged(STREAM, f"it has {len(body)} bytes")
        record = np.frombuffer(body[:size], self._stream)[0]
        try:
            classes = json.loads(bytes(body[size:]))
        except ValueError as error:
            raise _damaged(STREAM, "its classes are no JSON") from error
        if not isinstance(classes, list) or not all(
            isinstance(label, str | int | float) for label in classes
        ):  # a bool is an int
            raise _damaged(STREAM, "its classes are no list")
        if len({canonical(label) for label in classes}) < len(classes):
            raise _damaged(STREAM, "a class is there twice")
        if not _is_possible(record) or (
            not self._regression
            and (len(classes) > self.slots or record["known"][len(classes) :].any())
        ):
            raise _damaged(STREAM, "a number in it cannot be")
        for name in self._stream.names or ():
            if name != "version":
                getattr(stream, name)[:] = record[name]
        return int(record["version"]), classes


def _is_possible(record: Any) -> bool:
    """Whether a learner can have written this stream-wide record."""
    scales = ("x_count", "x_mean", "x_m2", "x_shift", "x_variance", "x_inverse")
    finite = (*scales, "y_moments", "y_scale")
    labels, events = record["counts"]
    return bool(
        all(np.isfinite(record[name]).all() for name in finite)
        and (record["x_count"] >= 0).all()
        and (record["x_m2"] >= 0).all()
        and (record["x_variance"] > 0).all()
        and (record["x_inverse"] >= 0).all()
        and record["y_moments"][1] >= 0
        and record["y_scale"][1] > 0
        and not np.isnan(record["y_range"]).any()
        and 0 <= labels <= events
        and (record["known"] <= 1).all()
        and record["version"] >= 0
        and not np.isinf(record["clock"]).any()
    )


def _damaged(key: bytes, why: str) -> DamagedError:
    return DamagedError(f"the stored value of {key!r:.80} is damaged: {why}")
