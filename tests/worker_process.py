"""A worker as a process, and what it wrote to Kafka."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kafka  # type: ignore[import-untyped]  # kafka-python has no types
import msgspec

from tests.kafka_broker import wait_until

PREDICTED_S = 150.0
"""Kernels may have to be compiled first."""
STOPPED_S = 10.0
TOPICS = (
    *("events", "predictions", "adaptations", "dead_letters"),
    *("episodes", "initializations", "state"),
)


def clean_environment(**more: str) -> dict[str, str]:
    """This process's, without settings of ours, with our commands in PATH, and ``more``."""
    scripts = sysconfig.get_path("scripts")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("STREAMMAML_", "MAKE", "MFL"))}
    return {**kept, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", **more}


def kafka_environment(servers: str) -> dict[str, str]:
    """Settings for topics and a group that nobody else has."""
    name = f"test-{secrets.token_hex(4)}"
    return {
        **{f"STREAMMAML_TOPICS__{topic.upper()}": f"{name}-{topic}" for topic in TOPICS},
        "STREAMMAML_TOPICS__PARTITIONS": "2",
        "STREAMMAML_KAFKA__BOOTSTRAP_SERVERS": servers,
        "STREAMMAML_KAFKA__GROUP": name,
        "STREAMMAML_WEB__PORT": "0",
    }


@dataclass(frozen=True, slots=True)
class Running:
    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def check(self) -> None:
        code = self.process.poll()
        assert code is None, f"the worker ended with {code}: {self.err.read_text()}"

    def stop(self) -> None:
        """SIGTERM; it has 10 s to leave, well."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(STOPPED_S) == 0, self.err.read_text()


@contextmanager
def running(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[Running]:
    """The command as a process in ``folder``, which is gone afterwards in any case."""
    mark = secrets.token_hex(4)
    out, err = folder / f"{mark}.out", folder / f"{mark}.err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        yield Running(process, out, err)
    finally:
        process.kill()
        process.wait()


def predictions(servers: str, topic: str, count: int, worker: Running) -> list[dict[str, Any]]:
    """Wait until ``count`` predictions are committed; return all there are."""
    consumer = kafka.KafkaConsumer(
        bootstrap_servers=servers, isolation_level="read_committed", enable_auto_commit=False
    )
    found: list[dict[str, Any]] = []

    def all_there() -> bool:
        worker.check()
        for records in consumer.poll(timeout_ms=200).values():
            found.extend(msgspec.json.decode(record.value) for record in records)
        return len(found) >= count

    try:
        parts = [kafka.TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        wait_until(all_there, PREDICTED_S, f"{count} predictions; {worker.err}")
        return found
    finally:
        consumer.close()
