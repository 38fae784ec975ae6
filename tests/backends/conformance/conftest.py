"""Every test of this folder runs on memory and on a real broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.backends.conformance.worlds import KafkaWorld, MemoryWorld, World, unique_config

MakeWorld = Callable[..., World]


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def make_world(request: pytest.FixtureRequest) -> MakeWorld:
    """A function that makes a world of its own; keywords are settings of ``kafka``."""
    if request.param == "memory":
        return lambda **settings: MemoryWorld(unique_config(**settings))
    bootstrap: Any = request.getfixturevalue("kafka_servers")
    return lambda **settings: KafkaWorld(unique_config(bootstrap, **settings))


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()
