"""The producers: outputs, barriers and input offsets, in one transaction or in that order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streammaml.backends.kafka.clients import (
    CLOSE_TIMEOUT_S,
    WORKER_CONNECT_TIMEOUT_S,
    Deadline,
    ask,
    close_producer,
    producer_settings,
)
from streammaml.backends.kafka.member import KafkaMember
from streammaml.backends.kafka.producers import Outbox, TransactionalProducer
from streammaml.backends.kafka.topics import TopicAdmin
from streammaml.backends.ports import Member, Message, Offsets, Partition
from streammaml.config import Config
from streammaml.errors import BackendError, ConfigError


class KafkaSink:
    """A transactional producer: ``group``-``instance`` is its id, so that a restart fences the
    dead one at once. A commit takes at most ``transaction_timeout_ms``.

    Raises ConfigError where the time between two commits leaves a transaction none to live.
    """

    def __init__(
        self, config: Config, instance: str, *, connect_timeout_s: float = WORKER_CONNECT_TIMEOUT_S
    ) -> None:
        interval_ms, timeout_ms = (
            config.worker.commit_interval_ms,
            config.kafka.transaction_timeout_ms,
        )
        if interval_ms >= timeout_ms:
            raise ConfigError(
                f"worker.commit_interval_ms, {interval_ms}, must be below "
                f"kafka.transaction_timeout_ms, {timeout_ms}: the broker would end every "
                "transaction before it is committed"
            )
        self._producer = TransactionalProducer(
            config,
            f"{config.kafka.group}-{instance}",
            f"another process runs as instance {instance!r} of this group: "
            "give each its own with --instance",
            _require_topics(config, connect_timeout_s),
            client_id=f"streammaml-{instance}",
            connect_timeout_s=connect_timeout_s,
        )

    def send(self, messages: Sequence[Message]) -> None:
        self._producer.send(messages)

    def commit(
        self,
        offsets: Offsets,
        member: Member,
        barrier: Sequence[Message] = (),
        stop: threading.Event | None = None,
    ) -> Mapping[Partition, int]:
        if not offsets and not barrier and not self._producer.is_open:
            return {}
        assert isinstance(member, KafkaMember), "a Kafka sink commits for a Kafka source"
        if offsets:
            member.require_generation()
        return self._producer.commit(barrier, offsets, member, stop)

    def abort(self) -> None:
        self._producer.abort()

    def close(self) -> None:
        """Abort what is open, if that can still be done, and let go; bounded in time."""
        self._producer.close()


class KafkaPlainSink:
    """For ``delivery = "at_least_once"``: an idempotent producer without transactions.

    A commit makes sure of all that was sent, asks the broker whether this member still belongs,
    makes sure of the barrier, and commits the offsets as a member of the group; what fails on the
    way leaves the offsets where they were. Only the offsets are fenced: what a worker sent before
    it learnt of its eviction is there, and a barrier can follow that of its successor by as much
    as it takes to send one. A commit takes at most ``transaction_timeout_ms``.
    """

    def __init__(
        self, config: Config, instance: str, *, connect_timeout_s: float = WORKER_CONNECT_TIMEOUT_S
    ) -> None:
        self._timeout_s = config.kafka.transaction_timeout_ms / 1000
        self._broken = False
        names = _require_topics(config, connect_timeout_s)
        settings = producer_settings(config, connect_timeout_s) | {
            "client_id": f"streammaml-{instance}",
            "enable_idempotence": True,
        }
        self._outbox = Outbox(config, settings)
        try:
            self._ask(self._outbox.learn_topics, names)
        except BaseException:
            self.close()
            raise

    def send(self, messages: Sequence[Message]) -> None:
        self._ask(self._outbox.send, messages)

    def commit(
        self,
        offsets: Offsets,
        member: Member,
        barrier: Sequence[Message] = (),
        stop: threading.Event | None = None,
    ) -> Mapping[Partition, int]:
        assert isinstance(member, KafkaMember), "a Kafka sink commits for a Kafka source"
        if offsets or barrier:
            member.require_generation()
        deadline = Deadline(self._timeout_s, stop)
        self._ask(self._outbox.flush, deadline)
        if barrier:
            self._ask(member.verify, deadline)
            self._ask(self._outbox.send, barrier)
            self._ask(self._outbox.flush, deadline)
        if offsets:
            self._ask(member.commit, offsets, deadline)
        return self._outbox.placed()

    def abort(self) -> None:
        """What was sent stays; its next life sends it again."""
        self._outbox.forget()

    def close(self) -> None:
        """Bounded in time; after a failure what has not gone out yet never will."""
        ask(close_producer, self._outbox.producer, 0.0 if self._broken else CLOSE_TIMEOUT_S)

    def _ask(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return ask(call, *args)
        except BackendError:
            self._broken = True
            raise


def _require_topics(config: Config, connect_timeout_s: float) -> list[str]:
    """All that the worker writes to; required is the topic that it follows, too."""
    topics = config.topics
    names = [topics.predictions, topics.adaptations, topics.dead_letters]
    if config.state.enabled:
        names.append(topics.state)
    if config.episodes.enabled:
        names.append(topics.episodes)
    read = [topics.initializations] if config.learner.follow else []
    with TopicAdmin(config, connect_timeout_s=connect_timeout_s) as admin:
        admin.require(names + read)
    return names
