"""The wire format of ``episodes``: windows of labelled events. Pure, no torch.

Rule: what cannot be an episode of this configuration raises RejectedError, and nothing else is
raised for any bytes. Sizes, ranges and types are checked before use, and a length that lies costs
no memory: the value is MessagePack without a list, its arrays are little-endian bytes.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from streammaml.backends.codec import CONTEXT_BYTES
from streammaml.backends.ports import Message, Record
from streammaml.config import NUMBER_LIMIT, Config, schema_fingerprint, spec_of
from streammaml.errors import RejectedError
from streammaml.events import Episode, Label, Reason, Task, canonical, is_wide

FORMAT = 1
LABELS_END = 2**53
"""A context counts fewer: the outer loop adds counts up, and keeps the sums in 64 bits."""
Number = TypeVar("Number", np.float32, np.float64, np.int64)


class _Wire(msgspec.Struct):
    """The value of a record; its key is the context."""

    format: int
    schema: str
    partition: int
    labels: int
    support: int
    x: bytes
    y: bytes
    offsets: bytes
    label_offsets: bytes
    shift: bytes
    inverse: bytes
    y_scale: bytes
    classes: str
    """A JSON list: MessagePack would make room for as many as it claims to have."""


_decoder = msgspec.msgpack.Decoder(_Wire)
_classes = msgspec.json.Decoder(list[Label])


def encode_episode(episode: Episode, config: Config) -> Message | None:
    """One record; None if it would be larger than ``worker.max_record_bytes``."""
    key = episode.context.encode()
    value = msgspec.msgpack.encode(
        _Wire(
            format=FORMAT,
            schema=schema_fingerprint(config),
            partition=episode.partition,
            labels=episode.labels,
            support=episode.support,
            x=_bytes(episode.x, np.float32),
            y=_bytes(episode.y, np.float64),
            offsets=_bytes(episode.offsets, np.int64),
            label_offsets=_bytes(episode.label_offsets, np.int64),
            shift=_bytes(episode.shift, np.float64),
            inverse=_bytes(episode.inverse, np.float64),
            y_scale=_bytes(episode.y_scale, np.float64),
            classes=msgspec.json.encode(episode.classes).decode(),
        )
    )
    if len(key) + len(value) > config.worker.max_record_bytes:
        return None
    return Message(config.topics.episodes, key, value)


def decode_episode(record: Record, config: Config) -> Episode:
    """The episode of a record; its arrays are its own and may be written to.

    RejectedError for what it is not: ``OVERSIZE``, ``DECODE`` (no such bytes, sizes or ranges),
    ``SCHEMA`` (made for other features or classes), ``NONFINITE``.
    """
    wire = _decode(record, config.worker.max_record_bytes)
    spec = spec_of(config)
    if wire.schema != spec.schema:
        _reject(Reason.SCHEMA, f"its features and classes are {wire.schema[:32]}, not these")
    width, size = spec.sizes[0] // 2, len(wire.y) // 8
    if not 2 <= wire.support < size:
        _reject(Reason.DECODE, f"{wire.support} of {size} examples cannot be the support set")
    if not (0 <= wire.partition < 2**31 and size <= wire.labels < LABELS_END):
        _reject(Reason.DECODE, f"partition {wire.partition}, {wire.labels} labels of {size}")
    x = _array(wire.x, np.float32, (size, width), "x")
    y = _array(wire.y, np.float64, (size,), "y")
    offsets = _array(wire.offsets, np.int64, (size,), "offsets")
    label_offsets = _array(wire.label_offsets, np.int64, (size,), "label_offsets")
    shift = _array(wire.shift, np.float64, (2, width), "shift")
    inverse = _array(wire.inverse, np.float64, (2, width), "inverse")
    y_scale = _array(wire.y_scale, np.float64, (2,), "y_scale")
    _must_hold(np.isnan(x) | (np.abs(x) <= NUMBER_LIMIT), "x")
    for name, array in {"shift": shift, "inverse": inverse, "y_scale": y_scale}.items():
        _must_hold(np.isfinite(array), name)
    classes = _check_labels(wire, y, config)
    if min(offsets.min(), label_offsets.min()) < -1:
        _reject(Reason.DECODE, "an offset below -1")
    return Episode(
        context=_context(record.key),
        partition=wire.partition,
        labels=wire.labels,
        support=wire.support,
        x=x,
        y=y,
        offsets=offsets,
        label_offsets=label_offsets,
        shift=shift,
        inverse=inverse,
        y_scale=y_scale,
        classes=classes,
    )


def _decode(record: Record, max_bytes: int) -> _Wire:
    value = record.value
    if value is None:
        _reject(Reason.DECODE, "no value: a tombstone is not an episode")
    size = len(value) + len(record.key or b"")
    if size > max_bytes:
        _reject(Reason.OVERSIZE, f"{size} bytes; worker.max_record_bytes is {max_bytes}")
    try:
        wire = _decoder.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError) as error:
        raise RejectedError(Reason.DECODE, f"not an episode: {error}"[:1000]) from error
    if wire.format != FORMAT:
        _reject(Reason.DECODE, f"an episode of format {wire.format}, not {FORMAT}"[:1000])
    return wire


def _context(key: bytes | None) -> str:
    if key is None or len(key) > CONTEXT_BYTES:
        _reject(Reason.DECODE, f"the key is no context: none, or more than {CONTEXT_BYTES} bytes")
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise RejectedError(Reason.DECODE, f"the key is not UTF-8: {error}") from error


def _check_labels(wire: _Wire, y: NDArray[np.float64], config: Config) -> tuple[Label, ...]:
    """The classes by slot, once every y is one of them, or a number in a regression."""
    try:
        classes = tuple(_classes.decode(wire.classes))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RejectedError(Reason.DECODE, f"its classes: {error}"[:1000]) from error
    if config.label.task is Task.REGRESSION:
        if classes:
            _reject(Reason.DECODE, "a regression has no classes")
        _must_hold(np.abs(y) <= NUMBER_LIMIT, "y")
        return ()
    _must_hold(np.isfinite(y), "y")
    if len(classes) > config.label.slots or len(set(map(canonical, classes))) < len(classes):
        _reject(Reason.DECODE, f"{len(classes)} classes: too many, or one of them twice")
    if any(map(is_wide, classes)):
        _reject(Reason.DECODE, "one of its classes is a number of more than 64 bits")
    wanted = config.label.classes
    if wanted and list(map(canonical, classes)) != list(map(canonical, wanted)):
        _reject(Reason.SCHEMA, "its classes are not those of the configuration")
    if not ((y >= 0) & (y < len(classes)) & (y == np.floor(y))).all():
        _reject(Reason.DECODE, f"y is not a slot of its {len(classes)} classes")
    return classes


def _bytes(array: NDArray[Any], kind: type[Number]) -> bytes:
    return array.astype(np.dtype(kind).newbyteorder("<")).tobytes()


def _array(raw: bytes, kind: type[Number], shape: tuple[int, ...], name: str) -> NDArray[Number]:
    little = np.dtype(kind).newbyteorder("<")
    if len(raw) != math.prod(shape) * little.itemsize:
        _reject(Reason.DECODE, f"{name} has {len(raw)} bytes, which is not {shape}")
    return np.frombuffer(raw, little).astype(kind).reshape(shape)


def _must_hold(finite: NDArray[np.bool_], name: str) -> None:
    if not finite.all():
        _reject(Reason.NONFINITE, f"{name} holds a value that is not finite, or out of range")


def _reject(reason: Reason, message: str) -> NoReturn:
    raise RejectedError(reason, message)
