"""The main job as a user runs it: the commands as processes, on a real broker."""

from __future__ import annotations

import re
import secrets
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kafka  # type: ignore[import-untyped]  # kafka-python has no types
import msgspec
import pytest

from tests.kafka_broker import free_port, wait_until

DATA = Path(__file__).parents[3] / "shared" / "data"
DEADLINE_S = 150.0


def need(name: str) -> Path:
    """A file of the real streams, or a skip."""
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not there: the real streams are not part of the project")
    return DATA / name


class Job:
    """Topics, configuration and processes of one test."""

    def __init__(self, servers: str, folder: Path, events: str = "") -> None:
        """``events``: the topic of another job, to read the same."""
        self.servers = servers
        self.name = f"job-{secrets.token_hex(4)}"
        self.folder = folder
        self.file = folder / "streammaml.toml"
        self.port = free_port()
        topics = "events predictions adaptations dead_letters episodes initializations state"
        self._topics = {t: f"{self.name}-{t}" for t in topics.split()}
        if events:
            self._topics["events"] = events
        self._sets = [f"topics.{name}={topic}" for name, topic in self._topics.items()]
        self._sets += [
            f"kafka.bootstrap_servers={servers}",
            f"kafka.group={self.name}",
            f"kafka.instance={self.name}",
            "topics.partitions=4",
            f"web.port={self.port}",
        ]

    def topic(self, name: str) -> str:
        return self._topics[name]

    def command(self, *arguments: str, sets: Mapping[str, object] | None = None) -> list[str]:
        command = [sys.executable, "-m", "streammaml", *arguments, "--config", str(self.file)]
        for pair in [*self._sets, *(f"{k}={v}" for k, v in (sets or {}).items())]:
            command += ["--set", pair]
        return command

    def call(self, *arguments: str, expect: int = 0) -> str:
        """Run a command to its end; return what it printed."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=DEADLINE_S
        )
        assert done.returncode == expect, f"{arguments}: {done.returncode}\n{done.stderr}"
        return done.stdout + done.stderr

    def configure(self, sample: Path) -> None:
        """What the README says: propose the configuration from the file."""
        columns = ["--label", "label", "--context", "context", "--features", "f_*"]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "streammaml", "config", "init"),
                *("--from-sample", str(sample), *columns, "--out", str(self.file)),
            ],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, done.stderr

    def feed(self, file: Path, *more: str) -> tuple[int, int]:
        """Feed a file; return events sent and damaged, as the command says."""
        columns = ["--label", "label", "--context", "context", "--time", "ts"]
        text = self.call("feed", str(file), "--features", "f_*", *columns, *more)
        found = re.search(r"sent ([\d,]+) events, ([\d,]+) of them damaged", text)
        assert found is not None, text
        sent, damaged = (int(group.replace(",", "")) for group in found.groups())
        return sent, damaged

    def start(self, sets: Mapping[str, object] | None = None) -> subprocess.Popen[bytes]:
        log = (self.folder / "worker.log").open("ab")
        with log:
            return subprocess.Popen(self.command("run", sets=sets), stdout=log, stderr=log)

    @contextmanager
    def worker(self, sets: Mapping[str, object] | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """A worker that has to end well when asked to, within 10 s."""
        process = self.start(sets)
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0, self.log()
        finally:
            process.kill()
            process.wait()

    def log(self) -> str:
        return (self.folder / "worker.log").read_text(errors="replace")[-4000:]

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    def metric(self, name: str) -> float:
        """Sum over the labels of a metric; ``name`` may end in its labels."""
        values = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", self.metrics(), re.MULTILINE)
        assert values, f"no {name}"
        return sum(map(float, values))

    def ends(self, name: str) -> int:
        """Last stable offsets of a topic, summed: records, and markers of transactions."""
        consumer = kafka.KafkaConsumer(
            bootstrap_servers=self.servers, isolation_level="read_committed"
        )
        try:
            parts = [
                kafka.TopicPartition(self.topic(name), p)
                for p in consumer.partitions_for_topic(self.topic(name)) or ()
            ]
            return sum(consumer.end_offsets(parts).values())
        finally:
            consumer.close()

    def topic_id(self, name: str) -> str:
        return str(self._description(name)["topic_id"])

    def partitions(self, name: str) -> int:
        return len(self._description(name)["partitions"])

    def _description(self, name: str) -> dict[str, Any]:
        admin = kafka.KafkaAdminClient(bootstrap_servers=self.servers)
        try:
            found: dict[str, Any] = admin.describe_topics([self.topic(name)])[0]
            return found
        finally:
            admin.close()

    def read(self, name: str) -> list[Any]:
        """Every record of a topic as read_committed sees it."""
        consumer = kafka.KafkaConsumer(
            bootstrap_servers=self.servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        try:
            parts = [
                kafka.TopicPartition(self.topic(name), p)
                for p in consumer.partitions_for_topic(self.topic(name))
            ]
            consumer.assign(parts)
            ends = consumer.end_offsets(parts)
            found: list[Any] = []

            def all_read() -> bool:
                for records in consumer.poll(timeout_ms=200).values():
                    found.extend(records)
                return all(consumer.position(p) >= end for p, end in ends.items())

            wait_until(all_read, DEADLINE_S, f"all of {name} is read")
            return found
        finally:
            consumer.close()

    def predictions(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(record.value) for record in self.read("predictions")]

    def wait_for_all(self, count: int, process: subprocess.Popen[bytes]) -> None:
        """Until the worker has committed as many records and its lag is 0."""

        def done() -> bool:
            assert process.poll() is None, self.log()
            return self.committed() >= count

        wait_until(done, DEADLINE_S, f"{count} events are committed\n{self.log()}")

    def committed(self) -> int:
        """Input records up to the group's committed offsets."""
        admin = kafka.KafkaAdminClient(bootstrap_servers=self.servers)
        try:
            found = admin.list_group_offsets(self.name)
        except kafka.errors.KafkaError:
            return 0
        finally:
            admin.close()
        offsets = found.get(self.name, found)
        return sum(max(0, entry.offset) for entry in offsets.values())
