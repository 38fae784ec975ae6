"""Kafka through kafka-python: the source, the sinks and the topics.

Rules: no deserializer in the client; a position is always set by an explicit seek; every wait is
bounded; every failure of the client is a BackendError after which the object is only good for
``close`` and a new one takes its place. FencedError means that another process has our instance
name, and nothing else.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from streammaml.backends.ports import (
    Member,
    Message,
    Offsets,
    OnRebalance,
    Partition,
    Rebalance,
    Record,
    first_offset,
)
from streammaml.config import Config, KafkaConfig
from streammaml.errors import BackendError, ConfigError, FencedError, UnavailableError

# kafka-python has no types (Any stays in this file), and on Python 3.11 and 3.12 importing it
# warns of its own use of importlib.resources, which would end a process run with -W error.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka  # type: ignore[import-untyped]  # see above
    from kafka import errors
    from kafka.coordinator.assignors.cooperative_sticky import (  # type: ignore[import-untyped]
        CooperativeStickyAssignor,
    )
    from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S = 10.0
CHECK_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0
_POLL_SLICE_S = 0.1  # a partition assigned within a poll must not wait for the end of the poll
_COMMITTED_SLICE_MS = 1000  # committed() waits for open transactions: others go on meanwhile
_OVERHEAD_BYTES = 65_536  # what headers and framing may add to a record
_FEED_IN_FLIGHT = 50_000
_SUPERSEDED = (errors.InvalidProducerEpochError, errors.ProducerFencedError)


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


class KafkaSource:
    """A static member of the group, which keeps its partitions for ``session_timeout_ms`` after
    it is gone, so that a restart moves nothing.

    ``on_rebalance`` runs on the client's IO thread for what is revoked or lost, while ``poll`` or
    ``close`` waits for it, and on the polling thread for what is assigned. What it raises is
    raised by ``poll`` or ``close``.
    """

    def __init__(
        self,
        config: Config,
        instance: str,
        on_rebalance: OnRebalance,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._config = config.kafka
        self._topic = config.topics.events
        self._on_rebalance = on_rebalance
        self._next: dict[Partition, int] = {}
        self._fresh: dict[Partition, float] = {}  # assigned, without a position: since when
        self._fault: BaseException | None = None
        with TopicAdmin(config, connect_timeout_s=connect_timeout_s) as admin:
            admin.require([self._topic])
        settings = _consumer_settings(config, instance, connect_timeout_s)
        self._consumer = connect(kafka.KafkaConsumer, config.kafka, settings)
        self._consumer.subscribe([self._topic], listener=_Listener(self))
        try:
            _ask(self._learn_topic, time.monotonic() + connect_timeout_s)
        except BackendError:
            self.close()
            raise

    def poll(self, timeout_s: float) -> Mapping[Partition, Sequence[Record]]:
        if self._fault is not None:
            raise self._fault
        try:
            return self._poll(time.monotonic() + timeout_s)
        except BaseException as error:
            self._fault = error
            raise

    def member(self) -> Member:
        member: Member = self._consumer.group_metadata()
        return member

    def lag(self) -> Mapping[Partition, int]:
        """Of each partition whose end a first fetch has told."""
        ends = {p: self._consumer.highwater(_tp(p)) for p in self._next}
        # The client's own position: it has passed the markers of transactions, which we never see.
        return {
            p: max(0, end - _ask(self._consumer.position, _tp(p), timeout_ms=0))
            for p, end in ends.items()
            if end is not None
        }

    def check(self) -> None:
        """The client rides out an outage in silence: ask for something it cannot know."""
        first = kafka.TopicPartition(self._topic, 0)
        _ask(self._consumer.end_offsets, [first], timeout_ms=CHECK_TIMEOUT_S * 1000)

    def close(self) -> None:
        """Leave within a bounded time. After a fault the partitions are told as lost."""
        if self._fault is not None:
            self.lose([_tp(p) for p in self._next])
        before, self._fault = self._fault, None
        _ask(self._consumer.close, autocommit=False, timeout_ms=CLOSE_TIMEOUT_S * 1000)
        if before is None and self._fault is not None:
            raise self._fault

    def _learn_topic(self, deadline: float) -> None:
        """Wait for the partitions of the topic. A member that joins without knowing them gets
        none, and the client may notice only after ``metadata_max_age_ms`` (seen).
        """
        cluster, manager = self._consumer._cluster, self._consumer._manager
        while cluster.partitions_for_topic(self._topic) is None:
            left_ms = max(0.0, deadline - time.monotonic()) * 1000
            manager.run(manager.wait_for, cluster.request_update(), left_ms)

    def _poll(self, deadline: float) -> Mapping[Partition, Sequence[Record]]:
        while True:
            left = max(0.0, deadline - time.monotonic())
            batches = _ask(self._consumer.poll, min(left, _POLL_SLICE_S) * 1000)
            if self._fault is not None:
                raise self._fault
            if self._fresh:
                self._admit()
            if batches or left == 0:
                found = {_ours(tp): records for tp, records in batches.items()}
                self._next.update({p: records[-1].offset + 1 for p, records in found.items()})
                return found

    def _admit(self) -> None:
        """Give new partitions their positions and let them flow; or try again next time."""
        starts = self._starts([_tp(p) for p in self._fresh])
        if starts is None:
            return
        for tp, offset in starts.items():
            self._consumer.seek(tp, offset)
            self._consumer.resume(tp)
        new = {_ours(tp): offset for tp, offset in starts.items()}
        self._fresh.clear()
        self._next.update(new)
        self._on_rebalance(Rebalance(assigned=frozenset(new)))

    def _starts(self, new: list[Any]) -> dict[Any, int] | None:
        ask, consumer = _ask, self._consumer
        try:
            committed = {
                tp: ask(consumer.committed, tp, timeout_ms=_COMMITTED_SLICE_MS) for tp in new
            }
        except UnavailableError:  # most likely someone's transaction is still open
            waited_ms = (time.monotonic() - min(self._fresh.values())) * 1000
            if waited_ms > 2 * self._config.transaction_timeout_ms + 10_000:
                raise
            return None
        firsts, ends = ask(consumer.beginning_offsets, new), ask(consumer.end_offsets, new)
        starts = {}
        for tp in new:
            held = (firsts[tp], ends[tp])
            starts[tp] = first_offset(_ours(tp), committed[tp], held, self._config)
            if committed[tp] not in (None, starts[tp]):
                log.warning("gap_accepted", **tp._asdict(), committed=committed[tp], held=held)
        return starts

    def admit_later(self, partitions: Iterable[Any]) -> None:
        # Paused at a made-up position: the client would otherwise look for one by itself.
        for tp in partitions:
            self._consumer.pause(tp)
            self._consumer.seek(tp, 0)
            self._fresh[_ours(tp)] = time.monotonic()

    def revoke(self, partitions: Iterable[Any]) -> None:
        self._tell(Rebalance(revoked=self._forget(partitions)))

    def lose(self, partitions: Iterable[Any]) -> None:
        self._tell(Rebalance(lost=self._forget(partitions)))

    def _forget(self, partitions: Iterable[Any]) -> frozenset[Partition]:
        gone = [_ours(tp) for tp in partitions]
        for p in gone:
            self._fresh.pop(p, None)
        return frozenset(p for p in gone if self._next.pop(p, None) is not None)

    def _tell(self, change: Rebalance) -> None:
        if change == Rebalance():
            return
        try:
            self._on_rebalance(change)
        except BaseException as error:  # carried from the IO thread to the caller of poll
            self._fault = self._fault or error


class _Listener(kafka.ConsumerRebalanceListener):  # type: ignore[misc]  # see the import
    def __init__(self, source: KafkaSource) -> None:
        self._source = source

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._source.admit_later(assigned)

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self._source.revoke(revoked)

    def on_partitions_lost(self, lost: Iterable[Any]) -> None:
        self._source.lose(lost)


class KafkaSink:
    """A transactional producer: ``group``-``instance`` is its id, so that a restart fences the
    dead one at once. A commit takes at most ``transaction_timeout_ms``.
    """

    def __init__(
        self, config: Config, instance: str, *, connect_timeout_s: float = CONNECT_TIMEOUT_S
    ) -> None:
        self._instance = instance
        self._timeout_s = config.kafka.transaction_timeout_ms / 1000
        self._opened: float | None = None
        self._broken = False
        self._sent: list[Any] = []
        names = [config.topics.predictions, config.topics.adaptations, config.topics.dead_letters]
        with TopicAdmin(config, connect_timeout_s=connect_timeout_s) as admin:
            admin.require(names)
        settings = _producer_settings(config, connect_timeout_s) | {
            "client_id": f"streammaml-{instance}",
            "transactional_id": f"{config.kafka.group}-{instance}",
            "transaction_timeout_ms": config.kafka.transaction_timeout_ms,
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

    def commit(self, offsets: Offsets, member: Member) -> None:
        if not offsets and self._opened is None:
            return
        if offsets and member.generation_id < 0:  # type: ignore[attr-defined]  # see the import
            # The broker would take it for a client without a group and not fence it.
            raise BackendError("this worker was evicted from its group: max_poll_interval_ms?")
        deadline = time.monotonic() + self._timeout_s
        self._begin()
        self._ask(self._producer.flush, self._timeout_s)
        self._ask(self._check_sent)
        if offsets:
            found = {_tp(p): kafka.OffsetAndMetadata(o, "", -1) for p, o in offsets.items()}
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
        _close_producer(self._producer, 0.0 if self._broken else CLOSE_TIMEOUT_S)

    def _abort(self, timeout_s: float) -> None:
        if self._opened is not None:
            self._wait(time.monotonic() + timeout_s, self._manager.begin_abort)
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

    def _wait(self, deadline: float, begin: Callable[[], Any]) -> None:
        """Do what the client's own call does, which waits for ever (KAFKA.md, trap 5)."""
        result = self._ask(begin)
        self._producer._sender.wakeup()
        left_ms = max(0.0, deadline - time.monotonic()) * 1000
        if not self._ask(result.wait, left_ms):
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
        return _translate(cause)


class KafkaFeed:
    """A plain producer for ``streammaml feed``; bounded in what is under way."""

    def __init__(self, config: Config, *, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        with TopicAdmin(config, connect_timeout_s=connect_timeout_s) as admin:
            admin.require([config.topics.events])
        settings = _producer_settings(config, connect_timeout_s) | {"client_id": "streammaml-feed"}
        self._producer = connect(kafka.KafkaProducer, config.kafka, settings)
        self._sent: list[Any] = []

    def send(self, messages: Sequence[Message]) -> None:
        for topic, key, value, headers in messages:
            self._sent.append(_ask(self._producer.send, topic, value, key, list(headers)))
        if len(self._sent) >= _FEED_IN_FLIGHT:
            self.flush()

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait until the broker has all; BackendError if it refused one."""
        _ask(self._producer.flush, timeout_s)
        sent, self._sent = self._sent, []
        for future in sent:
            if future.exception is not None:
                raise _translate(future.exception) from future.exception

    def close(self) -> None:
        _close_producer(self._producer)


class TopicReport(NamedTuple):
    topic: str
    outcome: str  # "created", "exists", or the problem with its cure


class ClusterReport(NamedTuple):
    brokers: int
    version: str  # the oldest release that speaks like these brokers do
    missing: tuple[str, ...]  # topics
    transactions: str  # "" if they work, or the problem


class TopicAdmin:
    """Creates and checks the topics."""

    def __init__(self, config: Config, *, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self._config = config
        self._connect_timeout_s = connect_timeout_s
        settings = client_settings(config.kafka, connect_timeout_s)
        self._client = connect(kafka.KafkaAdminClient, config.kafka, settings)

    def __enter__(self) -> TopicAdmin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        _ask(self._client.close)

    def partitions(self, names: Iterable[str]) -> dict[str, int]:
        """Partition count of each topic that exists."""
        found = _ask(self._client.describe_topics, list(names))
        return {t["name"]: len(t["partitions"]) for t in found if t["error_code"] == 0}

    def require(self, names: Iterable[str]) -> None:
        names = list(names)
        there = self.partitions(names)
        if missing := [name for name in names if name not in there]:
            raise ConfigError(
                f"no topic {', '.join(missing)} at {self._config.kafka.bootstrap_servers}: "
                "create the topics with `streammaml topics`"
            )

    def ensure(self) -> list[TopicReport]:
        """Create what is missing and check the rest, topic after topic."""
        topics = self._config.topics
        there = self.partitions(_names(self._config))
        events = there.get(topics.events, topics.partitions)
        wanted = _wanted(self._config, events)
        missing = {name: spec for name, spec in wanted.items() if name not in there}
        created = self._create(missing) if missing else {}
        settings = self._settings([name for name in wanted if name in there])
        return [
            TopicReport(name, created[name])
            if name in missing
            else TopicReport(name, _judge(name, spec, there[name], settings[name]))
            for name, spec in wanted.items()
        ]

    def describe(self) -> ClusterReport:
        cluster = _ask(self._client.describe_cluster)
        names = _names(self._config)
        there = self.partitions(names)
        return ClusterReport(
            brokers=len(cluster["brokers"]),
            version=".".join(map(str, self._client._manager.broker_version)),
            missing=tuple(name for name in names if name not in there),
            transactions=self._try_transactions(),
        )

    def _try_transactions(self) -> str:
        settings = _producer_settings(self._config, self._connect_timeout_s)
        settings["transactional_id"] = f"{self._config.kafka.group}-doctor"
        producer = connect(kafka.KafkaProducer, self._config.kafka, settings)
        try:
            _ask(producer.init_transactions)
        except BackendError as error:
            return str(error)
        finally:
            _close_producer(producer)
        return ""

    def _create(self, specs: Mapping[str, dict[str, Any]]) -> dict[str, str]:
        answer = _ask(self._client.create_topics, dict(specs), raise_errors=False)
        outcomes = {}
        for topic in answer["topics"]:
            why = topic.get("error_message") or errors.for_code(topic["error_code"]).__name__
            outcomes[topic["name"]] = "created" if topic["error_code"] == 0 else f"refused: {why}"
        made = [name for name, outcome in outcomes.items() if outcome == "created"]
        _ask(self._client.wait_for_topics, made)
        return outcomes

    def _settings(self, names: list[str]) -> dict[str, dict[str, str]]:
        resources = [kafka.admin.ConfigResource("topic", name) for name in names]
        found = _ask(self._client.describe_configs, resources, config_filter="all")
        settings: dict[str, dict[str, str]] = {}
        for name, values in found.get("topic", {}).items():
            settings[name] = {key: v["value"] for key, v in values.items()}
        return settings


def _names(config: Config) -> list[str]:
    t = config.topics
    return [
        t.events,
        t.predictions,
        t.adaptations,
        t.dead_letters,
        t.episodes,
        t.initializations,
        t.state,
    ]


def _wanted(config: Config, events: int) -> dict[str, dict[str, Any]]:
    """How each topic is created; ``events`` is the partition count of the events topic."""
    t = config.topics
    compacted = (t.initializations, t.state)
    room = str(max(1_048_588, config.worker.max_record_bytes + _OVERHEAD_BYTES))
    return {
        name: {
            "num_partitions": 1 if name == t.initializations else events,
            "replication_factor": t.replication,
            "configs": {
                "cleanup.policy": "compact" if name in compacted else "delete",
                "max.message.bytes": room,
            },
        }
        for name in _names(config)
    }


def _judge(name: str, spec: Mapping[str, Any], partitions: int, settings: dict[str, str]) -> str:
    """What is wrong with a topic that is there, and the cure; or "exists"."""
    policy = spec["configs"]["cleanup.policy"]
    if policy == "compact" and partitions != spec["num_partitions"]:
        return (
            f"has {partitions} partitions, needs {spec['num_partitions']}: stop the workers, "
            "delete it and run `streammaml topics` again"
        )
    change = f"kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config "
    if settings["cleanup.policy"] != policy:
        return (
            f"has cleanup.policy={settings['cleanup.policy']}, needs {policy}: "
            f"{change}cleanup.policy={policy}"
        )
    room = spec["configs"]["max.message.bytes"]
    if int(settings["max.message.bytes"]) < int(room):
        return (
            f"takes records of {settings['max.message.bytes']} bytes, "
            f"worker.max_record_bytes needs {room}: {change}max.message.bytes={room}"
        )
    return "exists"


def _consumer_settings(config: Config, instance: str, connect_timeout_s: float) -> dict[str, Any]:
    k = config.kafka
    return client_settings(k, connect_timeout_s) | {
        "client_id": f"streammaml-{instance}",
        "group_id": k.group,
        "group_instance_id": instance,
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
        "auto_offset_reset": "none",
        "allow_auto_create_topics": False,
        "partition_assignment_strategy": [CooperativeStickyAssignor],
        "max_poll_records": config.worker.max_poll_records,
        "max_poll_interval_ms": k.max_poll_interval_ms,
        "session_timeout_ms": k.session_timeout_ms,
        "heartbeat_interval_ms": min(3000, k.session_timeout_ms // 3),
        "fetch_min_bytes": 65_536,
        "fetch_max_wait_ms": 100,
        "max_partition_fetch_bytes": max(
            1_048_576, config.worker.max_record_bytes + _OVERHEAD_BYTES
        ),
        "metadata_max_age_ms": 60_000,
        "metrics_enabled": False,
    }


def _producer_settings(config: Config, connect_timeout_s: float) -> dict[str, Any]:
    codec = config.kafka.compression
    return client_settings(config.kafka, connect_timeout_s) | {
        "allow_auto_create_topics": False,
        "acks": "all",
        "linger_ms": 10,
        "batch_size": 131_072,
        "compression_type": None if codec == "none" else codec,
        "max_request_size": max(4_194_304, config.worker.max_record_bytes + _OVERHEAD_BYTES),
        "max_block_ms": 15_000,
        "delivery_timeout_ms": 60_000,
        "metrics_enabled": False,
    }


def _close_producer(producer: Any, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
    """Close in bounded time: the client's own close gives up, open, when its flush times out."""
    try:
        producer.close(timeout=timeout_s)
    except errors.KafkaError:
        producer._sender.force_close()
        producer._sender.join(CLOSE_TIMEOUT_S)
        producer.close(timeout=0)


def _ours(tp: Any) -> Partition:
    return Partition(tp.topic, tp.partition)


def _tp(partition: Partition) -> Any:
    return kafka.TopicPartition(partition.topic, partition.index)


def _ask(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Any error a client raises may leave it spinning or skipping (KAFKA.md)."""
    try:
        return call(*args, **options)
    except Exception as error:
        raise _translate(error) from error


def _translate(error: Exception) -> BackendError:
    if isinstance(error, BackendError):
        return error
    if isinstance(error, errors.FencedInstanceIdError):
        return FencedError(
            "another process runs as this instance of the group: give each its own with --instance"
        )
    if isinstance(error, errors.KafkaTimeoutError | errors.KafkaConnectionError):
        return UnavailableError(f"Kafka does not answer: {error}")
    return BackendError(f"Kafka: {error}")
