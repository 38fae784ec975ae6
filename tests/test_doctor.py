"""What the doctor finds before a start; each failure names its cure."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kafka  # type: ignore[import-untyped]  # kafka-python has no types
import pytest

from streammaml.backends.kafka import TopicAdmin, client_settings
from streammaml.config import Config
from streammaml.doctor import Finding, examine
from streammaml.initialization import encode
from tests import wire
from tests.backends.conformance.worlds import unique_config
from tests.kafka_broker import free_port, wait_until


def findings(**sections: dict[str, Any]) -> dict[str, Finding]:
    """Where no broker answers."""
    usual: dict[str, dict[str, Any]] = {
        "kafka": {"instance": "one", "bootstrap_servers": f"127.0.0.1:{free_port()}"},
        "web": {"port": 0},
    }
    config = wire.config(**(usual | sections))
    return {finding.check: finding for finding in examine(config)}


def test_without_a_broker_only_the_broker_is_found_wanting() -> None:
    found = findings()

    assert [f.check for f in found.values() if not f.ok] == ["kafka"]
    assert "no Kafka broker at 127.0.0.1" in found["kafka"].detail
    assert "check kafka.bootstrap_servers" in found["kafka"].detail
    assert found["features"].detail == "3 features, network 6-8-2"
    assert found["initialization"].detail == "version 0, drawn from seed 0"
    assert {"detector", "crc32c", "codec lz4", "codec snappy", "codec zstd", "web"} <= set(found)
    assert "kernels" in found


def test_no_features_are_one_finding_and_stop_no_other() -> None:
    config = Config.build({"kafka": {"bootstrap_servers": f"127.0.0.1:{free_port()}"}})

    found = {finding.check: finding for finding in examine(config)}

    assert not found["features"].ok
    assert "`streammaml config init --from-sample FILE`" in found["features"].detail
    assert found["detector"].ok
    assert "kafka" in found


@pytest.mark.parametrize(
    ("learner", "check", "cure"),
    [
        ({"detector": {"name": "Foo"}}, "detector", "it has ADWIN, "),
        ({"detector": {"parameters": {"deltas": 1}}}, "detector", "PageHinkley has: "),
        ({"initialization": "none.safetensors"}, "initialization", "`streammaml outer --from"),
    ],
)
def test_a_learner_that_cannot_start_is_found_with_its_cure(
    learner: dict[str, Any], check: str, cure: str
) -> None:
    found = findings(learner=learner)

    assert not found[check].ok
    assert cure in found[check].detail


def test_an_initialization_of_another_model_is_found(tmp_path: Path) -> None:
    file = tmp_path / "start.safetensors"
    file.write_bytes(encode(wire.initialization(wire.config(learner={"hidden": [4]}))))

    fits = findings(learner={"hidden": [4], "initialization": str(file)})
    other = findings(learner={"hidden": [8], "initialization": str(file)})

    assert fits["initialization"].ok
    assert str(file) in fits["initialization"].detail
    assert not other["initialization"].ok
    assert "`streammaml outer --from FILE --out FILE`" in other["initialization"].detail


def test_a_detector_says_whether_it_is_compiled() -> None:
    adwin = findings(learner={"detector": {"name": "ADWIN"}})

    assert findings()["detector"].detail == "PageHinkley, compiled"
    assert adwin["detector"].detail == "ADWIN, called event by event in Python"


def test_a_port_that_is_taken_is_found_with_its_cure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        found = findings(web={"port": port})["web"]

    assert not found.ok
    assert f"127.0.0.1:{port}" in found.detail
    assert "web.port=0 takes any free port" in found.detail
    assert findings(web={"port": port})["web"].ok


def test_a_codec_that_is_not_installed_is_found_with_its_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)

    found = findings()["codec zstd"]

    assert not found.ok
    assert "pip install zstandard" in found.detail


def test_the_state_directory_need_not_be_there_but_there_must_be_room(tmp_path: Path) -> None:
    usual = {"directory": str(tmp_path / "not" / "yet")}
    free_mb = shutil.disk_usage(tmp_path).free / 1e6

    fits = findings(state=usual)["state directory"]
    full = findings(state={**usual, "min_free_mb": 2 * free_mb})["state directory"]

    assert fits.ok
    assert f"free in {tmp_path}" in fits.detail
    assert not full.ok
    assert f"state.min_free_mb is {2 * free_mb:g}" in full.detail
    assert "state directory" not in findings(state={**usual, "enabled": False})


def test_a_file_where_the_state_directory_should_be_is_found(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    found = findings(state={"directory": str(file / "state")})["state directory"]

    assert not found.ok
    assert "set state.directory" in found.detail


@pytest.fixture
def on_kafka(kafka_servers: str) -> Callable[..., dict[str, Finding]]:
    """Create topics of its own, change settings of one of them, and look with ``sections``."""
    names = unique_config(kafka_servers).topics

    def look(changed: dict[str, str], events: bool, **sections: Any) -> dict[str, Finding]:
        servers = {"instance": "one", "bootstrap_servers": kafka_servers, "group": names.events}
        topics = {**names.model_dump(), "partitions": 2}
        with TopicAdmin(wire.config(kafka=servers, topics=topics)) as admin:
            admin.ensure()
        if changed:
            client = kafka.KafkaAdminClient(**client_settings(wire.config(kafka=servers).kafka, 10))
            name = names.events if events else names.state
            client.alter_configs([kafka.admin.ConfigResource("topic", name, changed)])
            resource = kafka.admin.ConfigResource("topic", name)

            def is_there() -> bool:
                found = client.describe_configs([resource])["topic"][name]
                return all(found.get(key, {}).get("value") == v for key, v in changed.items())

            wait_until(is_there, 30, "the broker knows its new settings")
            client.close()
        return findings(kafka=servers, topics=topics, **sections)

    return look


@pytest.mark.kafka
def test_fresh_topics_are_fit_for_state(on_kafka: Callable[..., dict[str, Finding]]) -> None:
    found = on_kafka({}, False)

    assert [f for f in found.values() if not f.ok] == []
    assert found["topics"].detail == "all there"
    assert found["state topic"].detail == "compacted, 2 partitions"
    assert found["events retention"].detail.startswith("for 168 h: ")
    assert found["transactions"].detail == "usable"
    assert not {"state topic", "events retention"} & set(
        on_kafka({}, False, state={"enabled": False})
    )


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("changed", "problem", "cure"),
    [
        ({"cleanup.policy": "delete"}, "has cleanup.policy=delete", "cleanup.policy=compact"),
        (
            {"segment.ms": "604800000", "delete.retention.ms": "60000"},
            "has segment.ms=604800000, delete.retention.ms=60000",
            "segment.ms=3600000,delete.retention.ms=604800000",
        ),
        ({"max.message.bytes": "1000000"}, "takes records of 1000000", "max.message.bytes="),
    ],
)
def test_a_state_topic_that_is_unfit_is_found_with_its_cure(
    on_kafka: Callable[..., dict[str, Finding]], changed: dict[str, str], problem: str, cure: str
) -> None:
    found = on_kafka(changed, False)

    assert [f.check for f in found.values() if not f.ok] == ["state topic"]
    assert problem in found["state topic"].detail
    assert f"--add-config {cure}" in found["state topic"].detail


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("changed", "problem", "cure"),
    [
        ({"retention.ms": "60000"}, "events are held for 60 s", "retention.ms=604800000"),
        ({"retention.bytes": "1000000"}, "holds 1000000 bytes", "retention.bytes=-1"),
    ],
)
def test_events_that_do_not_outlast_the_barriers_are_found_with_the_cure(
    on_kafka: Callable[..., dict[str, Finding]], changed: dict[str, str], problem: str, cure: str
) -> None:
    found = on_kafka(changed, True)

    assert [f.check for f in found.values() if not f.ok] == ["events retention"]
    assert problem in found["events retention"].detail
    assert f"--add-config {cure}" in found["events retention"].detail
    often = {"barrier_interval_s": 1, "barrier_events": 100}
    assert on_kafka({}, True, state=often)["events retention"].ok


@pytest.mark.kafka
def test_another_topic_that_is_unfit_is_found_with_its_cure(
    on_kafka: Callable[..., dict[str, Finding]],
) -> None:
    found = on_kafka({"cleanup.policy": "compact"}, True)

    assert [f.check for f in found.values() if not f.ok] == ["topics"]
    assert "--add-config cleanup.policy=delete" in found["topics"].detail


@pytest.mark.kafka
def test_events_with_more_partitions_than_the_state_are_found(kafka_servers: str) -> None:
    names = unique_config(kafka_servers).topics.model_dump()
    servers = {"instance": "one", "bootstrap_servers": kafka_servers, "group": names["events"]}
    with TopicAdmin(wire.config(kafka=servers, topics={**names, "partitions": 2})) as admin:
        admin.ensure()
    client = kafka.KafkaAdminClient(**client_settings(wire.config(kafka=servers).kafka, 10))
    client.create_partitions({names["events"]: 3})
    client.close()
    with TopicAdmin(wire.config(kafka=servers)) as admin:
        wait_until(
            lambda: admin.partitions([names["events"]]) == {names["events"]: 3},
            timeout_s=30,
            what="the broker knows its partitions",
        )

    found = findings(kafka=servers, topics=names)["state topic"]

    assert not found.ok
    assert "has 2 partitions, needs 3" in found.detail
