"""Episodes on the wire: bit for bit what was sent, and a reason for everything else."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import fields, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammaml.backends.memory import MemoryRecord
from streammaml.backends.ports import Message
from streammaml.backends.wire_episodes import decode_episode, encode_episode
from streammaml.config import Config
from streammaml.errors import RejectedError
from streammaml.events import Episode, Reason

FEATURES = [{"name": "a"}, {"name": "day", "type": "category", "categories": ["Mon", "Tue"]}]
CONFIG = Config.build({"features": FEATURES, "label": {"classes": ["no", "yes", 3]}})
OPEN = Config.build({"features": FEATURES, "label": {"max_classes": 4}})
REGRESSION = Config.build({"features": FEATURES, "label": {"task": "regression"}})
WIDTH = 3


def episode(size: int = 20, seed: int = 0, **changes: Any) -> Episode:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((size, WIDTH)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    made = Episode(
        context="store-17",
        partition=3,
        labels=1000,
        support=size - 16 if size > 18 else 2,
        x=x,
        y=rng.integers(0, 3, size).astype(np.float64),
        offsets=np.sort(rng.integers(0, 2**60, size)),
        label_offsets=np.sort(rng.integers(0, 2**60, size)),
        shift=rng.standard_normal((2, WIDTH)),
        inverse=rng.random((2, WIDTH)),
        y_scale=rng.random(2),
        classes=("no", "yes", 3),
    )
    return replace(made, **changes)


def sent(made: Episode, config: Config = CONFIG) -> Message:
    message = encode_episode(made, config)
    assert message is not None
    return message


def record(value: bytes | None, key: bytes | None = b"store-17") -> MemoryRecord:
    return MemoryRecord("episodes", 0, 0, 0, key, value, [])


def reason_of(value: bytes | None, config: Config = CONFIG, key: bytes | None = b"k") -> Reason:
    with pytest.raises(RejectedError) as caught:
        decode_episode(record(value, key), config)
    return caught.value.reason


def changed(**fields: Any) -> bytes:
    """The value of a good record, with some of it replaced on the wire."""
    raw = msgspec.msgpack.decode(sent(episode()).value or b"")
    return msgspec.msgpack.encode({**raw, **fields})


def same_bits(one: Episode, two: Episode) -> bool:
    for field in fields(Episode):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if isinstance(a, np.ndarray):
            if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes()):
                return False
        elif a != b or type(a) is not type(b):
            return False
    return True


@given(size=st.integers(3, 60), seed=st.integers(0, 2**32))
def test_an_episode_comes_back_bit_for_bit(size: int, seed: int) -> None:
    made = episode(size, seed)
    message = sent(made)
    found = decode_episode(record(message.value, message.key), CONFIG)

    assert same_bits(found, made)
    assert found.x.flags.writeable
    assert (message.topic, message.key) == (CONFIG.topics.episodes, b"store-17")


def test_the_types_of_classes_come_back() -> None:
    made = episode(classes=("3", 4, 2.5, True), y=np.full(20, 3.0))
    found = decode_episode(record(sent(made, OPEN).value), OPEN)

    assert [type(label) for label in found.classes] == [str, int, float, bool]
    assert found.classes == made.classes


def test_a_regression_has_values_and_no_classes() -> None:
    made = episode(classes=(), y=np.linspace(-5, 1e6, 20))
    found = decode_episode(record(sent(made, REGRESSION).value), REGRESSION)

    assert same_bits(found, made)


def test_an_array_of_another_layout_is_sent_as_it_reads() -> None:
    made = episode()
    turned = replace(made, x=np.asfortranarray(made.x), y=np.repeat(made.y, 2)[::2])

    assert sent(turned) == sent(made)


def test_an_episode_over_the_limit_is_not_made() -> None:
    limit = len(sent(episode()).value or b"") + len(b"store-17")
    fits = Config.build(CONFIG.model_dump(), {"worker": {"max_record_bytes": limit}})
    short = Config.build(CONFIG.model_dump(), {"worker": {"max_record_bytes": limit - 1}})

    assert encode_episode(episode(), fits) is not None
    assert encode_episode(episode(), short) is None
    assert reason_of(sent(episode()).value, short, b"store-17") is Reason.OVERSIZE


def test_other_features_or_classes_are_refused() -> None:
    value = sent(episode()).value

    assert reason_of(value, OPEN) is Reason.SCHEMA
    assert reason_of(value, REGRESSION) is Reason.SCHEMA
    assert reason_of(changed(classes='["yes","no",3]')) is Reason.SCHEMA
    assert reason_of(changed(classes="[]")) is Reason.SCHEMA


@pytest.mark.parametrize(
    ("name", "at"), [("x", 0), ("x", -1), ("shift", 0), ("inverse", 1), ("y_scale", 1), ("y", 3)]
)
@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
def test_what_is_not_finite_is_refused(name: str, at: int, value: float) -> None:
    array = getattr(episode(), name).copy()
    with np.errstate(over="ignore"):
        array.flat[at] = value
    if name in ("y", "shift", "inverse", "y_scale") and value == 1e300:
        array.flat[at] = np.nan

    assert reason_of(sent(episode(**{name: array})).value) is Reason.NONFINITE


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e13])
def test_the_values_of_a_regression_are_finite_and_in_range(value: float) -> None:
    made = episode(classes=(), y=np.full(20, value))

    assert reason_of(sent(made, REGRESSION).value, REGRESSION) is Reason.NONFINITE


@pytest.mark.parametrize(
    "fields",
    [
        {"format": 2},
        {"format": 2**63},
        {"support": 1},
        {"support": 20},
        {"support": -3},
        {"support": 2**63},
        {"partition": -1},
        {"partition": 2**31},
        {"labels": 19},
        {"labels": 2**53},
        {"labels": 2**63 - 1},
        {"labels": 2**63},
        {"x": b""},
        {"x": b"\0" * (20 * WIDTH * 4 - 4)},
        {"x": b"\0" * (20 * (WIDTH + 1) * 4)},
        {"y": b""},
        {"y": b"\0" * 161},
        {"y": struct.pack("<20d", *[3.0] * 20)},
        {"y": struct.pack("<20d", *[0.5] * 20)},
        {"y": struct.pack("<20d", *[-1.0] * 20)},
        {"offsets": b"\0" * 152},
        {"offsets": struct.pack("<20q", *[-2] * 20)},
        {"label_offsets": b"\0" * 168},
        {"shift": b"\0" * 24},
        {"inverse": b"\0" * 96},
        {"y_scale": b"\0" * 8},
        {"classes": "[1, 1.0, true]"},
        {"classes": "[null, 1, 2]"},
        {"classes": "[1, 2, 9223372036854775808]"},
        {"classes": "[1, 2, -9223372036854775809]"},
        {"classes": '["no","yes",3,4]'},
        {"classes": "{"},
        {"classes": "[" * 100_000},
        {"classes": "[" + "9" * 10_000 + "]"},
        {"x": [1, 2]},
        {"schema": 5},
        {"y": None},
    ],
    ids=lambda fields: ",".join(f"{k}={str(v)[:20]}" for k, v in fields.items()),
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, Any]) -> None:
    assert reason_of(changed(**fields)) is Reason.DECODE


@pytest.mark.parametrize("key", [None, b"\xff", b"k" * 1025])
def test_the_key_is_the_context(key: bytes | None) -> None:
    assert reason_of(sent(episode()).value, key=key) is Reason.DECODE


def test_a_field_more_is_passed_over() -> None:
    made = decode_episode(record(changed(new=[1, {"a": 2}])), CONFIG)

    assert same_bits(made, episode())


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\x81\xa1x\xc6\xff\xff\xff\xff",
        b"\x81\xa1x\xdd\xff\xff\xff\xff",
        b"\x81\xa1n\xdd\xff\xff\xff\xff",
        b"\x81\xa7classes\xdb\xff\xff\xff\xff",
        b"\x81\xa7classes\xdd\xff\xff\xff\xff",
        b"\x81\xa1n" + b"\x91" * 200_000,
    ],
)
def test_a_length_that_lies_costs_no_memory(value: bytes | None) -> None:
    tracemalloc.start()
    try:
        assert reason_of(value) is Reason.DECODE
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300), st.one_of(st.none(), st.binary(max_size=8)))
def test_any_bytes_have_a_reason(value: bytes, key: bytes | None) -> None:
    assert reason_of(value, key=key) in Reason


GOOD = sent(episode()).value or b""


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=8))
def test_a_good_record_with_other_bytes_is_an_episode_or_has_a_reason(
    edits: list[tuple[int, int]],
) -> None:
    value = bytearray(GOOD)
    for at, byte in edits:
        value[at] = byte
    try:
        found = decode_episode(record(bytes(value)), CONFIG)
    except RejectedError:
        return
    assert not np.isinf(found.x).any()
    assert np.isin(found.y, (0, 1, 2)).all()
    assert all(np.isfinite(a).all() for a in (found.shift, found.inverse, found.y_scale))


@given(st.integers(0, len(GOOD) - 1))
def test_a_record_cut_short_has_a_reason(length: int) -> None:
    assert reason_of(GOOD[:length]) is Reason.DECODE
