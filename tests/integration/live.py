"""A worker with its outer loop beside one that keeps what it began with, on the same events."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import kafka  # type: ignore[import-untyped]  # kafka-python has no types
import numpy as np
from safetensors.numpy import load, save

from streammaml.backends.ports import Message
from streammaml.backends.wire_initializations import initialization_messages
from streammaml.catalogue import Catalogue
from streammaml.initialization import Initialization, encode
from tests.integration.job import DEADLINE_S, Job
from tests.integration.rig import WorkerProcess
from tests.kafka_broker import free_port, wait_until

REFUSED = {"nonfinite": "nonfinite", "scaled": "worse", "flipped": "worse"}
MODELS = ("init", "adapted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of it."""

    events: int
    predictions: dict[str, int]
    """By worker: how many different ones there are."""
    results: dict[str, int]
    """Runs of the outer loop by their end."""
    reports: list[dict[str, Any]]
    """Of the runs that were not published: why."""
    versions: list[int]
    """In the order in which the worker took them."""
    losses: dict[str, dict[str, float]]
    """By worker and model: mean over the second half of the events."""
    refused: dict[str, float]
    """Initializations that the worker refused, by reason."""
    served: set[int]
    """Versions behind its predictions."""
    bad: dict[str, int]
    """The versions that were planted."""


class Live:
    """Topics, two workers, an outer loop and a feed."""

    def __init__(self, servers: str, folder: Path) -> None:
        self.jobs: dict[str, Job] = {}
        for name in ("follows", "keeps"):
            (folder / name).mkdir()
            events = self.jobs["follows"].topic("events") if self.jobs else ""
            self.jobs[name] = Job(servers, folder / name, events)
        self.job = self.jobs["follows"]
        self.outer_port = free_port()
        self._sets: dict[str, dict[str, object]] = {
            name: {"learner.follow": name == "follows", "state.directory": str(folder / name)}
            for name in self.jobs
        }

    def play(
        self,
        file: Path,
        limit: int,
        rate: float,
        every: str,
        look: Callable[[], None] = lambda: None,
        **outer: object,
    ) -> Found:
        """Feed so many events at a rate; after nine tenths plant the bad initializations.

        ``look`` is called right before, while all of them run.
        """
        for job in self.jobs.values():
            job.configure(file)
            job.call("topics")
        sets = {**self._sets["follows"], **{f"outer.{k}": v for k, v in outer.items()}}
        loop = WorkerProcess(
            self.job.command("outer", "--every", every, "--port", str(self.outer_port), sets=sets),
            self.job.folder / "outer.log",
        )
        workers = {name: job.start(self._sets[name]) for name, job in self.jobs.items()}
        try:
            return self._watch(file, limit, rate, loop, workers, look)
        finally:
            loop.kill()
            for worker in workers.values():
                worker.kill()
                worker.wait()

    def _watch(
        self,
        file: Path,
        limit: int,
        rate: float,
        loop: WorkerProcess,
        workers: Mapping[str, subprocess.Popen[bytes]],
        look: Callable[[], None],
    ) -> Found:
        for job in self.jobs.values():
            wait_until(partial(_is_ready, job), DEADLINE_S, f"ready\n{job.log()}")
        sent: list[int] = []
        feeding = threading.Thread(
            target=lambda: sent.append(
                self.job.feed(file, "--limit", str(limit), "--rate", str(rate))[0]
            )
        )
        feeding.start()
        span_s = limit / rate + DEADLINE_S
        self._reach(limit // 2, span_s)
        before = {name: sums(job) for name, job in self.jobs.items()}
        self._reach(9 * limit // 10, span_s)
        look()
        loop.stop()
        current = self._catalogue().current
        assert current is not None, loop.log()[-4000:]
        bad = self._plant(current.initialization)
        feeding.join(span_s)
        assert sent, "the feed has not ended"
        for name, job in self.jobs.items():
            job.wait_for_all(sent[0], workers[name])
        found = {name: job.predictions() for name, job in self.jobs.items()}
        runs = [_fields(line) for line in loop.log().splitlines() if '"outer_run"' in line]
        return Found(
            events=sent[0],
            predictions={name: len({p["id"] for p in told}) for name, told in found.items()},
            results={r: sum(x["result"] == r for x in runs) for r in {x["result"] for x in runs}},
            reports=[run for run in runs if run["result"] != "published"],
            versions=self._taken(),
            losses={name: _means(before[name], sums(job)) for name, job in self.jobs.items()},
            refused={r: self._loads(r) for r in ("fingerprint", "corrupt", "nonfinite", "worse")},
            served={p["initialization"] for p in found["follows"]},
            bad=bad,
        )

    def _reach(self, events: int, timeout_s: float) -> None:
        """Wait until both workers have played so many."""
        for job in self.jobs.values():
            wait_until(partial(_has_played, job, events), timeout_s, f"{events} are played")

    def _catalogue(self) -> Catalogue:
        catalogue = Catalogue()
        catalogue.read(self.job.read("initializations"))
        return catalogue

    def _plant(self, good: Initialization) -> dict[str, int]:
        """Publish one after the other, as no outer loop would; their version numbers."""
        producer = kafka.KafkaProducer(bootstrap_servers=self.job.servers, acks="all")
        numbers = {}
        for i, (kind, messages) in enumerate(bad_messages(good).items(), good.version + 100):
            refused = self._loads(REFUSED[kind])
            for message in messages(i):
                producer.send(
                    self.job.topic("initializations"),
                    message.value,
                    message.key,
                    list(message.headers),
                )
            producer.flush()
            numbers[kind] = i
            wait_until(
                partial(self._has_refused, kind, refused + 1), DEADLINE_S, f"{kind} is refused"
            )
        producer.close()
        return numbers

    def _has_refused(self, kind: str, times: float) -> bool:
        return self._loads(REFUSED[kind]) >= times

    def _loads(self, result: str) -> float:
        return self.job.metric(f'streammaml_init_loads_total{{result="{result}"}}')

    def _taken(self) -> list[int]:
        text = (self.job.folder / "worker.log").read_text(errors="replace")
        return [
            _fields(line)["version"]
            for line in text.splitlines()
            if '"initialization_taken"' in line
        ]


def bad_messages(good: Initialization) -> dict[str, Any]:
    """By kind, from a version number to the messages that would make it the current one."""

    def scaled(version: int) -> list[Message]:
        own = good.spec.shapes()
        tensors = {n: t * np.float32(100) if n in own else t for n, t in good.tensors.items()}
        return initialization_messages(replace(good, tensors=tensors, version=version), {})

    def flipped(version: int) -> list[Message]:
        last = list(good.spec.shapes())[-2:]
        tensors = {n: np.roll(t, 1, -1) if n in last else t for n, t in good.tensors.items()}
        return initialization_messages(replace(good, tensors=tensors, version=version), {})

    def nonfinite(version: int) -> list[Message]:
        payload = encode(replace(good, version=version))
        size = int.from_bytes(payload[:8], "little")
        metadata = json.loads(payload[8 : 8 + size])["__metadata__"]
        tensors = load(payload)
        name = next(iter(good.spec.shapes()))
        tensors[name] = np.full_like(tensors[name], np.nan)
        value = save(tensors, metadata=metadata)
        return [Message("", key, value) for key in (b"v%d" % version, b"current")]

    return {"nonfinite": nonfinite, "scaled": scaled, "flipped": flipped}


def sums(job: Job) -> dict[str, tuple[float, float]]:
    """By model: sum and count of its losses so far."""
    name = "streammaml_prequential_loss"
    return {
        model: (
            job.metric(f'{name}_sum{{model="{model}"}}'),
            job.metric(f'{name}_count{{model="{model}"}}'),
        )
        for model in MODELS
    }


def _means(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    return {
        model: (after[model][0] - before[model][0]) / (after[model][1] - before[model][1])
        for model in MODELS
    }


def _has_played(job: Job, events: int) -> bool:
    return job.metric("streammaml_events_consumed_total") >= events


def _is_ready(job: Job) -> bool:
    try:
        return job.metric('streammaml_worker_state{state="ready"}') == 1
    except OSError:
        return False


def _fields(line: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line)
    return found
