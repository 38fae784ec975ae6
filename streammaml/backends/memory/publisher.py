"""The publisher on a memory broker."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from streammaml.backends.memory.broker import MemoryBroker
from streammaml.backends.memory.producer import MemoryProducer
from streammaml.backends.ports import Message
from streammaml.backends.wire_initializations import TWIN, publisher_id
from streammaml.config import Config


class MemoryPublisher:
    """The twin of KafkaPublisher."""

    def __init__(self, broker: MemoryBroker, config: Config) -> None:
        self._broker = broker
        self._topic = config.topics.initializations
        self._fault: BaseException | None = None
        broker.partitions(self._topic)
        self._producer = MemoryProducer(broker, publisher_id(config), TWIN)

    def publish(self, messages: Sequence[Message], stop: threading.Event | None = None) -> None:
        if self._fault is not None:
            raise self._fault
        try:
            self._publish([m._replace(topic=self._topic) for m in messages])
        except BaseException as error:
            self._fault = error
            raise

    def close(self) -> None:
        self._producer.drop()

    def _publish(self, messages: Sequence[Message]) -> None:
        with self._broker.changed:
            self._producer.check()
            self._producer.append(messages)
            self._broker.step("publish")
            self._producer.commit({}, "")
            self._broker.step("published")
