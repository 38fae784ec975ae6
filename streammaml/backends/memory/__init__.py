"""The memory twin of Kafka: topics, groups and transactions in one process.

Rules kept as on the real broker: an offset is spent even if its transaction aborts or is only
a marker, so offsets have holes; nothing behind an open transaction can be read; partitions move
cooperatively, each member revoking inside its own ``poll``; the newest owner of an instance
name fences the older one. The conformance suite runs on both.
"""

from streammaml.backends.memory.broker import MemoryBroker
from streammaml.backends.memory.clients import MemoryPlainSink, MemorySink, MemorySource
from streammaml.backends.memory.log import MemoryRecord
from streammaml.backends.memory.publisher import MemoryPublisher
from streammaml.backends.memory.state_log import MemoryStateLog
from streammaml.backends.memory.tail import MemoryTail

__all__ = [
    "MemoryBroker",
    "MemoryPlainSink",
    "MemoryPublisher",
    "MemoryRecord",
    "MemorySink",
    "MemorySource",
    "MemoryStateLog",
    "MemoryTail",
]
