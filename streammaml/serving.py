"""``streammaml run``: the worker on Kafka, with its metrics and page."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import Future, wait
from contextlib import ExitStack
from functools import partial

import numpy as np
import structlog

from streammaml.backends.kafka import (
    KafkaPlainSink,
    KafkaSink,
    KafkaSource,
    KafkaStateLog,
    KafkaTail,
)
from streammaml.backends.ports import Clients, OnRebalance
from streammaml.config import Config
from streammaml.events import Batch, Task
from streammaml.initialization import Initialization
from streammaml.learner import Learner, warm_up
from streammaml.learner.kernels.callbacks import Network
from streammaml.learner.kernels.compiler import is_cached
from streammaml.observers import watched
from streammaml.starts import load_network, load_start
from streammaml.watchdog import Watchdog
from streammaml.worker import Connect, Worker

STOP_POLL_S = 0.2
SPEED_EVENTS, SPEED_S = 256, 1.0

log = structlog.get_logger(__name__)


def serve(config: Config, stop: threading.Event) -> bool:
    """Run the worker until ``stop``, with metrics, health and page beside it.

    False if stopped while the kernels compile: that goes on in a thread nobody can interrupt.
    """
    network = load_network(config)
    initialization = load_start(config, network)
    watch, server = watched(config)
    with server:
        log.info("web_ready", address=server.address)
        watch.state("starting")
        if not is_cached():
            log.info("compiling_kernels", note="once, about half a minute")
            watch.note("Compiling the kernels: about half a minute, once.")
        if not _warm_up(config, initialization, network, stop):
            return False
        if network is not None:
            _tell_speed(config, initialization, network)
        gc.freeze()  # what was imported stays: no collection need look at it again
        watch.serves(initialization.version)
        watch.note("")
        with Watchdog(config.worker.watchdog_s) as watchdog:
            connect = kafka_clients(config)
            worker = Worker(
                config, initialization, connect, [watch], beat=watchdog.beat, network=network
            )
            watch.follow(worker)
            worker.run(stop)
    log.info("stopped")
    return True


def _warm_up(
    config: Config,
    initialization: Initialization,
    network: Network | None,
    stop: threading.Event,
) -> bool:
    """Compile beside this thread, so that a stop need not wait for it; False if it came first."""
    compiled: Future[None] = Future()

    def work() -> None:
        try:
            warm_up(config, initialization, network)
            compiled.set_result(None)
        except BaseException as error:  # told to the thread that waits
            compiled.set_exception(error)

    # A pool's threads would be waited for at the end of the process, this one is not.
    threading.Thread(target=work, name="compile", daemon=True).start()
    while not wait([compiled], timeout=STOP_POLL_S).done:
        if stop.is_set():
            return False
    compiled.result()
    return True


def _tell_speed(config: Config, initialization: Initialization, network: Network) -> None:
    speed = events_per_second(config, initialization, network)
    log.warning(
        "custom_network",
        network=network.spec.network,
        events_per_second=round(speed),
        note="through torch, event by event: slower than the compiled mlp and linear",
    )


def events_per_second(config: Config, initialization: Initialization, network: Network) -> float:
    """How fast one core plays labelled events of one context, a usual share of adaptations among
    them. Takes a second at most, and at least one event.
    """
    learner = Learner(config, initialization, network=network)
    rng = np.random.default_rng(0)
    classes = config.label.task is Task.CLASSIFICATION
    played, started, ended = 0, time.perf_counter(), 0.0
    while played == 0 or (played < SPEED_EVENTS and ended - started < SPEED_S):
        x = rng.normal(size=(1, learner.width)).astype(np.float32)
        y = float(rng.integers(config.label.slots)) if classes else float(rng.normal())
        learner.step(Batch(contexts=["speed"], x=x, y=np.array([y])))
        played, ended = played + 1, time.perf_counter()
    return played / (ended - started)


def kafka_clients(config: Config) -> Connect:
    """Builds the clients of one life of the worker: the sink first, it fences the life before."""
    instance = config.kafka.instance

    def connect(on_rebalance: OnRebalance) -> Clients:
        with ExitStack() as made:
            exactly_once = config.worker.delivery == "exactly_once"
            sink = (KafkaSink if exactly_once else KafkaPlainSink)(config, instance)
            made.callback(sink.close)
            state = KafkaStateLog(config, instance)
            made.callback(state.close)
            source = KafkaSource(config, instance, on_rebalance)
            tail = partial(KafkaTail, config, instance, config.topics.initializations)
            clients = Clients(source, sink, state, tail if config.learner.follow else None)
            made.pop_all()
        return clients

    return connect
