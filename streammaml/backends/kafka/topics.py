"""The topics: made with the right settings, and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from streammaml.backends.kafka.clients import (
    CONNECT_TIMEOUT_S,
    ask,
    client_settings,
    close_producer,
    connect,
    initialization_room,
    producer_settings,
    record_room,
    state_room,
)
from streammaml.backends.kafka.library import errors, kafka
from streammaml.config import Config
from streammaml.errors import BackendError, ConfigError

_UNKNOWN_TOPIC = 3
# So that a restore reads little more than the newest of each key: the default never compacts the
# newest gigabyte of a partition, nor what is younger than the other half of it.
_CHANGELOG = {
    "segment.bytes": 67_108_864,
    "segment.ms": 3_600_000,
    "min.cleanable.dirty.ratio": 0.2,
    "max.compaction.lag.ms": 21_600_000,
}
# Few and large records, and the newest segment is never compacted; it must hold one of them.
_VERSIONS_SEGMENT = 16_777_216
_EPISODES = {"retention.ms": 604_800_000, "retention.bytes": 268_435_456}
# A worker that was away for longer, and kept its disk, would miss what was deleted meanwhile.
_TOMBSTONES_MS = 604_800_000


class TopicReport(NamedTuple):
    topic: str
    outcome: str  # "created", "exists", or the problem with its cure


class ClusterReport(NamedTuple):
    brokers: int
    version: str  # the oldest release that speaks like these brokers do
    missing: tuple[str, ...]  # topics
    problems: tuple[TopicReport, ...]  # of topics that are there
    partitions: Mapping[str, int]  # of each topic that is there
    retention_ms: int  # of the events; -1: without limit
    retention_bytes: int  # of a partition of the events; -1: without limit
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
        ask(self._client.close)

    def partitions(self, names: Iterable[str]) -> dict[str, int]:
        """Partition count of each topic that exists."""
        found = ask(self._client.describe_topics, list(names))
        for topic in found:
            if topic["error_code"] not in (0, _UNKNOWN_TOPIC):
                why = errors.for_code(topic["error_code"]).__name__
                raise BackendError(f"topic {topic['name']}: {why}")
        return {t["name"]: len(t["partitions"]) for t in found if t["error_code"] == 0}

    def orphans(self, group: str, topic: str, partitions: int) -> set[int]:
        """Partitions of the topic that no member of the group has, though the group is at rest."""
        found = ask(self._client.describe_groups, [group])[group]
        if found["group_state"] != "Stable":
            return set()
        owned = {
            index
            for member in found["members"]
            for part in (member["member_assignment"] or {}).get("assigned_partitions", ())
            if part["topic"] == topic
            for index in part["partitions"]
        }
        return set(range(partitions)) - owned

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
        cluster = ask(self._client.describe_cluster)
        topics = self._config.topics
        names = _names(self._config)
        there = self.partitions(names)
        wanted = _wanted(self._config, there.get(topics.events, topics.partitions))
        settings = self._settings(list(there))
        judged = [
            TopicReport(name, _judge(name, wanted[name], there[name], settings[name]))
            for name in there
        ]
        events = settings.get(topics.events, {})
        return ClusterReport(
            brokers=len(cluster["brokers"]),
            version=".".join(map(str, self._client._manager.broker_version)),
            missing=tuple(name for name in names if name not in there),
            problems=tuple(report for report in judged if report.outcome != "exists"),
            partitions=there,
            retention_ms=int(events.get("retention.ms", -1)),
            retention_bytes=int(events.get("retention.bytes", -1)),
            transactions=self._try_transactions(),
        )

    def _try_transactions(self) -> str:
        settings = producer_settings(self._config, self._connect_timeout_s)
        settings["transactional_id"] = f"{self._config.kafka.group}-doctor"
        producer = connect(kafka.KafkaProducer, self._config.kafka, settings)
        try:
            ask(producer.init_transactions)
        except BackendError as error:
            return str(error)
        finally:
            close_producer(producer)
        return ""

    def _create(self, specs: Mapping[str, dict[str, Any]]) -> dict[str, str]:
        answer = ask(self._client.create_topics, dict(specs), raise_errors=False)
        outcomes = {}
        for topic in answer["topics"]:
            why = topic.get("error_message") or errors.for_code(topic["error_code"]).__name__
            outcomes[topic["name"]] = "created" if topic["error_code"] == 0 else f"refused: {why}"
        made = [name for name, outcome in outcomes.items() if outcome == "created"]
        ask(self._client.wait_for_topics, made)
        return outcomes

    def _settings(self, names: list[str]) -> dict[str, dict[str, str]]:
        if not names:
            return {}
        resources = [kafka.admin.ConfigResource("topic", name) for name in names]
        found = ask(self._client.describe_configs, resources, config_filter="all")
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
    wanted = {}
    for name in _names(config):
        compacted = name in (t.initializations, t.state)
        rooms = {t.state: state_room, t.initializations: initialization_room}
        room = rooms.get(name, record_room)(config)
        settings: dict[str, int | float | str] = {
            "cleanup.policy": "compact" if compacted else "delete",
            "max.message.bytes": room,
        }
        if compacted:
            settings |= _CHANGELOG
        if name == t.state:
            settings["delete.retention.ms"] = _TOMBSTONES_MS
        if name == t.initializations:
            settings["segment.bytes"] = max(_VERSIONS_SEGMENT, room)
        if name == t.episodes:
            settings |= _EPISODES
        wanted[name] = {
            "num_partitions": 1 if name == t.initializations else events,
            "replication_factor": t.replication,
            "configs": {key: str(value) for key, value in settings.items()},
        }
    return wanted


def _judge(name: str, spec: Mapping[str, Any], partitions: int, settings: dict[str, str]) -> str:
    """What is wrong with a topic that is there, and the cure; or "exists"."""
    policy = spec["configs"]["cleanup.policy"]
    if policy == "compact" and partitions < spec["num_partitions"]:
        return (
            f"has {partitions} partitions, needs {spec['num_partitions']}: "
            f"kafka-topics.sh --alter --topic {name} --partitions {spec['num_partitions']}"
        )
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
            f"takes records of {settings['max.message.bytes']} bytes, needs {room} "
            f"(worker.max_record_bytes, and the network): "
            f"{change}max.message.bytes={room}"
        )
    if unfit := _unfit(spec["configs"], settings):
        found = ", ".join(f"{key}={settings[key]}" for key in unfit)
        better = ",".join(f"{key}={value}" for key, value in unfit.items())
        return f"has {found}, which makes a restart slow or incomplete: {change}{better}"
    return "exists"


def _unfit(wanted: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """What a changelog should have instead."""
    limits = [key for key in _CHANGELOG if key in wanted]
    unfit = {key: wanted[key] for key in limits if float(settings[key]) > float(wanted[key])}
    least = int(wanted.get("delete.retention.ms", 0))
    if 0 <= int(settings["delete.retention.ms"]) < least:
        unfit["delete.retention.ms"] = str(least)
    return unfit
