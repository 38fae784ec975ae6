"""The plain producer of ``streammaml feed``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streammaml.backends.kafka.clients import (
    CONNECT_TIMEOUT_S,
    ask,
    close_producer,
    connect,
    producer_settings,
    translate,
)
from streammaml.backends.kafka.library import kafka
from streammaml.backends.kafka.topics import TopicAdmin
from streammaml.backends.ports import Message
from streammaml.config import Config

_IN_FLIGHT = 50_000


class KafkaFeed:
    """Sends without transactions; bounded in what is under way."""

    def __init__(self, config: Config, *, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        with TopicAdmin(config, connect_timeout_s=connect_timeout_s) as admin:
            admin.require([config.topics.events])
        settings = producer_settings(config, connect_timeout_s) | {"client_id": "streammaml-feed"}
        self._producer = connect(kafka.KafkaProducer, config.kafka, settings)
        self._sent: list[Any] = []

    def send(self, messages: Sequence[Message]) -> None:
        for topic, key, value, headers, partition in messages:
            self._sent.append(ask(self._producer.send, topic, value, key, list(headers), partition))
        if len(self._sent) >= _IN_FLIGHT:
            self.flush()

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait until the broker has all; BackendError if it refused one."""
        ask(self._producer.flush, timeout_s)
        sent, self._sent = self._sent, []
        for future in sent:
            if future.exception is not None:
                raise translate(future.exception) from future.exception

    def close(self) -> None:
        close_producer(self._producer)
