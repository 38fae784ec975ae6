"""A worker with a torch module of the user's own: how it starts, serves, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import structlog

from streammaml import serving
from streammaml.backends.memory import MemoryBroker
from streammaml.config import Config, spec_of
from streammaml.errors import ConfigError
from streammaml.initialization import encode
from streammaml.starts import load_network, load_start, version_zero
from streammaml.worker import Worker
from tests import wire
from tests.learner import modules
from tests.test_doctor import findings


def config_for(factory: str, **sections: dict[str, object]) -> Config:
    return wire.config(learner={"network": modules.PATH + factory}, **sections)


def test_a_compiled_network_needs_no_module() -> None:
    assert load_network(wire.config()) is None


def test_a_start_is_the_modules_own_or_the_file(tmp_path: Path) -> None:
    config = config_for("mlp")
    network = load_network(config)
    assert network is not None
    file = tmp_path / "start.safetensors"
    file.write_bytes(encode(network.initial(0.25)))
    filed = Config.build(config.model_dump(), {"learner": {"initialization": str(file)}})

    zero, again, read = version_zero(config), load_start(config, network), load_start(filed)

    assert zero.theta().tobytes() == again.theta().tobytes() == read.theta().tobytes()
    assert zero.tensors["rates"][0, 0] == np.float32(0.1)
    assert read.tensors["rates"][0, 0] == 0.25
    assert zero.spec == spec_of(config)


def test_a_module_that_cannot_be_served_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="use GroupNorm or LayerNorm"):
        version_zero(config_for("batch_normed"))


def test_a_worker_serves_it_and_goes_on_after_a_restart() -> None:
    config = config_for("rich", state={"barrier_events": 50})
    network = load_network(config)
    start = load_start(config, network)
    broker = MemoryBroker.of(config)

    for _ in range(2):
        broker.append(wire.stream(150))
        worker = Worker(config, start, wire.Connector(broker, config), network=network)
        wire.drain(worker)
        worker.close()

    assert len(broker.read("predictions")) == 300
    adapted = [json.loads(record.value or b"") for record in broker.read("adaptations")]
    assert {record["result"] for record in adapted} == {"accepted"}
    gains = [record["loss_before"] - record["loss_after"] for record in adapted]
    assert len(gains) > 30
    assert np.mean(gains) > 0.1


def test_its_speed_is_measured_and_said_at_the_start() -> None:
    config = config_for("mlp")
    network = load_network(config)
    assert network is not None

    with structlog.testing.capture_logs() as said:
        serving._tell_speed(config, network.initial(0.1), network)

    (line,) = said
    assert (line["event"], line["network"]) == ("custom_network", modules.PATH + "mlp")
    assert line["events_per_second"] > 10
    assert "slower than the compiled" in line["note"]


def test_the_doctor_tries_it() -> None:
    found = findings(learner={"network": modules.PATH + "rich"})
    refused = findings(learner={"network": modules.PATH + "batch_normed"})
    missing = findings(learner={"network": "no_such.module:net"})

    assert found["network"].ok
    assert "tests.learner.modules:rich: 6 inputs, 2 outputs, 93 parameters in 7 tensors" in (
        found["network"].detail
    )
    assert found["initialization"].ok
    assert "use GroupNorm or LayerNorm" in refused["network"].detail
    assert "cannot make no_such.module:net" in missing["network"].detail
    assert "initialization" not in missing
    assert "detector" in missing
