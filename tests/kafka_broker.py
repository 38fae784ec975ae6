"""A real Apache Kafka for tests: one node in KRaft mode, without containers.

Looked for in this order: ``STREAMMAML_TEST_KAFKA`` (bootstrap servers of a running one, which
must allow ``group.min.session.timeout.ms=1000``), ``KAFKA_HOME`` (``libs/*.jar``), the jars that
Maven resolves from ``tests/pom.xml`` into a cache. The last two need Java 17.

By hand: ``python -m tests.kafka_broker --port 9092``.
"""

from __future__ import annotations

import argparse
import atexit
import base64
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from streammaml.backends.kafka import TopicAdmin
from streammaml.config import Config
from streammaml.errors import BackendError

VERSION = "4.1.1"
CACHE = Path.home() / ".cache" / "streammaml" / f"kafka-{VERSION}"
POM = Path(__file__).with_name("pom.xml")
READY_TIMEOUT_S = 90.0

SETTINGS = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},ASIDE://127.0.0.1:{aside}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},ASIDE://127.0.0.1:{aside_advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,ASIDE:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={data}
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
min.insync.replicas={in_sync}
replica.lag.time.max.ms=5000
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=4
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
"""


class KafkaNotFoundError(Exception):
    """No Kafka: set STREAMMAML_TEST_KAFKA or KAFKA_HOME, or install Maven and Java 17."""


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Ask again until true; each question waits on its own for something to happen."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")


def find_jars(environ: Mapping[str, str] = os.environ) -> Path:
    if shutil.which("java") is None:
        raise KafkaNotFoundError(f"no java in PATH. {KafkaNotFoundError.__doc__}")
    if home := environ.get("KAFKA_HOME"):
        if not any(Path(home, "libs").glob("kafka_2*.jar")):
            raise KafkaNotFoundError(f"KAFKA_HOME={home} has no libs/kafka_2*.jar")
        return Path(home, "libs")
    return CACHE if CACHE.is_dir() else _download()


def _download() -> Path:
    if shutil.which("mvn") is None:
        raise KafkaNotFoundError(f"no mvn in PATH. {KafkaNotFoundError.__doc__}")
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="kafka-", dir=CACHE.parent))
    command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
    done = subprocess.run(
        [*command, f"-DoutputDirectory={fresh}"], capture_output=True, text=True, timeout=600
    )
    if done.returncode != 0:
        shutil.rmtree(fresh)
        raise KafkaNotFoundError(f"Maven failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    try:
        fresh.rename(CACHE)  # in one step: a half-filled cache never has this name
    except OSError:
        shutil.rmtree(fresh)  # another run was first
    return CACHE


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Seat(NamedTuple):
    """A node's place in a cluster."""

    cluster: str
    node: int
    controllers: tuple[int, ...]
    """Ports, those of node 1 first."""


def new_cluster(size: int) -> list[Seat]:
    cluster = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
    cluster = f"k{cluster[1:]}"  # one that begins with a dash would be taken for an option
    controllers = tuple(free_port() for _ in range(size))
    return [Seat(cluster, node, controllers) for node in range(1, size + 1)]


class Broker:
    """One broker with a directory and a port of its own, which it keeps over a restart.

    Clients that come by ``aside`` are sent on to ``aside_advertised``, a proxy's port.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        aside_advertised: int = 0,
        seat: Seat | None = None,
        heap_mb: int = 512,
    ) -> None:
        seat = seat or new_cluster(1)[0]
        self.node = seat.node
        self._heap_mb = heap_mb
        self._jars = find_jars()
        self._directory = directory
        self._log = directory / "broker.log"
        self._settings = directory / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port or free_port()
        self.aside = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        size = len(seat.controllers)
        self._settings.write_text(
            SETTINGS.format(
                node=seat.node,
                voters=",".join(
                    f"{node}@127.0.0.1:{at}" for node, at in enumerate(seat.controllers, 1)
                ),
                port=self.port,
                controller=seat.controllers[seat.node - 1],
                aside=self.aside,
                aside_advertised=aside_advertised or self.aside,
                data=directory / "data",
                replicas=size,
                in_sync=size // 2 + 1,
            )
        )
        self._java(
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={seat.cluster}",
            "-c",
            str(self._settings),
        )

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start and wait until it answers."""
        self.launch()
        self.await_answer()

    def launch(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_die_with_us(), *self._command("kafka.Kafka", str(self._settings))],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop the broker
            )
        atexit.register(self.kill)

    def await_answer(self) -> None:
        try:
            wait_until(self._answers, READY_TIMEOUT_S, "the broker answers")
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}\n{self.log_tail()}") from error

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wait(self) -> None:
        assert self._process is not None
        self._process.wait()

    def segment(self, topic: str, partition: int) -> Path:
        """The file with the first records of a partition."""
        return self._directory / "data" / f"{topic}-{partition}" / f"{0:020}.log"

    def log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            code = self._process.returncode
            raise AssertionError(f"the broker ended with {code}\n{self.log_tail()}")
        try:
            with TopicAdmin(self._config(), connect_timeout_s=1.0) as admin:
                admin.partitions([])
        except BackendError:
            return False
        return True

    def _config(self) -> Config:
        return Config.build({"kafka": {"bootstrap_servers": self.bootstrap}})

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        atexit.unregister(self.kill)
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _java(self, *arguments: str) -> None:
        done = subprocess.run(self._command(*arguments), capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise AssertionError(f"{arguments[0]}: {done.stdout}{done.stderr}")

    def _command(self, *arguments: str) -> list[str]:
        java = ["java", f"-Xmx{self._heap_mb}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return [*java, "-cp", f"{self._jars}/*", *arguments]


class Cluster:
    """Three brokers; a topic of theirs has three replicas, two of which must be in sync."""

    SIZE = 3

    def __init__(self, directory: Path) -> None:
        self.brokers = [
            Broker(directory / f"node-{seat.node}", seat=seat, heap_mb=256)
            for seat in new_cluster(self.SIZE)
        ]

    @property
    def bootstrap(self) -> str:
        return ",".join(broker.bootstrap for broker in self.brokers)

    def start(self) -> None:
        for broker in self.brokers:
            broker.launch()
        for broker in self.brokers:
            broker.await_answer()

    def kill(self) -> None:
        for broker in self.brokers:
            broker.kill()


def _die_with_us() -> list[str]:
    """A prefix that ends the broker even if the test run is killed, where there is one."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a broker until Ctrl-C.")
    parser.add_argument("--port", type=int, default=9092)
    port = parser.parse_args().port
    with tempfile.TemporaryDirectory(prefix="streammaml-kafka-") as directory:
        broker = Broker(Path(directory), port=port)
        try:
            broker.start()
            sys.stdout.write(f"{broker.bootstrap}\n")
            sys.stdout.flush()
            broker.wait()
        except KeyboardInterrupt:
            pass
        finally:
            broker.stop()


if __name__ == "__main__":
    main()
