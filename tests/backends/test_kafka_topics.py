"""``streammaml topics`` and what ``doctor`` asks of the broker."""

from __future__ import annotations

from typing import Any

import kafka  # type: ignore[import-untyped]  # kafka-python has no types
import pytest

from streammaml.backends.kafka import TopicAdmin, client_settings
from streammaml.config import Config
from streammaml.errors import ConfigError
from tests.backends.conformance.worlds import unique_config

pytestmark = pytest.mark.kafka


def create(config: Config, name: str, partitions: int, **settings: str) -> None:
    admin = kafka.KafkaAdminClient(**client_settings(config.kafka, 10.0))
    configs = {key.replace("_", "."): value for key, value in settings.items()}
    topic = {"num_partitions": partitions, "replication_factor": 1, "configs": configs}
    admin.create_topics({name: topic}, wait_for_metadata=True)
    admin.close()


def described(config: Config, name: str) -> tuple[int, dict[str, Any]]:
    admin = kafka.KafkaAdminClient(**client_settings(config.kafka, 10.0))
    (topic,) = admin.describe_topics([name])
    resource = kafka.admin.ConfigResource("topic", name)
    settings = admin.describe_configs([resource], config_filter="all")["topic"][name]
    admin.close()
    return len(topic["partitions"]), {key: value["value"] for key, value in settings.items()}


def outcomes(config: Config) -> dict[str, str]:
    with TopicAdmin(config) as admin:
        return {report.topic: report.outcome for report in admin.ensure()}


def test_the_topics_are_created_once_with_their_settings(kafka_servers: str) -> None:
    config = unique_config(kafka_servers, partitions=4)
    topics = config.topics

    first, second = outcomes(config), outcomes(config)

    assert list(first.values()) == ["created"] * 7
    assert list(second.values()) == ["exists"] * 7
    wanted = {topics.state: (4, "compact"), topics.initializations: (1, "compact")}
    for name in first:
        partitions, settings = described(config, name)
        assert (partitions, settings["cleanup.policy"]) == wanted.get(name, (4, "delete"))
        segment = {topics.state: "67108864", topics.initializations: "16777216"}
        assert settings["segment.bytes"] == segment.get(name, "1073741824")
        kept = ("604800000", "268435456" if name == topics.episodes else "-1")
        assert (settings["retention.ms"], settings["retention.bytes"]) == kept
        room = 4_194_304 if name in wanted else 1_065_536
        assert settings["max.message.bytes"] == str(room)


def test_the_versions_have_room_for_a_wide_model_and_a_segment_has_one_of_them(
    kafka_servers: str,
) -> None:
    base = unique_config(kafka_servers).model_dump()
    features = [{"name": f"f{i}"} for i in range(1000)]
    wide = Config.build(base, {"features": features, "learner": {"hidden": [1024, 1024]}})
    name = wide.topics.initializations
    create(wide, name, 1, cleanup_policy="compact", segment_ms="3600000")

    found = outcomes(wide)
    outcomes(narrow := unique_config(kafka_servers).model_copy(update={"learner": wide.learner}))

    assert "needs 33554432 " in found[name]
    assert described(narrow, narrow.topics.initializations)[1]["max.message.bytes"] == "16777216"


def test_versions_that_are_never_compacted_are_reported(kafka_servers: str) -> None:
    config = unique_config(kafka_servers)
    name = config.topics.initializations
    create(config, name, 1, cleanup_policy="compact", max_message_bytes="4194304")

    found = outcomes(config)

    assert "segment.bytes=1073741824" in found[name]
    assert "--add-config segment.bytes=16777216,segment.ms=3600000," in found[name]


def test_the_retention_of_episodes_is_the_operators(kafka_servers: str) -> None:
    config = unique_config(kafka_servers)
    room = str(config.worker.max_record_bytes + 65_536)
    create(config, config.topics.episodes, 9, retention_ms="1000", max_message_bytes=room)

    assert outcomes(config)[config.topics.episodes] == "exists"


def test_state_has_as_many_partitions_as_the_events_that_are_there(kafka_servers: str) -> None:
    config = unique_config(kafka_servers, partitions=4)
    create(config, config.topics.events, 3, max_message_bytes="2000000")

    found = outcomes(config)

    assert found[config.topics.events] == "exists"
    assert described(config, config.topics.state)[0] == 3


def test_what_is_wrong_is_reported_with_its_cure(kafka_servers: str) -> None:
    config = unique_config(kafka_servers, partitions=4)
    topics = config.topics
    create(config, topics.state, 2, cleanup_policy="compact")
    create(config, topics.initializations, 1, cleanup_policy="delete")
    create(config, topics.events, 4, cleanup_policy="compact")
    create(config, topics.dead_letters, 4, max_message_bytes="1000")

    found = outcomes(config)

    assert "has 2 partitions, needs 4" in found[topics.state]
    assert "--add-config cleanup.policy=compact" in found[topics.initializations]
    assert "--add-config cleanup.policy=delete" in found[topics.events]
    assert "--add-config max.message.bytes=1065536" in found[topics.dead_letters]
    assert found[topics.predictions] == "created"


def test_too_high_a_replication_is_refused_in_words(kafka_servers: str) -> None:
    config = unique_config(kafka_servers)
    config = config.model_copy(
        update={"topics": config.topics.model_copy(update={"replication": 3})}
    )

    found = outcomes(config)

    assert all("replication" in outcome for outcome in found.values())


def test_missing_topics_are_named_together(kafka_servers: str) -> None:
    config = unique_config(kafka_servers)

    with TopicAdmin(config) as admin, pytest.raises(ConfigError) as caught:
        admin.require([config.topics.events, config.topics.state])

    assert config.topics.events in str(caught.value)
    assert config.topics.state in str(caught.value)


def test_a_cluster_is_described(kafka_servers: str) -> None:
    config = unique_config(kafka_servers)
    with TopicAdmin(config) as admin:
        before = admin.describe()
        admin.ensure()
        after = admin.describe()

    topics = config.topics
    assert len(before.missing) == 7
    assert before.partitions == {}
    assert after.missing == ()
    assert after.problems == ()
    assert after.partitions[topics.events] == after.partitions[topics.state] == 2
    assert (after.retention_ms, after.retention_bytes) == (604_800_000, -1)
    assert after.brokers >= 1
    assert after.version >= "3"
    assert after.transactions == ""
