"""Workers as processes on a small generated stream, for tests that hurt them."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import kafka  # type: ignore[import-untyped]  # kafka-python has no types

from streammaml.backends.kafka import KafkaFeed, TopicAdmin
from streammaml.backends.ports import Message
from streammaml.config import Config
from streammaml.config_file import to_toml
from tests import wire
from tests.integration.job import Job
from tests.kafka_broker import wait_until

TIMEOUT_S = 60.0
GRACE_S = 10.0
"""What a worker has from SIGTERM to its end."""


@cache
def stream() -> list[Message]:
    """More events than any test sends, of 40 contexts."""
    return wire.stream(60_000, contexts=40)


class WorkerProcess:
    """``streammaml run`` with a log of its own."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def says(self, text: str, timeout_s: float = TIMEOUT_S, times: int = 1) -> None:
        """Wait until its log has a text so often, while it runs or in its last words."""
        self.until(lambda: self.log().count(text) >= times, f"{text!r} × {times}", timeout_s)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until something holds; it must not end before."""

        def holds() -> bool:
            running = self.is_running()
            if condition():
                return True
            assert running, f"ended with {self._process.returncode} before: {what}\n{self.log()}"
            with suppress(subprocess.TimeoutExpired):  # and meanwhile leave the processor to it
                self._process.wait(0.1)
            return False

        try:
            wait_until(holds, timeout_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def end(self, timeout_s: float) -> int:
        """Its exit code, which must come in time."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"runs on after {timeout_s:g} s\n{self.log()}") from None

    def stop(self) -> None:
        """SIGTERM; it must end well and in time."""
        self.send(signal.SIGTERM)
        assert self.end(GRACE_S) == 0, self.log()

    def cpu_s(self) -> float:
        """Processor time it has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Resident memory now."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) / 1024

    def end_after(self, seconds: float) -> None:
        """SIGKILL after a while, in which it must not end."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            raise AssertionError(f"ended by itself\n{self.log()}")
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(TIMEOUT_S)


def await_an_end(workers: Sequence[WorkerProcess], timeout_s: float) -> None:
    """Until one of them has ended."""
    handles = [os.pidfd_open(worker.pid) for worker in workers]
    try:
        ended, _, _ = select.select(handles, [], [], timeout_s)
    finally:
        for handle in handles:
            os.close(handle)
    assert ended, f"all run on after {timeout_s:g} s"


def is_ready(worker: WorkerProcess) -> bool:
    """Whether it has partitions, and the state of all of them."""
    found = re.findall(r'"address": "([^"]+)"', worker.log())
    if not found:
        return False
    try:
        with urllib.request.urlopen(f"{found[-1]}/readyz", timeout=5):
            return True
    except OSError:  # 503 is one
        return False


def owned(worker: WorkerProcess) -> int:
    """Partitions it has by its own account."""
    held: set[int] = set()
    for line in worker.log().splitlines():
        if '"event": "connected"' in line:
            held = set()
        elif '"event": "rebalanced"' in line:
            change = json.loads(line)
            held = (held | set(change["assigned"])) - set(change["revoked"]) - set(change["lost"])
    return len(held)


class Rig(Job):
    """A job whose events are made here and whose processes may be hurt."""

    def __init__(
        self,
        servers: str,
        folder: Path,
        *,
        partitions: int = 2,
        room: int = 1_000_000,
        **kafka: Any,
    ) -> None:
        """``room`` is the largest record the topics take; ``kafka`` are settings of that part."""
        super().__init__(servers, folder)
        self.sent = 0
        self._workers: list[WorkerProcess] = []
        names = ("events", "predictions", "adaptations", "dead_letters")
        topics = {name: self.topic(name) for name in (*names, "episodes", "initializations")}
        self.config = wire.config(
            topics={**topics, "state": self.topic("state"), "partitions": partitions},
            kafka={"bootstrap_servers": servers, "group": self.name, **kafka},
            worker={"commit_interval_ms": 100, "max_record_bytes": room},
        )
        self.file.write_text(to_toml(self.config))

    def configure_with(self, **sections: Any) -> None:
        """Change settings of the workers to be started."""
        self.config = Config.build(self.config.model_dump(), sections)
        self.file.write_text(to_toml(self.config))

    def create_topics(self) -> None:
        with TopicAdmin(self.config) as admin:
            assert {report.outcome for report in admin.ensure()} == {"created"}

    def ensure_topics(self) -> list[str]:
        """Create those that are missing; what became of each."""
        with TopicAdmin(self.config) as admin:
            return [report.outcome for report in admin.ensure()]

    def limit_predictions_to(self, size: str) -> None:
        """Let the broker refuse predictions of more bytes."""
        admin = kafka.KafkaAdminClient(bootstrap_servers=self.servers)
        topic = kafka.admin.ConfigResource(
            "topic", self.topic("predictions"), {"max.message.bytes": size}
        )
        admin.alter_configs([topic])
        admin.close()

    def produce(self, messages: Sequence[Message]) -> None:
        """Send to the events topic, whatever topic the messages name."""
        feed = KafkaFeed(self.config)
        feed.send([m._replace(topic=self.config.topics.events) for m in messages])
        feed.flush()
        feed.close()
        self.sent += len(messages)

    def events(self, count: int) -> None:
        """Produce the next good events."""
        self.produce(stream()[self.sent : self.sent + count])

    def run(self, instance: str = "one", **sets: object) -> WorkerProcess:
        """Start a worker; ``sets`` name a section and a setting: ``worker__format``."""
        chosen = {"kafka.instance": instance, "web.port": 0}
        chosen |= {key.replace("__", "."): value for key, value in sets.items()}
        command = self.command("run", sets=chosen)
        worker = WorkerProcess(command, self.folder / f"{instance}-{len(self._workers)}.log")
        self._workers.append(worker)
        return worker

    def finish(self, worker: WorkerProcess) -> None:
        """Wait until everything sent is committed."""
        worker.until(lambda: self.committed() >= self.sent, f"{self.sent} records are committed")

    def ledger(self, bad: int = 0) -> int:
        """Check that what is committed was predicted or rejected, each once; return how much."""
        committed = self.committed()
        predictions = Counter(p["id"] for p in self.predictions())
        letters = Counter(
            (headers["partition"], headers["offset"])
            for headers in (dict(r.headers) for r in self.read("dead_letters"))
        )
        assert set(predictions.values()) <= {1}
        assert set(letters.values()) <= {1}
        assert len(predictions) + len(letters) == committed
        assert len(letters) <= bad
        return committed

    def end_all(self) -> None:
        for worker in self._workers:
            worker.kill()
