"""What the client cannot decode: where it is, and where it ends.

The client says neither, and after it raised once it spins (KAFKA.md, trap 1). Both are in the
frames that the exception came through.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from streammaml.backends.kafka.clients import (
    WORKER_CONNECT_TIMEOUT_S,
    ask,
    connect,
    native,
    reader_settings,
    translate,
)
from streammaml.backends.kafka.library import Fetcher, errors, kafka
from streammaml.backends.ports import Partition
from streammaml.config import Config
from streammaml.errors import BackendError, UnavailableError, UnreadableError

_PROBE_TIMEOUT_MS = 5000
_SEARCH_S = 20.0
_TAKE = Fetcher.PartitionRecords.take.__code__
_UNPACK = Fetcher.PartitionRecords._unpack_records.__code__
_PARSE = Fetcher._parse_fetched_data.__code__


class Spot(NamedTuple):
    """What could not be decoded, and the offsets of its batch as the header has them, if any."""

    topic: str
    partition: int
    offset: int
    first: int | None = None
    last: int | None = None
    sound: bool = False  # the header is as it was written


def spot_of(error: BaseException) -> Spot | None:
    """Where decoding failed; None if the error came from elsewhere."""
    frames = _frames(error)
    if _TAKE in frames:
        part = frames[_TAKE]["self"]
        topic, partition = part.topic_partition
        spot = Spot(topic, partition, part.next_fetch_offset)
        batch: Any = frames.get(_UNPACK, {}).get("batch")
        if not hasattr(batch, "last_offset"):
            return spot
        sound = not isinstance(error, errors.CorruptRecordError)  # the checksum covers the header
        return spot._replace(first=batch.base_offset, last=batch.last_offset, sound=sound)
    if _PARSE in frames and isinstance(error, errors.CorruptRecordError | errors.UnknownError):
        topic, partition = frames[_PARSE]["tp"]  # the broker itself could not read it
        return Spot(topic, partition, frames[_PARSE]["fetch_offset"])
    return None


def explain(error: Exception, reached: Callable[[Partition], int | None]) -> BackendError:
    """UnreadableError if decoding failed, at the offset that the reader of a partition had reached:
    where it would read on, which may lie some markers of transactions before what is bad.
    """
    spot = spot_of(error)
    if spot is None:
        return translate(error)
    partition = Partition(spot.topic, spot.partition)
    at = reached(partition)
    offset = spot.offset if at is None else at
    text = f"{spot.topic}-{spot.partition} cannot be read at {offset}: {error}"
    if isinstance(error, errors.UnsupportedCodecError):
        text += "; install the library of this compression, `streammaml doctor` names it"
    return UnreadableError(text, spot.topic, spot.partition, offset)


def _frames(error: BaseException) -> dict[Any, Mapping[str, Any]]:
    """The local variables of each function that the exception came through."""
    found: dict[Any, Mapping[str, Any]] = {}
    trace = error.__traceback__
    while trace is not None:
        found[trace.tb_frame.f_code] = trace.tb_frame.f_locals
        trace = trace.tb_next
    return found


def drop_fetched(consumer: Any) -> None:
    """What would make the next poll spin, or raise the same again."""
    fetcher = consumer._fetcher
    if fetcher._next_partition_records is not None:
        fetcher._next_partition_records.drain()
    fetcher._next_in_line_exception_metadata = None


def next_readable(config: Config, partition: Partition, offset: int) -> int:
    """The first offset from ``offset`` on at which the partition can be read; perhaps its end.

    A bad batch covers many offsets, and the next one may be bad too. After _SEARCH_S the answer
    is where the next bad batch begins. BackendError if the broker does not answer.
    """
    probe = _Probe(config, partition)
    try:
        return probe.search(offset)
    finally:
        probe.close()


class _Probe:
    """A consumer that may fail: what it has fetched is thrown away after each look."""

    def __init__(self, config: Config, partition: Partition) -> None:
        settings = reader_settings(config, "streammaml-probe", WORKER_CONNECT_TIMEOUT_S)
        self._consumer = connect(kafka.KafkaConsumer, config.kafka, settings)
        self._tp = native(partition)
        try:
            self._consumer.assign([self._tp])
            ends = ask(self._consumer.end_offsets, [self._tp], timeout_ms=_PROBE_TIMEOUT_MS)
            self._end: int = ends[self._tp]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        ask(self._consumer.close)

    def search(self, offset: int) -> int:
        deadline = time.monotonic() + _SEARCH_S
        while offset < self._end:
            bad = self._look(offset)
            if bad is None or time.monotonic() > deadline:
                return offset
            offset = self._after(bad, offset)
        return self._end

    def _after(self, bad: Spot, offset: int) -> int:
        """The offset after a bad batch that was met at ``offset``."""

        def is_same(at: int) -> bool:
            found = self._look(at)
            return found is not None and found.first == bad.first

        if bad.last is not None and offset <= bad.last:
            last = min(bad.last, self._end - 1)
            if bad.sound or is_same(last):
                return last + 1
        inside, step = offset, 1
        while (outside := min(inside + step, self._end)) < self._end and is_same(outside):
            inside, step = outside, 2 * step
        while outside - inside > 1:
            middle = (inside + outside) // 2
            if is_same(middle):
                inside = middle
            else:
                outside = middle
        return outside

    def _look(self, offset: int) -> Spot | None:
        """What cannot be decoded at an offset; None if it can be read."""
        self._consumer.seek(self._tp, offset)
        deadline = time.monotonic() + _PROBE_TIMEOUT_MS / 1000
        try:
            while time.monotonic() < deadline:
                # Not the position: it may have passed a marker, and what is bad comes next.
                if self._consumer.poll(200) or self._position() >= self._end:
                    return None
        except Exception as error:
            spot = spot_of(error)
            if spot is None:
                raise translate(error) from error
            return spot
        finally:
            drop_fetched(self._consumer)
        raise UnavailableError(f"nothing comes from {self._tp} at {offset}")

    def _position(self) -> int:
        at: int = ask(self._consumer.position, self._tp, timeout_ms=0)
        return at
