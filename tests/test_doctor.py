"""What the doctor finds before a start; each failure names its cure."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from streammaml.config import Config
from streammaml.doctor import Finding, examine
from streammaml.initialization import encode
from tests import wire
from tests.kafka_broker import free_port


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
    assert "`streammaml outer --from FILE --once`" in other["initialization"].detail


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
