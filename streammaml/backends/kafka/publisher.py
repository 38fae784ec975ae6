"""The producer of the outer loop."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from streammaml.backends.kafka.clients import WORKER_CONNECT_TIMEOUT_S
from streammaml.backends.kafka.producers import TransactionalProducer
from streammaml.backends.kafka.topics import TopicAdmin
from streammaml.backends.ports import Message
from streammaml.backends.wire_initializations import TWIN, publisher_id
from streammaml.config import Config


class KafkaPublisher:
    """Writes to ``initializations``, each publication in one transaction, which takes at most
    ``transaction_timeout_ms``.
    """

    def __init__(
        self, config: Config, *, connect_timeout_s: float = WORKER_CONNECT_TIMEOUT_S
    ) -> None:
        self._topic = config.topics.initializations
        self._fault: BaseException | None = None
        with TopicAdmin(config, connect_timeout_s=connect_timeout_s) as admin:
            admin.require([self._topic])
        name = publisher_id(config)
        self._producer = TransactionalProducer(
            config,
            name,
            TWIN,
            [self._topic],
            client_id=f"streammaml-{name}",
            connect_timeout_s=connect_timeout_s,
        )

    def publish(self, messages: Sequence[Message], stop: threading.Event | None = None) -> None:
        if self._fault is not None:
            raise self._fault
        try:
            self._producer.commit([m._replace(topic=self._topic) for m in messages], {}, stop=stop)
        except BaseException as error:  # a part may be sent, which the next one must not commit
            self._fault = error
            raise

    def close(self) -> None:
        """Bounded in time."""
        self._producer.close()
