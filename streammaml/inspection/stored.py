"""What the topic ``state`` holds, read without a worker: all partitions, the latest of each key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np

from streammaml.backends.kafka import KafkaStateLog, TopicAdmin
from streammaml.backends.ports import StateLog
from streammaml.config import Config
from streammaml.errors import DamagedError, IncompatibleError, UnavailableError
from streammaml.inspection.running import the_largest
from streammaml.jobs import Tell, progress
from streammaml.learner import describe_records, fingerprint_of
from streammaml.learner.listing import GLANCE, Glances, column_of, describe_glances, sort_key, top
from streammaml.learner.snapshot import DETECTOR, LIGHT, WEIGHTS, Records, context_of, key_of
from streammaml.query import Query
from streammaml.recovery import BARRIER_KEY, Barrier, check_owner, read_barrier
from streammaml.sealed import unseal_any

OWN = b"@"
SLICE_S = 0.5
QUIET_LIMIT_S = 30.0

_T = TypeVar("_T")


class _Glance(NamedTuple):
    owner: bytes
    body: bytes
    """Its beginning; of a barrier, the sealed value."""
    size: int


def list_topic(config: Config, query: Query) -> dict[str, Any]:
    """:func:`list_stored` of this configuration's topic, with progress on standard error."""
    with _opened(config) as (log, partitions, tell):
        return list_stored(config, log, partitions, query, tell)


def find_in_topic(config: Config, name: str) -> dict[str, Any] | None:
    """:func:`find_stored` in this configuration's topic, with progress on standard error."""
    with _opened(config) as (log, partitions, tell):
        return find_stored(config, log, partitions, name, tell)


def list_stored(
    config: Config, log: StateLog, partitions: int, query: Query, tell: Tell
) -> dict[str, Any]:
    """The first contexts of all partitions, each as of its last barrier.

    IncompatibleError if another model or group wrote the state, DamagedError if it is not what was
    written, UnavailableError if the broker falls silent.
    """
    offsets: dict[str, int] = {}
    lines: list[dict[str, Any]] = []
    matched = contexts = 0
    for index in range(partitions):
        values = _latest(log, index, _glance, tell)
        if BARRIER_KEY in values:
            offsets[str(index)] = _barrier(config, values[BARRIER_KEY].body).offset
        names, records = _glances(config, values)
        contexts += len(names)
        chosen = top(column_of(records, names, query.sort), query)
        matched += chosen.matched
        places = {name: place for place, name in enumerate(names)}
        picked = records[np.array([places[name] for name in chosen.names], np.int64)]
        sizes = np.array([_stored_bytes(values, name) for name in chosen.names], np.int64)
        found = describe_glances(config, Glances(chosen.names, picked, sizes))
        lines += [line | {"partition": index} for line in found]
    tell(partitions, f"{contexts:,} contexts")
    lines.sort(key=lambda line: sort_key(query.sort, line))
    return {
        "source": "topic",
        "sort": query.sort.value,
        "filter": query.pattern,
        "matched": matched,
        "in_topic": contexts,
        "offsets": offsets,
        "contexts": lines[: query.limit],
    }


def find_stored(
    config: Config, log: StateLog, partitions: int, name: str, tell: Tell
) -> dict[str, Any] | None:
    """All about one context as of its partition's last barrier; None if none has it.

    Errors as for :func:`list_stored`.
    """
    wanted = {key_of(kind, name) for kind in (LIGHT, WEIGHTS, DETECTOR)}

    def keep(key: bytes, value: bytes) -> bytes | None:
        return value if key in wanted or key.startswith(OWN) else None

    found = []
    for index in range(partitions):
        values = _latest(log, index, keep, tell)
        offset = None
        if BARRIER_KEY in values:
            offset = _barrier(config, values[BARRIER_KEY]).offset
        state = describe_records(config, name, values)
        if state is not None:
            place = {"source": "topic", "partition": index, "offset": offset}
            found.append({**place, "state": state})
    tell(partitions, "")
    return the_largest(found)


@contextmanager
def _opened(config: Config) -> Iterator[tuple[StateLog, int, Tell]]:
    topic = config.topics.state
    with TopicAdmin(config) as admin:
        admin.require([topic])
        partitions = admin.partitions([topic])[topic]
    log = KafkaStateLog(config, config.kafka.instance)
    try:
        with progress(f"reading {topic}", partitions) as tell:
            yield log, partitions, tell
    finally:
        log.close()


def _latest(
    log: StateLog,
    index: int,
    keep: Callable[[bytes, bytes], _T | None],
    tell: Tell,
) -> dict[bytes, _T]:
    """What ``keep`` makes of the latest value of each key; None leaves the key out."""
    values: dict[bytes, _T] = {}
    reader = log.reader(index, 0)
    try:
        heard_at, read = time.monotonic(), 0
        while (before := reader.position) < reader.end:
            for record in reader.read(SLICE_S):
                read += 1
                if record.key is None:
                    continue
                kept = None if record.value is None else keep(record.key, record.value)
                if kept is None:
                    values.pop(record.key, None)
                else:
                    values[record.key] = kept
            now = time.monotonic()
            if reader.position > before:
                heard_at = now
            elif now - heard_at > QUIET_LIMIT_S:
                raise UnavailableError(
                    f"the broker sent nothing of partition {index} for {QUIET_LIMIT_S:g} s"
                )
            tell(index, f"partition {index}: {read:,} records")
    finally:
        reader.close()
    return values


def _barrier(config: Config, value: bytes) -> Barrier:
    """A partition's, whose model and group must be the configuration's."""
    barrier = read_barrier(value)
    check_owner(config, barrier)
    return barrier


def _glance(key: bytes, value: bytes) -> _Glance | None:
    """What a listing keeps of a record."""
    if key == BARRIER_KEY:
        return _Glance(b"", value, len(value))
    if key.startswith(OWN):
        return None
    owner, body = unseal_any(key, value)
    return _Glance(owner, bytes(body[: GLANCE.itemsize]), len(value))


def _stored_bytes(values: Mapping[bytes, _Glance], name: str) -> int:
    parts = (values.get(key_of(kind, name)) for kind in (LIGHT, WEIGHTS, DETECTOR))
    return sum(part.size for part in parts if part is not None)


def _glances(config: Config, values: Mapping[bytes, _Glance]) -> tuple[list[str], Records]:
    """Names and glances [n] of the contexts; IncompatibleError of another model."""
    fingerprint = fingerprint_of(config)
    light = {key: found for key, found in values.items() if key.startswith(LIGHT)}
    for key, found in light.items():
        if found.owner != fingerprint:
            raise IncompatibleError(
                f"the stored value of {key!r:.80} belongs to another model than the configuration's"
            )
        if len(found.body) != GLANCE.itemsize:
            raise DamagedError(f"the stored value of {key!r:.80} is damaged: it is too short")
    records = np.frombuffer(b"".join(found.body for found in light.values()), GLANCE)
    return [context_of(key) for key in light], records
