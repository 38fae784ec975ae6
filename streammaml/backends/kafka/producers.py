"""What the producers are made of: all that was given to one, and its transactions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from streammaml.backends.kafka.clients import (
    CLOSE_TIMEOUT_S,
    Deadline,
    close_producer,
    connect,
    native,
    producer_settings,
    translate,
)
from streammaml.backends.kafka.library import errors, kafka
from streammaml.backends.kafka.member import KafkaMember
from streammaml.backends.ports import Message, Offsets, Partition
from streammaml.config import Config
from streammaml.errors import BackendError, FencedError

log = structlog.get_logger(__name__)

_WAKE_EVERY = 200
_SUPERSEDED = (errors.InvalidProducerEpochError, errors.ProducerFencedError)


class Outbox:
    """A producer, and what became of all that was given to it."""

    def __init__(self, config: Config, settings: Mapping[str, Any]) -> None:
        self.producer = connect(kafka.KafkaProducer, config.kafka, settings)
        self._sent: list[Any] = []
        self._last: dict[tuple[str, int], Any] = {}  # of each partition that was named

    def learn_topics(self, names: Sequence[str]) -> None:
        """Now, or the first send to each would wait for it."""
        for name in names:
            self.producer.partitions_for(name)

    def send(self, messages: Sequence[Message]) -> None:
        send, keep, last = self.producer.send, self._sent.append, self._last
        sender = self.producer._sender
        # While its thread is behind, the client wakes it for each message: more than half the time.
        sender.wakeup = lambda: None
        try:
            for i, (topic, key, value, headers, partition) in enumerate(messages):
                future = send(topic, value, key, list(headers), partition)
                keep(future)
                if partition is not None:
                    last[topic, partition] = future
                if i % _WAKE_EVERY == 0:
                    sender._client.wakeup()
        finally:
            del sender.wakeup
            sender.wakeup()

    def flush(self, deadline: Deadline) -> None:
        """The client's own limit is for each of its batches, and deaf to a stop."""
        while True:
            try:
                self.producer.flush(deadline.slice_s())
            except (errors.KafkaTimeoutError, errors.UnknownError):  # the latter of a split batch
                if deadline.left_s() <= 0:
                    raise
            else:
                break
        sent, self._sent = self._sent, []
        for future in sent:
            if future.exception is not None:
                raise future.exception

    def placed(self) -> dict[Partition, int]:
        """The offset after the last message of each partition that was named; then forget them."""
        last, self._last = self._last, {}
        return {Partition(*name): future.value.offset + 1 for name, future in last.items()}

    def forget(self) -> None:
        self._sent.clear()
        self._last.clear()


class TransactionalProducer:
    """The newest of its id fences the older ones, so that a restart ends what a dead one left open.

    A commit takes at most ``transaction_timeout_ms``. After an error it is only good for ``close``.
    """

    def __init__(
        self,
        config: Config,
        transactional_id: str,
        twin: str,
        topics: Sequence[str],
        *,
        client_id: str,
        connect_timeout_s: float,
    ) -> None:
        """``twin`` says who fenced it, and the cure; ``topics`` are those that it writes to."""
        self._twin = twin
        self._timeout_s = config.kafka.transaction_timeout_ms / 1000
        self._opened: float | None = None
        self._broken = False
        settings = producer_settings(config, connect_timeout_s) | {
            "client_id": client_id,
            "transactional_id": transactional_id,
            "transaction_timeout_ms": config.kafka.transaction_timeout_ms,
            "max_block_ms": 8000,  # for init_transactions, which no stop interrupts
        }
        self._outbox = Outbox(config, settings)
        self._producer = self._outbox.producer
        self._manager = self._producer._transaction_manager
        # The client answers a superseded epoch by asking for a new one, and a commit under way
        # then reports success for what the broker has dropped (seen).
        self._manager._supports_epoch_bump = lambda: False
        try:
            self._ask(self._producer.init_transactions)
            self._ask(self._outbox.learn_topics, topics)
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether a transaction is."""
        return self._opened is not None

    def send(self, messages: Sequence[Message]) -> None:
        """The first ones open a transaction."""
        if messages:
            self._begin()
            self._ask(self._outbox.send, messages)

    def commit(
        self,
        messages: Sequence[Message],
        offsets: Offsets,
        member: KafkaMember | None = None,
        stop: threading.Event | None = None,
    ) -> Mapping[Partition, int]:
        """Send the last messages and end the transaction; offsets need the member they are of.

        Returned is the offset after the last message of each partition that was named.
        """
        deadline = Deadline(self._timeout_s, stop)
        self._begin()
        self._ask(self._outbox.send, messages)
        self._ask(self._outbox.flush, deadline)
        if offsets:
            assert member is not None, "offsets are committed for a member"
            found = {native(p): kafka.OffsetAndMetadata(o, "", -1) for p, o in offsets.items()}
            place = member.metadata
            self._wait(deadline, lambda: self._manager.send_offsets_to_transaction(found, place))
        self._wait(deadline, self._manager.begin_commit)
        self._opened = None
        return self._outbox.placed()

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
            self._wait(Deadline(timeout_s), self._manager.begin_abort)
            self._outbox.forget()
            self._opened = None

    def _begin(self) -> None:
        if self._opened is None:
            self._opened = time.monotonic()
            self._ask(self._producer.begin_transaction)

    def _wait(self, deadline: Deadline, begin: Callable[[], Any]) -> None:
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
        fenced = FencedError(self._twin)
        if isinstance(cause, errors.FencedInstanceIdError):
            return fenced
        if isinstance(cause, _SUPERSEDED):
            # The broker supersedes a transaction that is too old, too: then no one took over.
            age_s = 0.0 if self._opened is None else time.monotonic() - self._opened
            if age_s < self._timeout_s:
                return fenced
            return BackendError(f"a transaction was open for {age_s:.0f} s: the broker ended it")
        return translate(cause)
