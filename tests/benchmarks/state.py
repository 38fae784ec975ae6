"""Speed of barriers and of reading state back, on a real broker.

``python -m tests.benchmarks.state [--servers HOST:PORT]``; without servers it starts its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from streammaml.backends.ports import Message
from tests.backends.conformance.worlds import KafkaWorld, Reader, unique_config
from tests.kafka_broker import Broker

CASES = [(100_000, 640), (64_000, 1_000), (16_000, 4_096), (100_000, 4_096)]


def values(count: int, size: int) -> list[bytes]:
    """Half of each is noise, as in trained weights, so that compression has something to do."""
    noise = np.random.default_rng(0).bytes(count * (size // 2))
    half = size // 2
    return [noise[i * half : (i + 1) * half] + b"\0" * (size - half) for i in range(count)]


def measure(servers: str) -> None:
    print("  records   bytes     MB  barrier s   MB/s  read s   MB/s")
    for count, size in CASES:
        # A long limit: the time is what is measured.
        world = KafkaWorld(unique_config(servers, partitions=1, transaction_timeout_ms=60_000))
        topic, mb = world.config.topics.state, count * size / 1e6
        barrier = [Message(topic, b"c/%d" % i, v, (), 0) for i, v in enumerate(values(count, size))]
        with Reader(world, "bench") as reader:
            while not reader.assigned:
                reader.poll()
            started = time.perf_counter()
            reader.sink.commit({}, reader.source.member(), barrier)
            barrier_s = time.perf_counter() - started
        log = world.state_log()
        started, read = time.perf_counter(), 0
        state = log.reader(0, 0)
        while state.position < state.end:
            read += len(state.read(1.0))
        read_s = time.perf_counter() - started
        assert read == count
        state.close()
        log.close()
        print(
            f"{count:>9} {size:>7} {mb:>6.0f} {barrier_s:>10.2f} {mb / barrier_s:>6.0f}"
            f" {read_s:>7.2f} {mb / read_s:>6.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", default="")
    servers = parser.parse_args().servers
    with ExitStack() as stack:
        if not servers:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="streammaml-kafka-"))
            broker = Broker(Path(folder))
            broker.start()
            stack.callback(broker.stop)
            servers = broker.bootstrap
        measure(servers)


if __name__ == "__main__":
    main()
