"""Kafka through kafka-python: the source, the sinks and the topics.

Rules: no deserializer in the client; a position is always set by an explicit seek; every wait is
bounded; every failure of the client is a BackendError after which the object is only good for
``close`` and a new one takes its place. FencedError means that another process has our instance
name, or is the outer loop of our group, and nothing else.
"""

from streammaml.backends.kafka.clients import client_settings
from streammaml.backends.kafka.feed import KafkaFeed
from streammaml.backends.kafka.publisher import KafkaPublisher
from streammaml.backends.kafka.sink import KafkaPlainSink, KafkaSink
from streammaml.backends.kafka.source import KafkaSource
from streammaml.backends.kafka.state_log import KafkaStateLog
from streammaml.backends.kafka.tail import KafkaTail
from streammaml.backends.kafka.topics import ClusterReport, TopicAdmin, TopicReport

__all__ = [
    "ClusterReport",
    "KafkaFeed",
    "KafkaPlainSink",
    "KafkaPublisher",
    "KafkaSink",
    "KafkaSource",
    "KafkaStateLog",
    "KafkaTail",
    "TopicAdmin",
    "TopicReport",
    "client_settings",
]
