"""What can be checked before a worker starts, each finding with its cure."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from streammaml.backends.kafka import ClusterReport, TopicAdmin
from streammaml.config import BUILT_IN, Config, spec_of
from streammaml.errors import StreamMAMLError
from streammaml.learner import detectors
from streammaml.learner.kernels.compiler import FOLDER, is_cached
from streammaml.starts import load_network, load_start

SAFE_BARRIERS = 10
"""Retention must hold the events of so many barriers: a late one must not be a loss."""
SAFE_EVENT_BYTES = 2_000
CODECS = {"lz4": "lz4", "snappy": "snappy", "zstd": "zstandard"}


class Finding(NamedTuple):
    check: str
    ok: bool
    detail: str


def examine(config: Config) -> list[Finding]:
    """Run every check; one that fails stops no other."""
    return [
        *_model(config),
        _attempt("detector", lambda: _detector(config)),
        *_libraries(),
        _kernels(),
        _port(config),
        *_disk(config),
        *_kafka(config),
    ]


def _attempt(check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(check, True, look())
    except StreamMAMLError as error:
        return Finding(check, False, str(error))


def _model(config: Config) -> Iterator[Finding]:
    if not config.features:
        cure = "none: `streammaml config init --from-sample FILE` proposes them"
        yield Finding("features", False, cure)
        return  # no network without inputs, and no initialization
    count = f"{len(config.features)} features"
    if config.learner.network in BUILT_IN:
        sizes = "-".join(map(str, spec_of(config).sizes))
        yield Finding("features", True, f"{count}, network {sizes}")
    else:
        yield Finding("features", True, count)
        network = _attempt("network", lambda: _network(config))
        yield network
        if not network.ok:
            return  # nothing can be said of its initialization
    yield _attempt("initialization", lambda: _initialization(config))


def _network(config: Config) -> str:
    """Of a network of the user's own, made and tried."""
    spec = spec_of(config)
    load_network(config)
    numbers = sum(math.prod(shape) for _, shape in spec.parameters)
    return (
        f"{spec.network}: {spec.sizes[0]} inputs, {spec.outputs} outputs, {numbers} parameters in "
        f"{len(spec.parameters)} tensors; through torch, slower than a compiled one"
    )


def _detector(config: Config) -> str:
    detector, task = config.learner.detector, config.label.task
    detectors.build(detector, task)
    compiled = detectors.is_compiled(detector, task)
    return f"{detector.name}, {'compiled' if compiled else 'called event by event in Python'}"


def _initialization(config: Config) -> str:
    initialization = load_start(config)
    origin = config.learner.initialization or f"drawn from seed {config.learner.seed}"
    return f"version {initialization.version}, {origin}"


def _libraries() -> Iterator[Finding]:
    found = importlib.util.find_spec("crc32c") is not None
    yield Finding(
        "crc32c",
        found,
        "C extension"
        if found
        else "missing: consuming is 6 to 13 times slower; pip install 'kafka-python[crc32c]'",
    )
    for codec, module in CODECS.items():
        found = importlib.util.find_spec(module) is not None
        yield Finding(
            f"codec {codec}",
            found,
            "installed"
            if found
            else f"missing: records compressed with it cannot be read; pip install {module}",
        )


def _kernels() -> Finding:
    if is_cached():
        return Finding("kernels", True, f"compiled, in {FOLDER}")
    return Finding("kernels", True, "not compiled yet: the first start takes half a minute longer")


def _port(config: Config) -> Finding:
    host, port = config.web.host, config.web.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        cure = "another worker? web.port=0 takes any free port"
        return Finding("web", False, f"{host}:{port}: {error.strerror}; {cure}")
    return Finding("web", True, f"{host}:{port} is free")


def _kafka(config: Config) -> Iterator[Finding]:
    servers = config.kafka.bootstrap_servers
    try:
        with TopicAdmin(config) as admin:
            cluster = admin.describe()
    except StreamMAMLError as error:
        yield Finding("kafka", False, f"{error}; check kafka.bootstrap_servers")
        return
    yield Finding(
        "kafka", True, f"{cluster.brokers} brokers at {servers}, protocol {cluster.version}"
    )
    yield _topics(config, cluster)
    if config.state.enabled:
        yield from _state(config, cluster)
    why, plain = cluster.transactions, config.worker.delivery == "at_least_once"
    cure = (
        "the broker must allow Write and Describe on this group's transactional ids; a broker "
        "without transactions serves worker.delivery=at_least_once"
    )
    yield Finding(
        "transactions", plain or not why, f"{why}; {cure}" if why and not plain else "usable"
    )


def _topics(config: Config, cluster: ClusterReport) -> Finding:
    """All but the state topic, which has a finding of its own."""
    wrong = [f"{r.topic} {r.outcome}" for r in cluster.problems if r.topic != config.topics.state]
    if cluster.missing:
        cure = "create them with `streammaml topics`"
        wrong.insert(0, f"missing: {', '.join(cluster.missing)}; {cure}")
    return Finding("topics", not wrong, "; ".join(wrong) or "all there")


def _state(config: Config, cluster: ClusterReport) -> Iterator[Finding]:
    """Whether a worker that starts anew finds its state, and the events since."""
    topics = config.topics
    if topics.state in cluster.partitions:
        problem = next((r.outcome for r in cluster.problems if r.topic == topics.state), "")
        count = cluster.partitions[topics.state]
        yield Finding(
            "state topic",
            not problem,
            f"{topics.state} {problem}" if problem else f"compacted, {count} partitions",
        )
    if topics.events in cluster.partitions:
        yield _retention(config, cluster)


def _retention(config: Config, cluster: ClusterReport) -> Finding:
    """Events since the last barrier are replayed, so they must still be there."""
    needs_ms = SAFE_BARRIERS * config.state.barrier_interval_s * 1000
    needs_bytes = config.state.barrier_events * SAFE_EVENT_BYTES
    change = (
        "kafka-configs.sh --alter --entity-type topics "
        f"--entity-name {config.topics.events} --add-config "
    )
    ms, size = cluster.retention_ms, cluster.retention_bytes
    if 0 <= ms < needs_ms:
        return Finding(
            "events retention",
            False,
            f"events are held for {ms / 1000:g} s, and a barrier comes every "
            f"{config.state.barrier_interval_s:g} s: {change}retention.ms=604800000",
        )
    if 0 <= size < needs_bytes:
        return Finding(
            "events retention",
            False,
            f"a partition holds {size} bytes of events, and a barrier comes every "
            f"{config.state.barrier_events} events: {change}retention.bytes=-1",
        )
    held = "without limit" if ms < 0 else f"for {ms / 3_600_000:g} h"
    room = "" if size < 0 else f", up to {size} bytes of a partition"
    return Finding(
        "events retention", True, f"{held}{room}: a worker may be away that long without a gap"
    )


def _disk(config: Config) -> Iterator[Finding]:
    """Where the local store will be; its nearest folder that is there already."""
    state = config.state
    if not state.enabled:
        return
    place = Path(state.directory).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free_mb = shutil.disk_usage(place).free / 1e6
    except OSError as error:
        yield Finding("state directory", False, f"{place}: {error.strerror}")
        return
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problem = f"{place} is no folder that this user can write to; set state.directory"
    elif free_mb < state.min_free_mb:
        problem = (
            f"{free_mb:.0f} MB are free in {place}, state.min_free_mb is {state.min_free_mb:g}: "
            "make room, or set state.directory"
        )
    else:
        problem = ""
    yield Finding("state directory", not problem, problem or f"{free_mb:.0f} MB free in {place}")
