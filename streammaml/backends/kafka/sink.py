"""The transactional producer: outputs and input offsets in one transaction."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from streammaml.backends.kafka.clients import (
    CLOSE_TIMEOUT_S,
    WORKER_CONNECT_TIMEOUT_S,
    close_producer,
    connect,
    native,
    producer_settings,
    translate,
)
from streammaml.backends.kafka.library import errors, kafka
from streammaml.backends.kafka.topics import TopicAdmin
from streammaml.backends.ports import Member, Message, Offsets
from streammaml.config import Config
from streammaml.errors import BackendError, FencedError

log = structlog.get_logger(__name__)

STOP_TIMEOUT_S = 5.0
"""What a commit may still take once the process is to end: it has 10 s in all."""
_SLICE_S = 0.2  # how long a wait does not look at the stop
_SUPERSEDED = (errors.InvalidProducerEpochError, errors.ProducerFencedError)


class _Deadline:
    """When a wait ends: after ``timeout_s``, or STOP_TIMEOUT_S after ``stop`` is set."""

    def __init__(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        self._end = time.monotonic() + timeout_s
        self._stop = stop

    def left_s(self) -> float:
        """Zero or less once it has passed."""
        now = time.monotonic()
        if self._stop is not None and self._stop.is_set():
            self._end = min(self._end, now + STOP_TIMEOUT_S)
            self._stop = None
        return self._end - now

    def slice_s(self) -> float:
        return max(0.0, min(_SLICE_S, self.left_s()))


class KafkaSink:
    """A transactional producer: ``group``-``instance`` is its id, so that a restart fences the
    dead one at once. A commit takes at most ``transaction_timeout_ms``.
    """

    def __init__(
        self, config: Config, instance: str, *, connect_timeout_s: float = WORKER_CONNECT_TIMEOUT_S
    ) -> None:
        self._instance = instance
        self._timeout_s = config.kafka.transaction_timeout_ms / 1000
        self._opened: float | None = None
        self._broken = False
        self._sent: list[Any] = []
        names = [config.topics.predictions, config.topics.adaptations, config.topics.dead_letters]
        with TopicAdmin(config, connect_timeout_s=connect_timeout_s) as admin:
            admin.require(names)
        settings = producer_settings(config, connect_timeout_s) | {
            "client_id": f"streammaml-{instance}",
            "transactional_id": f"{config.kafka.group}-{instance}",
            "transaction_timeout_ms": config.kafka.transaction_timeout_ms,
            "max_block_ms": 8000,  # for init_transactions, which no stop interrupts
        }
        self._producer = connect(kafka.KafkaProducer, config.kafka, settings)
        self._manager = self._producer._transaction_manager
        # The client answers a superseded epoch by asking for a new one, and a commit under way
        # then reports success for what the broker has dropped (seen).
        self._manager._supports_epoch_bump = lambda: False
        try:
            self._ask(self._producer.init_transactions)
            for name in names:  # now, or the first send to each would wait for it
                self._ask(self._producer.partitions_for, name)
        except BaseException:
            self.close()
            raise

    def send(self, messages: Sequence[Message]) -> None:
        if messages:
            self._begin()
            self._ask(self._send, messages)

    def commit(self, offsets: Offsets, member: Member, stop: threading.Event | None = None) -> None:
        if not offsets and self._opened is None:
            return
        if offsets and member.generation_id < 0:  # type: ignore[attr-defined]  # see the import
            # The broker would take it for a client without a group and not fence it.
            raise BackendError("this worker was evicted from its group: max_poll_interval_ms?")
        deadline = _Deadline(self._timeout_s, stop)
        self._begin()
        self._ask(self._flush, deadline)
        self._ask(self._check_sent)
        if offsets:
            found = {native(p): kafka.OffsetAndMetadata(o, "", -1) for p, o in offsets.items()}
            self._wait(deadline, lambda: self._manager.send_offsets_to_transaction(found, member))
        self._wait(deadline, self._manager.begin_commit)
        self._opened = None

    def abort(self) -> None:
        self._abort(self._timeout_s)

    def close(self) -> None:
        """Abort what is open, if that can still be done, and let go; bounded in time."""
        try:
            self._abort(1.0 if self._broken else CLOSE_TIMEOUT_S)
        except BackendError as error:
            log.info("abort_left_to_the_broker", error=str(error))
        self._ask(close_producer, self._producer, 0.0 if self._broken else CLOSE_TIMEOUT_S)

    def _abort(self, timeout_s: float) -> None:
        if self._opened is not None:
            self._wait(_Deadline(timeout_s), self._manager.begin_abort)
            self._sent.clear()
            self._opened = None

    def _begin(self) -> None:
        if self._opened is None:
            self._opened = time.monotonic()
            self._ask(self._producer.begin_transaction)

    def _send(self, messages: Sequence[Message]) -> None:
        send, keep = self._producer.send, self._sent.append
        for topic, key, value, headers in messages:
            keep(send(topic, value, key, list(headers)))

    def _check_sent(self) -> None:
        sent, self._sent = self._sent, []
        for future in sent:
            if future.exception is not None:
                raise future.exception

    def _flush(self, deadline: _Deadline) -> None:
        """The client's own limit is for each of its batches, and deaf to a stop."""
        while True:
            try:
                self._producer.flush(deadline.slice_s())
            except (errors.KafkaTimeoutError, errors.UnknownError):  # the latter of a split batch
                if deadline.left_s() <= 0:
                    raise
            else:
                return

    def _wait(self, deadline: _Deadline, begin: Callable[[], Any]) -> None:
        """Do what the client's own call does, which waits for ever (KAFKA.md, trap 5)."""
        result = self._ask(begin)
        self._producer._sender.wakeup()
        while not self._ask(result.wait, deadline.slice_s() * 1000):
            if deadline.left_s() <= 0:
                self._broken = True
                raise BackendError("the transaction did not end in time: its outcome is unknown")

    def _ask(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:
            self._broken = True
            cause = self._manager.last_error or error
            raise self._explain(cause) from error

    def _explain(self, cause: Exception) -> BackendError:
        fenced = FencedError(
            f"another process runs as instance {self._instance!r} of this group: "
            "give each its own with --instance"
        )
        if isinstance(cause, errors.FencedInstanceIdError):
            return fenced
        if isinstance(cause, _SUPERSEDED):
            # The broker supersedes a transaction that is too old, too: then no one took over.
            age_s = 0.0 if self._opened is None else time.monotonic() - self._opened
            if age_s < self._timeout_s:
                return fenced
            return BackendError(f"a transaction was open for {age_s:.0f} s: the broker ended it")
        return translate(cause)
