"""The wire formats of events and of what a worker says. Pure, and the only place that knows them.

Rule: what cannot be an event raises RejectedError with the reason a dead letter carries; nothing
else is raised for any bytes. Decoders are typed by the schema, so a wrong type is found here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, cast

import msgspec
import numpy as np

from streammaml.backends.ports import Message, Partition, Record
from streammaml.config import Config, Feature, FeatureType
from streammaml.errors import RejectedError
from streammaml.events import (
    Batch,
    Decisions,
    DriftLevel,
    Event,
    Floats,
    Label,
    Reason,
    Result,
    Task,
    Trigger,
)

Format = Literal["json", "msgpack"]
Encode = Callable[[Any], bytes]

CONTEXT_BYTES = 1024
KEY_BYTES = 16_384
"""A dead letter goes without a longer key: key and headers must fit beside the largest value."""

_TYPES = {
    FeatureType.NUMBER: float | None,
    FeatureType.BOOLEAN: bool | None,
    FeatureType.CATEGORY: str | int | float | bool | None,
}


def encoder(form: Format) -> Encode:
    return msgspec.json.encode if form == "json" else msgspec.msgpack.encode


class EventDecoder:
    """Bytes to :class:`Event`, for one schema."""

    def __init__(self, features: Sequence[Feature], form: Format, max_bytes: int) -> None:
        wire = event_type(features)
        decoder: msgspec.json.Decoder[Event] | msgspec.msgpack.Decoder[Event] = (
            msgspec.json.Decoder(wire) if form == "json" else msgspec.msgpack.Decoder(wire)
        )
        self._decode = decoder.decode
        self._form = form
        self._max_bytes = max_bytes

    def __call__(self, record: Record) -> Event:
        """Decode one record; its key is the context where the value names none."""
        value = record.value
        if value is None:
            raise RejectedError(Reason.DECODE, "no value: a tombstone is not an event")
        size = len(value) + len(record.key or b"")
        if size > self._max_bytes:
            raise RejectedError(
                Reason.OVERSIZE, f"{size} bytes; worker.max_record_bytes is {self._max_bytes}"
            )
        try:
            event = self._decode(value)
        except msgspec.ValidationError as error:
            raise RejectedError(Reason.SCHEMA, str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RejectedError(Reason.DECODE, f"not {self._form}: {error}") from error
        event.context = _context(event.context, record.key)
        return event

    def many(
        self, records: Sequence[Record]
    ) -> tuple[list[Event], list[int], list[tuple[int, RejectedError]]]:
        """Decode records: the events, the place of each, and what was rejected with its place."""
        events = self._all(records)
        if events is not None:
            return events, list(range(len(records))), []
        events, places, rejected = [], [], []
        for place, record in enumerate(records):
            try:
                events.append(self(record))
            except RejectedError as error:
                rejected.append((place, error))
            else:
                places.append(place)
        return events, places, rejected

    def _all(self, records: Sequence[Record]) -> list[Event] | None:
        """Decode records of which none is bad, at half the cost; None if that cannot be said."""
        values = [value for record in records if (value := record.value) is not None]
        if len(values) < len(records):
            return None
        size = sum(map(len, values)) + sum(len(record.key or b"") for record in records)
        if size > self._max_bytes:  # then one of them may be, by itself
            return None
        try:
            events = list(map(self._decode, values))
            for event, record in zip(events, records, strict=True):
                context = event.context
                if type(context) is not str or len(context) > CONTEXT_BYTES // 4:
                    event.context = _context(context, record.key)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RejectedError):
            return None
        return events


def _context(given: str | int | None, key: bytes | None) -> str | None:
    """The event's context as text, or the record key; short, since outputs repeat it."""
    if given is None and key is not None:
        if len(key) > CONTEXT_BYTES:
            raise RejectedError(Reason.CONTEXT, f"the key has more than {CONTEXT_BYTES} bytes")
        try:
            return key.decode()
        except UnicodeDecodeError as error:
            raise RejectedError(Reason.CONTEXT, f"the key is not UTF-8: {error}") from error
    if given is None or (type(given) is str and len(given) <= CONTEXT_BYTES // 4):
        return given
    context = str(given)
    if len(context.encode(errors="replace")) > CONTEXT_BYTES:
        raise RejectedError(Reason.CONTEXT, f"the context has more than {CONTEXT_BYTES} bytes")
    return context


def event_type(features: Sequence[Feature]) -> type[Event]:
    """The wire type of an event: ``features`` is a struct with the schema's names and types.

    Names of the schema that are absent are missing; names it does not have are ignored.
    """
    fields = [
        (f"f{i}", _TYPES[f.type], msgspec.field(default=None, name=f.name))
        for i, f in enumerate(features)
    ]
    struct = msgspec.defstruct("Features", fields, gc=False)
    wire = msgspec.defstruct("WireEvent", [("features", struct | None, None)], bases=(Event,))
    return cast(type[Event], wire)


def timestamp_s(event: Event) -> float | None:
    """Seconds since 1970; a time without a zone is UTC."""
    if isinstance(event.timestamp, datetime):
        moment = event.timestamp
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return event.timestamp


class Prediction(msgspec.Struct, omit_defaults=True):
    """One record of the predictions topic; ``id`` is topic-partition-offset of its event."""

    id: str
    event: str | int | None
    context: str
    topic: str
    partition: int
    offset: int
    initialization: int
    predicted: Label | None = msgspec.field(default=None, name="class")
    probabilities: dict[str, float] | None = None
    value: float | None = None
    spread: float | None = None


class Adaptation(msgspec.Struct, omit_defaults=True):
    """One record of the adaptations topic: a drift, an adaptation, or both."""

    id: str
    context: str
    topic: str
    partition: int
    offset: int
    initialization: int
    level: str
    trigger: str
    result: str
    support: int
    loss: float
    timestamp: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None


class OutputEncoder:
    """Decisions to messages."""

    def __init__(self, config: Config) -> None:
        self._encode = encoder(config.worker.format)
        self._topics = config.topics
        self._regression = config.label.task is Task.REGRESSION
        self._open = not config.label.classes

    def predictions(
        self,
        partition: Partition,
        offsets: Sequence[int],
        events: Sequence[Event],
        batch: Batch,
        decisions: Decisions,
        classes: Sequence[Label],
        names: Sequence[str],
    ) -> list[Message]:
        """One message for each event; ``classes`` and their ``names`` by slot."""
        topic, index = partition.topic, partition.index
        head = f"{topic}-{index}-"
        versions = decisions.versions.tolist()
        encode, out = self._encode, self._topics.predictions
        served = (
            self._values(decisions)
            if self._regression
            else self._classes(decisions, classes, names)
        )
        return [
            Message(
                out,
                context.encode(),
                encode(
                    Prediction(
                        f"{head}{offset}", event.id, context, topic, index, offset, version, *answer
                    )
                ),
            )
            for offset, event, context, version, answer in zip(
                offsets, events, batch.contexts, versions, served, strict=True
            )
        ]

    def _classes(
        self, decisions: Decisions, classes: Sequence[Label], names: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        """Of an open list, the classes that existed before the event: others have no share."""
        if not classes:
            return [(None, {})] * len(decisions.predictions)
        shares = decisions.predictions[:, : len(classes)].astype(np.float64)
        rows = shares.round(6).tolist()
        if self._open and not shares.all():
            return [
                (classes[int(share.argmax())], _with_share(names, share, row))
                if share.any()
                else (None, {})
                for share, row in zip(shares, rows, strict=True)
            ]
        best = shares.argmax(1).tolist()
        return [
            (classes[k], dict(zip(names, row, strict=True)))
            for k, row in zip(best, rows, strict=True)
        ]

    def _values(self, decisions: Decisions) -> list[tuple[Any, ...]]:
        values = decisions.predictions[:, 0].astype(np.float64).tolist()
        return [
            (None, None, value, spread)
            for value, spread in zip(values, decisions.spread.tolist(), strict=True)
        ]

    def adaptations(
        self,
        partition: Partition,
        offsets: Sequence[int],
        events: Sequence[Event],
        batch: Batch,
        decisions: Decisions,
    ) -> list[Message]:
        """One message for each drift and each adaptation."""
        told = (decisions.levels == DriftLevel.DRIFT) | (decisions.triggers != Trigger.NONE)
        return [
            self._adaptation(partition, offsets[i], events[i], batch.contexts[i], decisions, i)
            for i in np.flatnonzero(told).tolist()
        ]

    def _adaptation(
        self,
        partition: Partition,
        offset: int,
        event: Event,
        context: str,
        decisions: Decisions,
        i: int,
    ) -> Message:
        topic, index = partition.topic, partition.index
        record = Adaptation(
            id=f"{topic}-{index}-{offset}",
            context=context,
            topic=topic,
            partition=index,
            offset=offset,
            initialization=int(decisions.versions[i]),
            level=DriftLevel(decisions.levels[i]).name.lower(),
            trigger=Trigger(decisions.triggers[i]).name.lower(),
            result=Result(decisions.results[i]).name.lower(),
            support=int(decisions.support[i]),
            loss=float(decisions.loss[i]),
            timestamp=timestamp_s(event),
            loss_before=_finite(decisions.loss_before[i]),
            loss_after=_finite(decisions.loss_after[i]),
        )
        return Message(self._topics.adaptations, context.encode(), self._encode(record))

    def dead_letter(
        self, partition: Partition, record: Record, reason: Reason, message: str
    ) -> Message:
        """The original key and bytes; the headers say where it was and why it is here.

        A record over the cap travels by reference: headers only.
        """
        headers = [
            ("topic", partition.topic.encode()),
            ("partition", str(partition.index).encode()),
            ("offset", str(record.offset).encode()),
            ("error", reason.encode()),
            ("message", message.encode(errors="replace")[:1000]),
        ]
        value = b"" if reason is Reason.OVERSIZE else record.value
        key = record.key
        if key is not None and len(key) > KEY_BYTES:
            key = None
        if value is None and key is None:
            value = b""  # Kafka takes no record without both
        return Message(self._topics.dead_letters, key, value, headers)

    def unreadable(self, partition: Partition, offset: int, next_offset: int) -> Message:
        """Offsets that the client cannot decode, by reference: headers only."""
        last = next_offset - 1
        headers = [
            ("topic", partition.topic.encode()),
            ("partition", str(partition.index).encode()),
            ("offset", str(offset).encode()),
            ("last_offset", str(last).encode()),
            ("error", Reason.DECODE.encode()),
            ("message", b"the client cannot decode what the broker holds here"),
        ]
        return Message(self._topics.dead_letters, None, b"", headers)


def _with_share(names: Sequence[str], share: Floats, row: list[float]) -> dict[str, float]:
    return {name: p for name, p, exact in zip(names, row, share, strict=True) if exact > 0}


def _finite(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None
