"""Where a partition goes on: from the barrier in ``state`` and the group's committed offset.

Rule: one path, walked at every assignment, after every error and at every start. What lies between
the barrier S and the committed offset C is replayed silently; never is anything skipped unsaid.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import structlog

from streammaml import sealed
from streammaml.backends.ports import Partition, Standing
from streammaml.config import Config
from streammaml.errors import DamagedError, GapError, IncompatibleError
from streammaml.learner.snapshot import description_of, differences, fingerprint_of

log = structlog.get_logger(__name__)

BARRIER_KEY = b"@partition"


class Barrier(msgspec.Struct, frozen=True, kw_only=True):
    """The record ``@partition``: the one offset at which all of a partition's state stands."""

    offset: int
    """S: every event below it is in the state, none at or above it."""
    group: str
    version: int
    topic_id: str
    partitions: int
    model: dict[str, Any]


class Plan(NamedTuple):
    start: int
    """S: read from here."""
    live_from: int
    """C: below it nothing is published or counted."""


def write_barrier(config: Config, offset: int, version: int, standing: Standing) -> bytes:
    barrier = Barrier(
        offset=offset,
        group=config.kafka.group,
        version=version,
        topic_id=standing.topic_id,
        partitions=standing.partitions,
        model=description_of(config),
    )
    return sealed.seal(BARRIER_KEY, fingerprint_of(config), msgspec.json.encode(barrier))


def read_barrier(value: bytes) -> Barrier:
    """DamagedError where it is none, IncompatibleError where another release wrote it."""
    try:
        return msgspec.json.decode(sealed.unseal_any(BARRIER_KEY, value)[1], type=Barrier)
    except msgspec.DecodeError as error:
        raise DamagedError(f"the record {BARRIER_KEY.decode()} is no barrier: {error}") from error


def check_owner(config: Config, barrier: Barrier) -> None:
    """IncompatibleError, naming the difference and the cure, if another group or model wrote it."""
    if barrier.group != config.kafka.group:
        raise IncompatibleError(
            f"the state in {config.topics.state!r} belongs to group {barrier.group!r}: give group "
            f"{config.kafka.group!r} a topic of its own (--set topics.state=…)"
        )
    ours = description_of(config)
    if barrier.model != ours:
        found = "; ".join(differences(barrier.model, ours))
        raise IncompatibleError(
            f"the state in {config.topics.state!r} was written for another model: {found}. Put the "
            "configuration back, or start anew with another topic (--set topics.state=…) and, to "
            "learn from the past, another group"
        )


def plan(partition: Partition, standing: Standing, barrier: Barrier | None, config: Config) -> Plan:
    """Where to read on and from where on to publish.

    GapError where what follows is gone, unless ``kafka.on_gap`` accepts that.
    """
    kafka = config.kafka
    name = f"{partition.topic}-{partition.index}"
    accepts = kafka.on_gap == "accept"
    committed = standing.committed
    if barrier is None:
        if committed is None:
            first = standing.beginning if kafka.start == "earliest" else standing.end
            return Plan(first, first)
        if config.state.enabled and committed > standing.beginning:
            log.warning("no_state", partition=name, committed=committed, note="starting anew there")
        start = _held(name, "group " + repr(kafka.group), committed, standing, accepts)
        return Plan(start, start)
    _check_topic(name, standing, barrier, config)
    if barrier.topic_id != standing.topic_id:  # accepted: its offsets mean nothing here
        return Plan(standing.beginning, standing.beginning)
    start = _held(name, "the state", barrier.offset, standing, accepts)
    if committed is None:
        log.warning("offset_expired", partition=name, barrier=barrier.offset)
        return Plan(start, start)
    if committed != barrier.offset:
        log.info("goes_on", partition=name, barrier=barrier.offset, committed=committed)
    if committed < barrier.offset and config.worker.delivery == "exactly_once" and not accepts:
        raise GapError(
            f"group {kafka.group!r} stands at offset {committed} of {name}, and the state already "
            f"holds what is below {barrier.offset}: the group's offset was set back. To go on at "
            f"{barrier.offset}: --set kafka.on_gap=accept. To learn again from {committed}: "
            "another topics.state"
        )
    return Plan(start, max(start, committed))


def _held(name: str, who: str, offset: int, standing: Standing, accepts: bool) -> int:
    """``offset`` if the broker still has what follows it; else the first it has, if accepted."""
    beginning, end = standing.beginning, standing.end
    if beginning <= offset <= end:
        return offset
    if offset < beginning:
        lost = f"the broker holds {beginning} and later: {beginning - offset} records are lost"
    else:
        lost = f"it ends at {end}: it was made anew or cut"
    if not accepts:
        raise GapError(
            f"{who} goes on at offset {offset} of {name}, but {lost}. "
            f"To go on at {beginning}: --set kafka.on_gap=accept"
        )
    log.warning("gap_accepted", partition=name, offset=offset, beginning=beginning, end=end)
    return beginning


def _check_topic(name: str, standing: Standing, barrier: Barrier, config: Config) -> None:
    if barrier.topic_id != standing.topic_id:
        if config.worker.delivery == "at_least_once":
            raise GapError(
                f"the topic of {name} was deleted and made again, and its offsets tell which "
                "events the state holds: start anew with another topics.state"
            )
        if config.kafka.on_gap != "accept":
            raise GapError(
                f"the topic of {name} was deleted and made again since the state was written. To "
                f"go on at its offset {standing.beginning} with that state: "
                "--set kafka.on_gap=accept"
            )
        log.warning("new_topic_accepted", partition=name)
    check_partitions(name, barrier.partitions, standing.partitions, config)


def check_partitions(name: str, before: int, now: int, config: Config) -> None:
    """GapError if the topic has another number of partitions than the state was made for."""
    if before == now:
        return
    if config.kafka.on_partition_change != "accept":
        raise GapError(
            f"{name}: the topic has {now} partitions now and had {before} before: keys moved to "
            "other partitions, where their contexts begin anew. To go on so: "
            "--set kafka.on_partition_change=accept"
        )
    log.warning("partition_change_accepted", partition=name, before=before, now=now)
