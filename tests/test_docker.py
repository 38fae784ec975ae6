"""What stands in docker/, as far as it can be judged without a container engine.

The image itself is built and run by ``.ci/nightly image``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from docker.demo_stream import events
from streammaml.backends.codec import EventDecoder, encoder
from streammaml.backends.memory import MemoryRecord
from streammaml.config import Config
from streammaml.evaluation.streams import WIDTH, hyper
from streammaml.learner import Labels, Schema
from tests.kafka_broker import VERSION
from tests.observed import DASHBOARD, PROMETHEUS
from tests.worker_process import (
    STOPPED_S,
    clean_environment,
    kafka_environment,
    predictions,
    running,
)

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHECK_S = 60.0

WORKERS = {"worker-1", "worker-2"}
OURS = {"topics", "outer", "feed"} | WORKERS
ENDING = {"topics", "feed"}
"""Nobody can ask how they are: compose.yaml says why."""
WRITING = {"kafka"}
"""They write beside their own program: compose.yaml says so."""


def check(name: str, *arguments: str) -> str:
    """Run a checker of the extra ``test``; it must have nothing to say against the file."""
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    try:
        done = subprocess.run(
            [name, *arguments],
            capture_output=True,
            text=True,
            timeout=CHECK_S,
            cwd=ROOT,
            env={**os.environ, "PATH": path},
        )
    except FileNotFoundError:
        pytest.fail(f"no {name}: pip install 'streammaml[test]'")
    except OSError as error:
        reason = f"{name} does not run here: {error.strerror}"
        if os.environ.get("STREAMMAML_REQUIRE_CHECKERS") == "1":
            pytest.fail(f"STREAMMAML_REQUIRE_CHECKERS=1, but {reason}")
        pytest.skip(reason)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compose(*arguments: str) -> str:
    return check("docker-compose", "--file", str(COMPOSE), *arguments)


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """All of them, as Compose reads them."""
    found: dict[str, dict[str, Any]] = json.loads(
        compose("--profile", "ui", "config", "--format", "json")
    )["services"]
    return found


def test_a_checker_that_does_not_run_is_a_failure_where_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of-another-machine").write_bytes(b"\x7fELF")
    (tmp_path / "of-another-machine").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    monkeypatch.setenv("STREAMMAML_REQUIRE_CHECKERS", "1")
    with pytest.raises(pytest.fail.Exception, match="does not run here"):
        check("of-another-machine")
    monkeypatch.delenv("STREAMMAML_REQUIRE_CHECKERS")
    with pytest.raises(pytest.skip.Exception, match="does not run here"):
        check("of-another-machine")


def test_the_dockerfile_has_no_finding() -> None:
    check("hadolint", str(DOCKER / "Dockerfile"))


def test_a_change_of_the_sources_leaves_the_dependencies_layer_as_it_is() -> None:
    installed, sources = DOCKERFILE.split("\nCOPY . .\n")
    asking = re.search(r"^RUN python -c '(.+)' >/tmp/requirements\.txt", installed, re.MULTILINE)
    assert asking is not None
    done = subprocess.run(
        [sys.executable, "-c", asking[1]], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert done.stdout.splitlines() == PROJECT["dependencies"]
    assert sources.startswith("RUN pip install --no-deps . ")


def test_a_revision_leaves_all_other_layers_as_they_are() -> None:
    before, _, after = DOCKERFILE.partition("\nARG VERSION=")

    assert "\nARG REVISION=" in after
    assert not re.search(r"^(COPY|FROM)", after, re.MULTILINE)
    assert re.findall(r"^RUN (.+)", after, re.MULTILINE) == [
        'echo "${REVISION}" >/opt/streammaml/REVISION'
    ]
    assert "REVISION}" not in before


@pytest.mark.parametrize("profile", [[], ["--profile", "ui"]])
def test_compose_takes_the_file(profile: list[str]) -> None:
    assert compose(*profile, "config", "--quiet") == ""


def test_the_file_fits_the_specification_and_is_tidy() -> None:
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE))
    rules = "{extends: relaxed, rules: {line-length: {max: 100}}}"
    check("yamllint", "--strict", "--config-data", rules, str(COMPOSE))


def test_what_is_started_by_default(services: dict[str, dict[str, Any]]) -> None:
    default = set(compose("config", "--services").split())

    assert default == OURS | {"kafka", "prometheus", "grafana"}
    assert set(services) - default == {"kafka-ui"}


def test_every_port_is_published_on_the_loopback_address_and_once(
    services: dict[str, dict[str, Any]],
) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    published = [int(port["published"]) for port in ports]

    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert len(published) == len(set(published))


def test_a_process_that_keeps_state_keeps_its_name_and_is_one(
    services: dict[str, dict[str, Any]],
) -> None:
    keeping = {
        name
        for name, service in services.items()
        if any(mount["source"] == "state" for mount in service.get("volumes", []))
    }

    assert keeping == WORKERS | {"outer"}
    for name in keeping:
        assert services[name]["hostname"] == name, "or it comes back as another"
        assert services[name]["deploy"].get("replicas", 1) == 1


def test_prometheus_asks_all_that_serve(services: dict[str, dict[str, Any]]) -> None:
    jobs = yaml.safe_load(PROMETHEUS.read_text(encoding="utf-8"))["scrape_configs"]
    served = {
        f"{name}:{services[name]['ports'][0]['target']}"
        for name in OURS
        if services[name].get("ports")
    }

    targets = [
        target for job in jobs for static in job["static_configs"] for target in static["targets"]
    ]
    assert sorted(targets) == sorted(served)


def test_every_service_is_confined(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert int(service["deploy"]["resources"]["limits"]["memory"]) > 0, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("read_only", False) != (name in WRITING), name
        assert service["restart"] == ("no" if name == "topics" else "unless-stopped"), name
    for name in OURS:
        assert services[name]["user"] == "10001:10001"
        assert services[name]["tmpfs"]
        grace = re.fullmatch(r"(\d+)s", services[name]["stop_grace_period"])
        assert grace is not None
        assert int(grace[1]) > STOPPED_S, "the drain"


def test_every_service_has_a_health_check_unless_it_cannot_be_asked(
    services: dict[str, dict[str, Any]],
) -> None:
    for name, service in services.items():
        health = service["healthcheck"]
        if name in ENDING:
            assert health == {"disable": True}
        else:
            assert health["test"][0] == "CMD", f"{name}: exec form"
            assert health["interval"]


def test_nothing_starts_before_what_it_needs(services: dict[str, dict[str, Any]]) -> None:
    needs = {
        name: {other: need["condition"] for other, need in service.get("depends_on", {}).items()}
        for name, service in services.items()
    }
    ready = {"kafka": "service_healthy", "topics": "service_completed_successfully"}

    assert needs == {
        "kafka": {},
        "topics": {"kafka": "service_healthy"},
        "worker-1": ready,
        "worker-2": ready,
        "outer": ready,
        "feed": ready,
        "prometheus": {},
        "grafana": {"prometheus": "service_healthy"},
        "kafka-ui": {"kafka": "service_healthy"},
    }


def test_images_are_pinned_to_the_versions_that_are_tested(
    services: dict[str, dict[str, Any]],
) -> None:
    images = {name: service["image"] for name, service in services.items()}

    assert images["kafka"] == f"apache/kafka:{VERSION}"
    assert {images[name] for name in OURS} == {f"streammaml:{PROJECT['version']}"}
    for image in images.values():
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", image), image
    assert f"ARG VERSION={PROJECT['version']}\n" in DOCKERFILE
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert any(pin.startswith("torch==") for pin in pins), "the Dockerfile counts on it"


def test_every_file_that_is_mounted_is_there(services: dict[str, dict[str, Any]]) -> None:
    mounts = [
        mount
        for service in services.values()
        for mount in service.get("volumes", [])
        if mount["type"] == "bind"
    ]

    for mount in mounts:
        assert Path(mount["source"]).exists(), mount["source"]
        assert mount["read_only"], mount["source"]


def test_grafana_looks_for_the_dashboard_where_it_is_mounted(
    services: dict[str, dict[str, Any]],
) -> None:
    grafana = services["grafana"]
    sources = {mount["target"]: mount["source"] for mount in grafana["volumes"]}
    home = PurePosixPath(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    within = Path(sources["/etc/grafana/provisioning"]) / "dashboards/streammaml.yaml"
    (provider,) = yaml.safe_load(within.read_text(encoding="utf-8"))["providers"]

    assert provider["options"]["path"] == str(home.parent)
    assert (Path(sources[str(home.parent)]) / home.name).samefile(DASHBOARD)


def demo_config() -> Config:
    return Config.build(tomllib.loads((DOCKER / "streammaml.toml").read_text(encoding="utf-8")))


def test_the_containers_serve_where_their_ports_and_health_checks_point(
    services: dict[str, dict[str, Any]],
) -> None:
    config = demo_config()

    assert config.web.host == "0.0.0.0"
    for name in WORKERS:
        assert services[name]["ports"][0]["target"] == config.web.port
        assert services[name]["healthcheck"]["test"] == ["CMD", "streammaml", "health"]
    assert services["outer"]["ports"][0]["target"] == config.outer.port
    assert services["outer"]["healthcheck"]["test"][-1] == f"http://127.0.0.1:{config.outer.port}"
    assert f"EXPOSE {config.web.port} {config.outer.port}\n" in DOCKERFILE


def test_the_demo_stream_is_one_of_events_under_its_configuration_and_has_no_end() -> None:
    config = demo_config()
    stream = hyper(3, 100, seed=1)
    decode = EventDecoder(config.features, "json", config.worker.max_record_bytes)
    encode = encoder("json")
    ticks = iter(range(1_764_000_000, 1_764_000_400))

    sent = [
        decode(MemoryRecord("events", 0, i, 0, None, encode(event), []))
        for i, event in enumerate(islice(events(stream, lambda: float(next(ticks))), 400))
    ]
    collated = Schema(config.features).collate(sent, Labels(config.label))

    assert len(config.features) == WIDTH
    assert collated.rejected == []
    assert {event.context for event in sent} == {"sensor-00", "sensor-01", "sensor-02"}
    assert [event.label for event in sent[300:]] == [event.label for event in sent[:100]]
    assert len({event.timestamp for event in sent}) == len(sent), "each at its own time"


@pytest.mark.kafka
def test_the_feed_goes_on_until_it_is_stopped(kafka_servers: str, tmp_path: Path) -> None:
    config = str(DOCKER / "streammaml.toml")
    settings = kafka_environment(kafka_servers)
    environment = clean_environment(**settings)
    created = subprocess.run(
        ["streammaml", "topics", "--config", config],
        capture_output=True,
        text=True,
        timeout=CHECK_S,
        env=environment,
    )
    assert created.returncode == 0, created.stderr
    command = [sys.executable, str(DOCKER / "demo_stream.py"), "--config", config, "--rate", "500"]

    with running(command, tmp_path, environment) as feed:
        found = predictions(kafka_servers, settings["STREAMMAML_TOPICS__EVENTS"], 300, feed)
        feed.stop()

    assert {f"demo-{i}" for i in range(300)} <= {event["id"] for event in found}
    assert len({event["context"] for event in found}) == 100
