"""Workers as processes on a small generated stream, for tests that hurt them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from streammaml.backends.kafka import KafkaFeed, TopicAdmin
from streammaml.backends.ports import Message
from streammaml.config import Config
from streammaml.config_file import to_toml
from tests import wire
from tests.integration.job import Job
from tests.kafka_broker import wait_until

DEADLINE_S = 60.0


class WorkerProcess:
    """``streammaml run`` with a log of its own."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, env=os.environ | {"PYTHONWARNINGS": "ignore"}
            )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, text: str, timeout_s: float = DEADLINE_S, times: int = 1) -> None:
        """Until its log has said it so often."""
        self.wait_until(lambda: self.log().count(text) >= times, f"{text!r} in the log", timeout_s)

    def wait_until(
        self, condition: Callable[[], bool], what: str, timeout_s: float = DEADLINE_S
    ) -> None:
        """Until something holds while it runs."""

        def holds() -> bool:
            if condition():
                return True
            assert self.is_running(), f"ended with {self._process.returncode}\n{self.log()}"
            self._pause()
            return False

        wait_until(holds, timeout_s, f"{what}\n{self.log()}")

    def _pause(self) -> None:
        """Leave the processor to it: until it ends, or a moment."""
        try:
            self._process.wait(0.05)
        except subprocess.TimeoutExpired:
            pass

    def end(self, timeout_s: float) -> int:
        """Its exit code, which must come in time."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"runs on after {timeout_s:g} s\n{self.log()}") from error

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)


class Rig(Job):
    """A job whose events are made here and whose processes may be hurt."""

    def __init__(self, servers: str, folder: Path, *, partitions: int = 2, **kafka: Any) -> None:
        super().__init__(servers, folder)
        topics = "events predictions adaptations dead_letters episodes initializations state"
        self.config = Config.build(
            wire.config(worker={"commit_interval_ms": 100}).model_dump(),
            {
                "topics": {t: self.topic(t) for t in topics.split()} | {"partitions": partitions},
                "kafka": {"bootstrap_servers": servers, "group": self.name, **kafka},
            },
        )
        self.file.write_text(to_toml(self.config))
        self._workers: list[WorkerProcess] = []

    def create_topics(self) -> None:
        with TopicAdmin(self.config) as admin:
            assert {report.outcome for report in admin.ensure()} == {"created"}

    def produce(self, messages: Sequence[Message]) -> None:
        """Send to the events topic, whatever topic the messages name."""
        feed = KafkaFeed(self.config)
        feed.send([m._replace(topic=self.config.topics.events) for m in messages])
        feed.flush()
        feed.close()

    def start_worker(self, instance: str = "one", **sets: object) -> WorkerProcess:
        """``sets`` name their section with two underscores: ``kafka__start``."""
        chosen = {"kafka.instance": instance, "web.port": 0}
        chosen |= {key.replace("__", "."): value for key, value in sets.items()}
        worker = WorkerProcess(self.command("run", sets=chosen), self.folder / f"{instance}.log")
        self._workers.append(worker)
        return worker

    def end_all(self) -> None:
        for worker in self._workers:
            worker.kill()
