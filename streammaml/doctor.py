"""What can be checked before a worker starts, each finding with its cure."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

from streammaml.backends.kafka import TopicAdmin
from streammaml.config import Config, spec_of
from streammaml.errors import StreamMAMLError
from streammaml.learner import detectors
from streammaml.learner.kernels.compiler import FOLDER, is_cached
from streammaml.serving import load_initialization

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
    sizes = "-".join(map(str, spec_of(config).sizes))
    yield Finding("features", True, f"{len(config.features)} features, network {sizes}")
    yield _attempt("initialization", lambda: _initialization(config))


def _detector(config: Config) -> str:
    detector, task = config.learner.detector, config.label.task
    detectors.build(detector, task)
    compiled = detectors.is_compiled(detector, task)
    return f"{detector.name}, {'compiled' if compiled else 'called event by event in Python'}"


def _initialization(config: Config) -> str:
    initialization = load_initialization(config)
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
    yield Finding(
        "topics",
        not cluster.missing,
        f"missing: {', '.join(cluster.missing)}; create them with `streammaml topics`"
        if cluster.missing
        else "all there",
    )
    why = cluster.transactions
    cure = "the broker must allow Write and Describe on this group's transactional ids"
    yield Finding("transactions", not why, f"{why}; {cure}" if why else "usable")
