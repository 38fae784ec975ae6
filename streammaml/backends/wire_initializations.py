"""The wire format of ``initializations``: versions, and the current one. Pure, no torch.

The topic is compacted. A version N is the record ``v<N>``; the one to serve is ``current``, with
the same bytes as its version. The value is safetensors, and it decides: what the headers say of it
must agree, or the record is refused; a header that is absent says nothing. A record without a
value deletes its key.

Headers: ``version``, ``parent``, ``schema`` and ``fingerprint`` (of the spec) repeat the payload,
``by`` says who published and ``report`` what its judge found, as JSON.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from streammaml.backends.ports import Message, Record
from streammaml.config import Config
from streammaml.errors import InitializationError
from streammaml.events import is_wide
from streammaml.initialization import Initialization, decode, encode

CURRENT: Final = "current"
ROLLBACK: Final = "rollback"
"""Published by an operator."""
DIGEST_CHARACTERS = 16
REPORT_BYTES = 32_768
_BY_BYTES = 100
_MAX_VERSION = 2**63 - 1
_VERSION = re.compile(rb"v(0|[1-9][0-9]{0,18})")
TWIN = "another outer loop of this group runs: give each its own outer.group, or stop one"
"""Why a publisher was fenced."""
_report = msgspec.json.Decoder(dict[str, Any])


def publisher_id(config: Config) -> str:
    """The name by which the publishers of a group fence each other."""
    return f"{config.outer.group or config.kafka.group}-outer"


class Published(NamedTuple):
    """One record of the topic, checked."""

    initialization: Initialization
    version: int
    parent: int
    fingerprint: str
    """Of the spec: what it was made for."""
    by: str
    report: Mapping[str, Any]
    digest: str
    """Of the payload: the first characters of its SHA-256 in hexadecimal."""


def initialization_messages(
    initialization: Initialization,
    report: Mapping[str, Any],
    *,
    by: str = "outer",
    topic: str = "",
) -> list[Message]:
    """The version, and the version as the current one. A publisher knows the topic by itself."""
    payload = encode(initialization)
    headers = _headers(initialization, by, report)
    version = _key(initialization.version)
    return [Message(topic, key, payload, headers) for key in (version, CURRENT.encode())]


def rollback_message(published: Published, *, by: str = ROLLBACK, topic: str = "") -> Message:
    """A version that is there, as the current one again."""
    initialization = published.initialization
    headers = _headers(initialization, by, published.report)
    return Message(topic, CURRENT.encode(), encode(initialization), headers)


def tombstone(version: int, *, topic: str = "") -> Message:
    """Deletes a version."""
    return Message(topic, _key(version), None)


def key_of_record(record: Record) -> Literal["current"] | int | None:
    """What a record is about; None: nothing that this format knows."""
    key = record.key or b""
    if key == CURRENT.encode():
        return CURRENT
    found = _VERSION.fullmatch(key)
    version = int(found[1]) if found else -1
    return version if 0 <= version <= _MAX_VERSION else None


def read_published(record: Record) -> Published:
    """What a record holds; InitializationError, or one of its kinds, if it cannot be used."""
    payload, key = record.value, key_of_record(record)
    if key is None:
        raise InitializationError(f"the key {(record.key or b'')[:100]!r} is no version")
    if payload is None:
        raise InitializationError(f"no value: {key} was deleted")
    initialization = decode(payload)
    _check(initialization)
    if key not in (CURRENT, initialization.version):
        raise InitializationError(f"the key says v{key}, the payload {initialization.version}")
    for name, value in _repeated(initialization):
        _agree(name, value, record)
    return Published(
        initialization=initialization,
        version=initialization.version,
        parent=initialization.parent,
        fingerprint=initialization.spec.fingerprint,
        by=_by(_one("by", record)),
        report=_report_of(_one("report", record)),
        digest=hashlib.sha256(payload).hexdigest()[:DIGEST_CHARACTERS],
    )


def _key(version: int) -> bytes:
    return b"v%d" % version


def _headers(
    initialization: Initialization, by: str, report: Mapping[str, Any]
) -> list[tuple[str, bytes]]:
    _check(initialization)
    written = msgspec.json.encode(dict(report))
    if len(written) > REPORT_BYTES:
        raise InitializationError(f"a report of {len(written)} bytes; {REPORT_BYTES} are the limit")
    return [*_repeated(initialization), ("by", by.encode()[:_BY_BYTES]), ("report", written)]


def _repeated(initialization: Initialization) -> list[tuple[str, bytes]]:
    return [
        ("version", b"%d" % initialization.version),
        ("parent", b"%d" % initialization.parent),
        ("schema", initialization.spec.schema.encode()),
        ("fingerprint", initialization.spec.fingerprint.encode()),
    ]


def _check(initialization: Initialization) -> None:
    """What the payload says of itself beside its tensors, which are checked."""
    version, parent = initialization.version, initialization.parent
    if not (0 <= version <= _MAX_VERSION and -1 <= parent <= _MAX_VERSION):
        raise InitializationError("its version or its parent is no version")
    classes, spec = initialization.classes, initialization.spec
    if not (_is_text(spec.schema) and _is_text(spec.network)):
        raise InitializationError("its schema or its network is no text")
    if not all(map(_is_label, classes)):
        raise InitializationError("one of its classes is no label")


def _is_label(value: object) -> bool:
    """Whether it can be written in every format."""
    return not is_wide(value) and (isinstance(value, int | float) or _is_text(value))


def _is_text(value: object) -> bool:
    """JSON can write half a surrogate pair, which no encoding takes."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _agree(name: str, value: bytes, record: Record) -> None:
    found = _one(name, record)
    if found not in (None, value):
        raise InitializationError(
            f"the header {name} says {(found or b'')[:100]!r}, the payload {value!r}"
        )


def _one(name: str, record: Record) -> bytes | None:
    """The value of a header; None if it is absent."""
    values = [value for key, value in record.headers if key == name]
    if len(values) > 1:
        raise InitializationError(f"the header {name} is there {len(values)} times")
    return values[0] if values else None


def _by(value: bytes | None) -> str:
    if value is None:
        return ""
    if len(value) > _BY_BYTES:
        raise InitializationError(f"the header by has {len(value)} bytes")
    return value.decode(errors="replace")


def _report_of(value: bytes | None) -> dict[str, Any]:
    if value is None:
        return {}
    if len(value) > REPORT_BYTES:
        raise InitializationError(f"the header report has {len(value)} bytes")
    try:
        return _report.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InitializationError(f"the header report: {error}") from error
