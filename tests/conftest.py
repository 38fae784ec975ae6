"""Fixtures shared by all tests: a broker for the session, and one of its own for a test."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.command_line import call as call
from tests.kafka_broker import Broker, KafkaNotFoundError


@pytest.fixture(autouse=True)
def no_client_left() -> Iterator[None]:
    """A client that its test leaves open goes on, and fails, beside all that come after."""
    before = set(threading.enumerate())
    yield
    left = [t.name for t in set(threading.enumerate()) - before]
    assert not [name for name in left if name.startswith("kafka-io")]


@pytest.fixture(scope="session")
def kafka_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a broker that all tests share: take random topic names."""
    if running := os.environ.get("STREAMMAML_TEST_KAFKA"):
        yield running
        return
    broker = make_broker(tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield broker.bootstrap
    broker.kill()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A started broker that the test may kill."""
    broker = make_broker(tmp_path / "kafka")
    broker.start()
    yield broker
    broker.kill()


def make_broker(directory: Path) -> Broker:
    """Not started yet; without Kafka the test is skipped."""
    try:
        return Broker(directory)
    except KafkaNotFoundError as error:
        _without_kafka(str(error))


def _without_kafka(reason: str) -> NoReturn:
    """A machine that must run these tests says so: a skip there would be a hole in the net."""
    if os.environ.get("STREAMMAML_REQUIRE_KAFKA") == "1":
        pytest.fail(f"STREAMMAML_REQUIRE_KAFKA=1, but {reason}")
    pytest.skip(reason)
