"""What all clients share: settings, connecting, closing, and errors in our own words."""

from __future__ import annotations

import logging
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from streammaml.backends.kafka.library import KafkaNetClient, errors, kafka
from streammaml.backends.ports import Partition
from streammaml.config import Config, KafkaConfig, spec_of
from streammaml.errors import BackendError, ConfigError, FencedError, UnavailableError

CONNECT_TIMEOUT_S = 10.0
WORKER_CONNECT_TIMEOUT_S = 5.0
"""The worker tries again, and from a stop to its end it has 10 s."""
CLOSE_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 5.0
"""What a commit may still take once the process is to end: it has 10 s in all."""
_SLICE_S = 0.2  # how long a wait does not look at the stop
_JOIN_TIMEOUT_S = 2.0
METADATA_AGE_MS = 30_000
OVERHEAD_BYTES = 65_536
"""What headers and framing may add to a record."""


class Deadline:
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


def client_settings(config: KafkaConfig, connect_timeout_s: float) -> dict[str, Any]:
    """What every client needs to reach the brokers."""
    return {
        "bootstrap_servers": [s.strip() for s in config.bootstrap_servers.split(",")],
        "bootstrap_timeout_ms": int(connect_timeout_s * 1000),
        "reconnect_backoff_max_ms": 1000,
        "security_protocol": config.security_protocol,
        "sasl_mechanism": config.sasl_mechanism or None,
        "sasl_plain_username": config.sasl_username or None,
        "sasl_plain_password": config.sasl_password.get_secret_value() or None,
        "ssl_context": _tls(config) if "SSL" in config.security_protocol.split("_") else None,
    }


def _tls(config: KafkaConfig) -> ssl.SSLContext:
    """Read the files here: the client would take a missing one for a broker that is away."""
    try:
        context = ssl.create_default_context(cafile=config.ssl_cafile or None)
        if config.ssl_certfile:
            context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile or None)
    except OSError as error:
        names = [config.ssl_cafile, config.ssl_certfile, config.ssl_keyfile]
        raise ConfigError(f"TLS files {', '.join(filter(None, names))}: {error}") from error
    return context


def connect(make: Callable[..., Any], config: KafkaConfig, settings: Mapping[str, Any]) -> Any:
    """Make a client; UnavailableError if no broker answers within its ``bootstrap_timeout_ms``."""
    where = f"Kafka at {config.bootstrap_servers}"
    _reach(config, settings["bootstrap_timeout_ms"] / 1000)
    made: list[Any] = []
    heard = _LastWords()

    def network(**options: Any) -> Any:
        made.append(KafkaNetClient(**options))
        # The client does not pass its own setting on (seen): it would make a topic anew that was
        # deleted under it, with one partition and the broker's settings.
        made[-1].cluster.config["allow_auto_create_topics"] = False
        return made[-1]

    try:
        with heard:
            return make(**settings, kafka_client=network)
    except Exception as error:
        for client in made:  # its thread and sockets would live on
            client.close()
        if isinstance(error, errors.KafkaTimeoutError):
            raise UnavailableError(f"{where} does not answer. {heard.text}".rstrip()) from error
        raise BackendError(f"{where}: {error}") from error


class _LastWords(logging.Handler):
    """Why a client could not connect: it says so in its log only (a refused login, TLS)."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.text = text if text.startswith("Bootstrap connection") else self.text

    def __enter__(self) -> None:
        logging.getLogger("kafka.net.manager").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("kafka.net.manager").removeHandler(self)


def _reach(config: KafkaConfig, timeout_s: float) -> None:
    """Ask for one open port: the clients leave a thread and sockets behind for each failure."""
    why: OSError | None = None
    for server in config.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
        except OSError as error:
            why = error
        except ValueError as error:
            raise ConfigError(f"kafka.bootstrap_servers: {server!r} is not host:port") from error
        else:
            return
    raise UnavailableError(f"no Kafka broker at {config.bootstrap_servers}: {why}") from why


def record_room(config: Config) -> int:
    """Bytes that a topic's largest record may need."""
    return max(1_048_588, config.worker.max_record_bytes + OVERHEAD_BYTES)


def state_room(config: Config) -> int:
    """Bytes that the largest record of the state may need: weights twice, and the examples.

    In powers of two from 4 MB on, so that few changes of the model need a change of the topic.
    """
    spec = spec_of(config)
    parameters = sum(math.prod(shape) for shape in spec.shapes().values())
    examples = config.learner.support_size + 16  # and the query set of an episode
    needs = record_room(config) + 8 * parameters + 16 * spec.sizes[0] * examples
    return max(4_194_304, 1 << (needs - 1).bit_length())


def initialization_room(config: Config) -> int:
    """Bytes that the largest initialization may need: weights, a rate for each, feature nets.

    In powers of two from 4 MB on, as for the state.
    """
    spec = spec_of(config)
    shapes = {**spec.shapes(), **spec.optional_shapes()}
    numbers = spec.steps * len(spec.shapes()) + sum(map(math.prod, shapes.values()))
    names = sum(200 + 4 * len(name.encode()) for name in shapes)
    needs = 4 * numbers + names + OVERHEAD_BYTES
    return max(4_194_304, 1 << (needs - 1).bit_length())


def reader_settings(config: Config, client_id: str, connect_timeout_s: float) -> dict[str, Any]:
    """Of a consumer that is assigned what it reads, and is in no group."""
    return client_settings(config.kafka, connect_timeout_s) | {
        "client_id": client_id,
        "group_id": None,
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
        "auto_offset_reset": "none",
        "allow_auto_create_topics": False,
        "fetch_max_wait_ms": 100,
        "metadata_max_age_ms": METADATA_AGE_MS,
        "metrics_enabled": False,
    }


def producer_settings(config: Config, connect_timeout_s: float) -> dict[str, Any]:
    codec = config.kafka.compression
    return client_settings(config.kafka, connect_timeout_s) | {
        "allow_auto_create_topics": False,
        "acks": "all",
        "linger_ms": 10,
        "batch_size": 131_072,
        "compression_type": None if codec == "none" else codec,
        "max_request_size": max(state_room(config), initialization_room(config)),
        "max_block_ms": 15_000,
        "delivery_timeout_ms": 60_000,
        "metrics_enabled": False,
    }


def close_producer(producer: Any, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
    """Close in bounded time: the client's own close gives up, open, when its flush times out."""
    try:
        producer.close(timeout=timeout_s)
    except errors.KafkaError:
        producer._sender.force_close()
        producer._sender.join(_JOIN_TIMEOUT_S)
        producer._closed = True  # its thread may yet wait for a connection, and then ends


def refresh_metadata(consumer: Any, timeout_s: float) -> None:
    """Ask the broker anew for the partitions and the id of the consumer's topics."""
    manager = consumer._manager
    ask(manager.run, manager.wait_for, consumer._cluster.request_update(), timeout_s * 1000)


def learn_topic(consumer: Any, topic: str, timeout_s: float) -> None:
    """Wait until the partitions of one of the consumer's topics are known."""
    deadline = time.monotonic() + timeout_s
    while consumer._cluster.partitions_for_topic(topic) is None:
        refresh_metadata(consumer, max(0.0, deadline - time.monotonic()))


def topic_id(consumer: Any, topic: str) -> str:
    """As the client knows it without asking; empty where the broker is too old to have any."""
    found = consumer._cluster.topic_id(topic)
    return str(found) if found is not None and found.int else ""


def ours(tp: Any) -> Partition:
    return Partition(tp.topic, tp.partition)


def native(partition: Partition) -> Any:
    return kafka.TopicPartition(partition.topic, partition.index)


def ask(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Any error a client raises may leave it spinning or skipping (KAFKA.md)."""
    try:
        return call(*args, **options)
    except Exception as error:
        raise translate(error) from error


def translate(error: Exception) -> BackendError:
    if isinstance(error, BackendError):
        return error
    if isinstance(error, errors.FencedInstanceIdError):
        return FencedError(
            "another process runs as this instance of the group: give each its own with --instance"
        )
    if isinstance(error, errors.KafkaTimeoutError | errors.KafkaConnectionError):
        return UnavailableError(f"Kafka does not answer: {error}")
    return BackendError(f"Kafka: {error}")
