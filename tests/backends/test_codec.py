"""The wire formats: every byte string is an event or has a reason."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammaml.backends.codec import EventDecoder, OutputEncoder, timestamp_s
from streammaml.backends.memory import MemoryRecord
from streammaml.backends.ports import Partition
from streammaml.config import Config
from streammaml.errors import RejectedError
from streammaml.events import Event, Reason
from streammaml.learner import Learner
from tests import wire

CONFIG = Config.build(
    {
        "features": [
            {"name": "temp °C"},
            {"name": "promo", "type": "boolean"},
            {"name": "day", "type": "category", "categories": ["Mon", "Tue"]},
        ],
        "label": {"classes": ["no", "yes"]},
    }
)
PARTITION = Partition("events", 3)


def record(value: bytes | None, key: bytes | None = None, offset: int = 7) -> MemoryRecord:
    return MemoryRecord("events", 3, offset, 0, key, value, [])


def decode(value: bytes | None, key: bytes | None = None, form: Any = "json") -> Event:
    return EventDecoder(CONFIG.features, form, 1000)(record(value, key))


def reason_of(value: bytes | None, form: Any = "json") -> Reason:
    with pytest.raises(RejectedError) as caught:
        decode(value, form=form)
    return caught.value.reason


def test_an_event_is_decoded_by_the_names_of_the_schema() -> None:
    event = decode(
        b'{"id": "e", "context": "c", "timestamp": "2026-11-22T10:00:00Z", "new": 1,'
        b'"features": {"temp \xc2\xb0C": 3, "promo": true, "day": "Tue", "x": []}, "label": 3.0}'
    )

    assert msgspec.structs.astuple(event.features) == (3.0, True, "Tue")
    assert (event.id, event.context, event.label) == ("e", "c", 3.0)
    assert timestamp_s(event) == 1795341600.0


def test_absent_and_null_numbers_are_missing() -> None:
    event = decode(b'{"context": "c", "features": {"temp \xc2\xb0C": null}}')

    assert msgspec.structs.astuple(event.features) == (None, None, None)
    assert event.label is None


def test_the_record_key_is_the_context_where_the_event_names_none() -> None:
    assert decode(b'{"features": {}}', key=b"store-17").context == "store-17"
    assert decode(b'{"features": {}, "context": 5}', key=b"k").context == "5"
    assert decode(b'{"features": {}}').context is None


def test_a_time_without_zone_is_utc_and_a_number_is_seconds() -> None:
    assert timestamp_s(decode(b'{"timestamp": "1970-01-01T00:01:00"}')) == 60.0
    assert timestamp_s(decode(b'{"timestamp": 12.5}')) == 12.5
    assert timestamp_s(decode(b"{}")) is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.DECODE),
        (b"", Reason.DECODE),
        (b"{", Reason.DECODE),
        (b"\xff\xfe", Reason.DECODE),
        (b'{"context": "\xff"}', Reason.DECODE),
        (b'{"features": {"promo": NaN}}', Reason.DECODE),
        (b'{"x": ' + b"[" * 900, Reason.DECODE),
        (b"[]", Reason.SCHEMA),
        (b'{"features": 3}', Reason.SCHEMA),
        (b'{"features": {"promo": 1}}', Reason.SCHEMA),
        (b'{"features": {"promo": "yes"}}', Reason.SCHEMA),
        (b'{"features": {"temp \xc2\xb0C": "warm"}}', Reason.SCHEMA),
        (b'{"features": {"temp \xc2\xb0C": true}}', Reason.SCHEMA),
        (b'{"context": {}}', Reason.SCHEMA),
        (b'{"label": []}', Reason.SCHEMA),
        (b'{"timestamp": "yesterday"}', Reason.SCHEMA),
        (b'{"id": "' + b"x" * 1000 + b'"}', Reason.OVERSIZE),
    ],
)
def test_what_is_no_event_has_its_reason(value: bytes | None, reason: Reason) -> None:
    assert reason_of(value) is reason


@given(st.binary(max_size=200), st.sampled_from(["json", "msgpack"]))
def test_any_bytes_are_an_event_or_rejected(value: bytes, form: str) -> None:
    try:
        event = decode(value, form=form)
    except RejectedError:
        return
    assert isinstance(event, Event)


def test_message_pack_carries_the_same_event() -> None:
    fields = {"context": "c", "features": {"temp °C": 1.5, "promo": False}, "label": "yes"}

    packed = decode(msgspec.msgpack.encode(fields), form="msgpack")

    assert repr(packed) == repr(decode(json.dumps(fields).encode()))
    assert reason_of(b"\xc1", form="msgpack") is Reason.DECODE


def played(settings: Config, values: list[bytes]) -> tuple[list[Any], list[Any]]:
    """The predictions and adaptations of these events, decoded."""
    learner = Learner(settings, wire.initialization(settings))
    events = [EventDecoder(settings.features, "json", 10_000)(record(v)) for v in values]
    collated = learner.collate(events)
    decisions = learner.step(collated.batch)
    encoder = OutputEncoder(settings)
    offsets = list(range(100, 100 + len(values)))
    labels = learner.labels
    predictions = encoder.predictions(
        PARTITION, offsets, events, collated.batch, decisions, labels.classes, labels.names
    )
    adaptations = encoder.adaptations(PARTITION, offsets, events, collated.batch, decisions)
    assert all(m.key == b"shop" for m in predictions + adaptations)
    return (
        [json.loads(m.value or b"") for m in predictions],
        [json.loads(m.value or b"") for m in adaptations],
    )


def test_a_prediction_names_its_event_and_its_probabilities() -> None:
    (first, *_), _ = played(wire.config(), [wire.event(0), wire.event(1)])

    assert {k: first[k] for k in ("id", "event", "context", "topic", "partition", "offset")} == {
        "id": "events-3-100",
        "event": "e-0",
        "context": "shop",
        "topic": "events",
        "partition": 3,
        "offset": 100,
    }
    assert first["class"] == max(first["probabilities"], key=first["probabilities"].get)
    assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert first["initialization"] == 0
    assert "value" not in first


def test_a_regression_gives_a_value_with_its_spread() -> None:
    settings = wire.config(label={"classes": [], "task": "regression"})
    values = [wire.event(i, label=10.0 + i) for i in range(3)]

    predictions, _ = played(settings, values)

    assert [p["value"] for p in predictions[1:]] == [10.0, pytest.approx(10.5, abs=0.5)]
    assert predictions[1]["spread"] > 0
    assert "class" not in predictions[0]


def test_an_open_class_is_named_once_it_was_seen() -> None:
    settings = wire.config(label={"classes": []})

    labels = ["red", "blue", "red"]
    predictions, _ = played(settings, [wire.event(i, label=x) for i, x in enumerate(labels)])

    assert "class" not in predictions[0]
    assert [set(p["probabilities"]) for p in predictions] == [set(), {"red"}, {"red", "blue"}]


def test_an_open_list_without_any_class_yet_predicts_none() -> None:
    settings = wire.config(label={"classes": []})

    predictions, _ = played(settings, [wire.event(i, label=None) for i in range(3)])

    assert [p["probabilities"] for p in predictions] == [{}, {}, {}]
    assert all("class" not in p for p in predictions)


def test_a_context_that_outputs_could_not_repeat_is_rejected() -> None:
    assert decode(b'{"context": "' + b"x" * 900 + b'"}').context == "x" * 900
    for value, key in [
        (b'{"features": {}, "context": "\xc3\xa9' + b"\xc3\xa9" * 520 + b'"}', None),
        (b'{"features": {}}', b"k" * 1025),
        (b'{"features": {}}', b"\xff\xfe"),
    ]:
        with pytest.raises(RejectedError) as caught:
            EventDecoder(CONFIG.features, "json", 10_000)(record(value, key))
        assert caught.value.reason is Reason.CONTEXT


def test_an_adaptation_says_when_and_why() -> None:
    _, (warmup, *_) = played(wire.config(), [wire.event(i) for i in range(3)])

    assert warmup["id"] == "events-3-101"
    assert (warmup["level"], warmup["trigger"], warmup["result"]) == (
        "stable",
        "warmup",
        "accepted",
    )
    assert warmup["support"] == 2
    assert warmup["timestamp"] == 1795341600.0
    assert warmup["loss_after"] < warmup["loss_before"]


def test_a_dead_letter_keeps_the_bytes_and_says_where_and_why() -> None:
    letter = OutputEncoder(CONFIG).dead_letter(
        PARTITION, record(b"{", key=b"k"), Reason.DECODE, "not json"
    )

    assert (letter.topic, letter.key, letter.value) == ("dead-letters", b"k", b"{")
    assert dict(letter.headers) == {
        "topic": b"events",
        "partition": b"3",
        "offset": b"7",
        "error": b"decode",
        "message": b"not json",
    }


def test_an_oversize_record_travels_by_reference() -> None:
    letter = OutputEncoder(CONFIG).dead_letter(
        PARTITION, record(b"x" * 2000), Reason.OVERSIZE, "too large"
    )

    assert letter.value == b""
    assert dict(letter.headers)["offset"] == b"7"


def test_a_dead_letter_goes_without_a_key_too_long_to_fit() -> None:
    letter = OutputEncoder(CONFIG).dead_letter(
        PARTITION, record(b"{", key=b"k" * 20_000), Reason.DECODE, "not json"
    )

    assert (letter.key, letter.value) == (None, b"{")


def test_probabilities_of_classes_not_seen_yet_are_absent() -> None:
    settings = wire.config(label={"classes": [], "max_classes": 5})

    predictions, _ = played(settings, [wire.event(i, label="a") for i in range(2)])

    assert predictions[1]["probabilities"] == {"a": 1.0}
    assert np.isclose(sum(predictions[1]["probabilities"].values()), 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    wire.event(0),
                    b'{"features": {}}',
                    b'{"features": {}, "context": 5, "label": 1}',
                    b'{"features": {}, "context": "' + b"x" * 1100 + b'"}',
                    b"{",
                    b'{"features": 3}',
                    b"x" * 3000,
                    None,
                ]
            ),
            st.sampled_from([None, b"key", b"\xff", b"k" * 1500]),
        ),
        max_size=6,
    )
)
def test_many_records_at_once_are_decoded_as_each_by_itself(
    pairs: list[tuple[bytes | None, bytes | None]],
) -> None:
    decoder = EventDecoder(wire.config().features, "json", 2000)
    records = [record(value, key, offset) for offset, (value, key) in enumerate(pairs)]

    events, places, rejected = decoder.many(records)

    alone: list[Event | Reason] = []
    for one in records:
        try:
            alone.append(decoder(one))
        except RejectedError as error:
            alone.append(error.reason)
    together: list[Event | Reason | None] = [None] * len(records)
    for place, event in zip(places, events, strict=True):
        together[place] = event
    for place, refused in rejected:
        together[place] = refused.reason
    assert together == alone
