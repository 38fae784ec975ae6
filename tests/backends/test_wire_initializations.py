"""Versions on the wire: what is read is what was published, and nothing else is taken."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from streammaml.backends.memory import MemoryRecord
from streammaml.backends.ports import Headers, Message
from streammaml.backends.wire_initializations import (
    REPORT_BYTES,
    Published,
    initialization_messages,
    key_of_record,
    read_published,
    rollback_message,
    tombstone,
)
from streammaml.errors import InitializationError, NonFiniteError
from streammaml.events import Float32s, Task
from streammaml.initialization import Initialization, Spec, draw, encode

SPEC = Spec(task=Task.CLASSIFICATION, sizes=(4, 3, 2), steps=2, schema="s" * 16)
CUSTOM = replace(SPEC, sizes=(4, 2), network="a.b:c", parameters=(("w", (4, 2)), ("b", (2,))))
REPORT = {"loss": 0.5, "episodes": 512, "verdict": "better", "rows": [1, None]}


def version(number: int = 7, parent: int = 6, **changes: Any) -> Initialization:
    made = draw(SPEC, seed=1, classes=("no", 3))
    return replace(made, version=number, parent=parent, **changes)


def record(message: Message, **changes: Any) -> MemoryRecord:
    made = MemoryRecord("i", 0, 0, 0, message.key, message.value, list(message.headers))
    return made._replace(**changes)


def of(payload: bytes | None, key: bytes | None = b"current", headers: Headers = ()) -> Published:
    return read_published(MemoryRecord("i", 0, 0, 0, key, payload, headers))


def saying(tensors: Mapping[str, Float32s], **changes: Any) -> bytes:
    """A payload whose own header says something else."""
    raw = encode(version())
    length = int.from_bytes(raw[:8], "little")
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
    said = {**json.loads(metadata["streammaml"]), **changes}
    return save(dict(tensors), metadata={"streammaml": json.dumps(said)})


def test_a_version_comes_back_bit_for_bit_under_both_keys() -> None:
    tensors = dict(version().tensors) | {"parameter_rates": np.full(23, -0.5, np.float32)}
    made = version(tensors=tensors, notes={"seed": "1"})

    messages = initialization_messages(made, REPORT, topic="i")

    assert [(m.topic, m.key) for m in messages] == [("i", b"v7"), ("i", b"current")]
    assert messages[0].value == messages[1].value == encode(made)
    for message in messages:
        found = read_published(record(message))
        assert found[1:5] == (7, 6, SPEC.fingerprint, "outer")
        assert found.report == REPORT
        assert found.digest == hashlib.sha256(message.value or b"").hexdigest()[:16]
        assert encode(found.initialization) == message.value


def test_every_header_is_there() -> None:
    for message in initialization_messages(version(), REPORT, by="me"):
        headers = dict(message.headers)
        assert json.loads(headers.pop("report")) == REPORT
        assert headers == {
            "version": b"7",
            "parent": b"6",
            "schema": SPEC.schema.encode(),
            "fingerprint": SPEC.fingerprint.encode(),
            "by": b"me",
        }


def test_a_rollback_makes_the_same_bytes_current() -> None:
    first, current = initialization_messages(version(), REPORT)
    message = rollback_message(read_published(record(first)), topic="i")
    found = read_published(record(message))

    assert (message.topic, message.key, message.value) == ("i", b"current", current.value)
    assert (found.version, found.by, found.report) == (7, "rollback", REPORT)


def test_a_tombstone_deletes_one_version() -> None:
    message = tombstone(12, topic="i")

    assert message == Message("i", b"v12", None)
    assert key_of_record(record(message)) == 12
    with pytest.raises(InitializationError, match="deleted"):
        read_published(record(message))


@pytest.mark.parametrize(
    ("key", "meaning"),
    [
        (b"current", "current"),
        (b"v0", 0),
        (b"v9223372036854775807", 2**63 - 1),
        (b"v9223372036854775808", None),
        (b"v01", None),
        (b"v-1", None),
        (b"v", None),
        (b"v1\n", None),
        (b"v\xd9\xa3", None),
        (b"Current", None),
        (b"", None),
        (None, None),
    ],
)
def test_a_key_is_current_or_a_version_or_nothing(key: bytes | None, meaning: object) -> None:
    assert key_of_record(MemoryRecord("i", 0, 0, 0, key, b"", [])) == meaning


def test_what_no_header_says_is_taken_from_the_payload() -> None:
    found = of(encode(version()))

    assert found[1:6] == (7, 6, SPEC.fingerprint, "", {})


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ([("version", b"8")], "header version"),
        ([("version", b"07")], "header version"),
        ([("version", b"7" * 1_000_000)], "header version"),
        ([("parent", b"7")], "header parent"),
        ([("schema", b"t")], "header schema"),
        ([("fingerprint", b"\xff")], "header fingerprint"),
        ([("version", b"7"), ("version", b"7")], "2 times"),
        ([("by", b"x" * 101)], "header by"),
        ([("report", b"x")], "header report"),
        ([("report", b"[]")], "header report"),
        ([("report", b'{"a":' + b"[" * 30_000)], "header report"),
        ([("report", b'{"a":"' + b"x" * REPORT_BYTES + b'"}')], "header report"),
    ],
)
def test_a_header_that_says_otherwise_is_refused(headers: Headers, why: str) -> None:
    with pytest.raises(InitializationError, match=why) as caught:
        of(encode(version()), headers=headers)
    assert len(str(caught.value)) < 1000


def test_a_header_of_another_name_is_passed_over() -> None:
    assert of(encode(version()), headers=[("traceparent", b"00-1")]).version == 7


@pytest.mark.parametrize("key", [b"v8", b"else", None])
def test_a_key_that_says_otherwise_is_refused(key: bytes | None) -> None:
    with pytest.raises(InitializationError, match="key"):
        of(encode(version()), key=key)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": -1},
        {"version": 2**63},
        {"parent": -2},
        {"parent": 2**70},
        {"classes": ["a", "b", "c"]},
        {"classes": [None]},
        {"classes": [[1]]},
        {"classes": [float("nan")]},
        {"classes": [2**63]},
        {"classes": ["\ud800"]},
        {"schema": "\ud800"},
    ],
)
def test_what_a_payload_says_of_itself_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(InitializationError):
        of(saying(version().tensors, **changes))


@pytest.mark.parametrize("number", [-1, 2**63])
def test_what_is_no_version_is_not_written(number: int) -> None:
    with pytest.raises(InitializationError):
        initialization_messages(version(number), {})


def test_a_tensor_that_is_not_finite_is_refused_by_name() -> None:
    weight = version().tensors["0.weight"].copy()
    weight[1, 1] = np.nan

    with pytest.raises(NonFiniteError, match=r"0\.weight"):
        of(saying({**version().tensors, "0.weight": weight}))


def test_a_report_beyond_the_limit_is_not_written() -> None:
    with pytest.raises(InitializationError, match="report"):
        initialization_messages(version(), {"a": "x" * REPORT_BYTES})


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": []},
        {"sizes": [4, 3, 10**12]},
        {"sizes": [10**9] * 1000},
        {"sizes": [4, -3, 2]},
        {"sizes": 5},
        {"steps": -2},
        {"steps": float("inf")},
        {"steps": float("nan")},
        {"steps": 10**4000},
        {"version": float("inf")},
        {"version": None},
        {"task": "guess"},
        {"classes": 3},
        {"notes": []},
        {"parameters": [["w"]], "network": "a:b"},
        {"network": "a:b", "parameters": [["w", [10**12]]]},
    ],
    ids=str,
)
def test_a_shape_that_lies_costs_no_memory(changes: dict[str, Any]) -> None:
    payload = saying(version().tensors, **changes)
    tracemalloc.start()
    try:
        with pytest.raises(InitializationError):
            of(payload)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_header_nested_too_deeply_is_refused() -> None:
    payload = save(dict(version().tensors), metadata={"streammaml": "[" * 200_000})

    with pytest.raises(InitializationError):
        of(payload)


@pytest.mark.parametrize(
    "payload",
    [
        None,
        b"",
        b"\xff" * 8,
        (2**40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"null",
        b"\x80\x04\x95cos\nsystem\n",
    ],
)
def test_what_is_no_safetensors_is_refused(payload: bytes | None) -> None:
    with pytest.raises(InitializationError):
        of(payload)


@given(st.binary(max_size=300), st.sampled_from([b"current", b"v7", b"", b"\xff"]))
def test_any_bytes_are_refused_in_words(payload: bytes, key: bytes) -> None:
    with pytest.raises(InitializationError):
        of(payload, key)


@pytest.mark.parametrize("spec", [SPEC, CUSTOM], ids=["built in", "custom"])
@given(data=st.data())
def test_a_good_record_with_other_bytes_is_whole_or_refused(spec: Spec, data: Any) -> None:
    tensors = {name: np.ones(shape, np.float32) for name, shape in spec.shapes().items()}
    tensors["rates"] = np.ones((spec.steps, len(tensors)), np.float32)
    good = encode(Initialization(spec=spec, tensors=tensors, version=7))
    payload = bytearray(good)
    place = st.integers(0, len(good) - 1)
    for at, byte in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=6)):
        payload[at] = byte
    length = data.draw(st.one_of(st.just(len(good)), place))
    try:
        found = of(bytes(payload[:length]))
    except InitializationError:
        return
    assert all(np.isfinite(tensor).all() for tensor in found.initialization.tensors.values())
    assert found.initialization.theta().size == sum(
        np.prod(shape, dtype=int) for shape in found.initialization.spec.shapes().values()
    )
