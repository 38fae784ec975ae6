"""What the worker tells Prometheus: one method for each thing that happens.

Rules: nothing is labelled by context, so the number of series does not grow with the contexts;
partitions come and go with the assignment. Names and label sets stand in ``instruments``.
"""

from __future__ import annotations

import platform
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from streammaml.backends.histogram import exemplar_text
from streammaml.backends.instruments import LEVELS, STATES, Instruments
from streammaml.backends.ports import Partition, Rebalance
from streammaml.config import Config
from streammaml.events import Batch, Decisions, DriftLevel, Floats, Reason, Result, Task, Trigger

_RESULT_SLOTS = len(Result)


def build_info() -> dict[str, str]:
    """Versions of what runs here, read without importing it."""
    return {
        "version": _version("streammaml"),
        "revision": _revision(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "river": _version("river"),
    }


def _revision() -> str:
    """The commit, where the image's Dockerfile wrote it down."""
    try:
        return Path(sys.prefix, "REVISION").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def new_registry() -> CollectorRegistry:
    """With what every process says of itself."""
    registry = CollectorRegistry()
    for standard in (ProcessCollector, PlatformCollector, GCCollector):
        standard(registry=registry)
    return registry


CLOCK_SKEW_S = 3600.0


class Metrics:
    """The worker's numbers, in a registry of their own. Times are seconds since 1970."""

    def __init__(self, config: Config, build: Mapping[str, str] | None = None) -> None:
        self.registry = new_registry()
        self._topic = config.topics.events
        self._detector = config.learner.detector.name
        self._classes = config.label.task is Task.CLASSIFICATION
        self._baseline = config.learner.baseline_rate > 0
        self._follows = config.learner.follow
        self._transactional = config.worker.delivery == "exactly_once"
        self._assigned: set[Partition] = set()
        self._ranked: list[tuple[str, str]] = []
        self._newest_s = 0.0
        self._all = Instruments(
            {"topic": (self._topic,), "detector": (self._detector,)},
            build_info() if build is None else build,
        )
        self.registry.register(self._all)

    def observe(self, batch: Batch, decisions: Decisions, now_s: float) -> None:
        """Count what the core decided on a batch: a handful of array operations for all of it."""
        if not batch.contexts:
            return
        self._losses(batch, decisions, now_s)
        self._outcomes(batch, decisions)
        if decisions.levels.any():
            counts = np.bincount(decisions.levels, minlength=len(DriftLevel)).tolist()
            for level, n in zip(LEVELS, counts[1:], strict=True):
                self._all.add("drift_detected_total", self._detector, level, n=n)
        if decisions.triggers.any():
            self._adaptations(batch, decisions, now_s)
        if decisions.nonfinite.any():
            self._all.add(
                "nonfinite_total", "parameter", n=int(np.count_nonzero(decisions.nonfinite))
            )
        if decisions.evicted:
            self.evicted("capacity", decisions.evicted)
        if decisions.expired:
            self.evicted("ttl", decisions.expired)

    def event_times(self, times_s: Floats, now_s: float) -> None:
        """Take in the event times [B] of what was learnt; NaN where an event has none.

        A time far in the future is a producer's mistake and no newest event.
        """
        self._all.histograms["event_age_seconds"].observe_many(np.maximum(now_s - times_s, 0.0))
        known = times_s[times_s <= now_s + CLOCK_SKEW_S]
        newest_s = float(known.max(initial=self._newest_s))
        if newest_s > self._newest_s:
            self._newest_s = newest_s
            self._all.set("last_event_timestamp_seconds", to=newest_s)

    def state(self, name: str) -> None:
        """Say which state holds now. A worker that starts (again) owns no partition, and has
        nothing in memory.
        """
        for state in STATES:
            self._all.set("worker_state", state, to=state == name)
        if name == "starting":
            self._own(set())
            self._all.set("contexts", "memory", to=0)
            self._all.set("state_bytes", "parameters", to=0)
            self._all.set("state_bytes", "buffers", to=0)

    def consumed(self, records: int) -> None:
        self._all.add("events_consumed_total", self._topic, n=records)

    def rejected(self, reason: Reason, n: int = 1, *, dead_lettered: bool = True) -> None:
        self._all.add("events_rejected_total", reason.value, n=n)
        if dead_lettered:
            self._all.add("events_deadlettered_total", reason.value, n=n)

    def unknown_categories(self, values: int) -> None:
        self._all.add("unknown_categories_total", n=values)

    def episodes(self, result: str, n: int) -> None:
        """Count windows: ``emitted``, ``dropped`` or ``oversize``."""
        self._all.add("episodes_total", result, n=n)

    def rebalanced(self, change: Rebalance) -> None:
        """Count each kind of change once; series of partitions that left are removed."""
        kinds = {
            "assigned": change.assigned,
            "revoked": change.revoked,
            "lost": change.lost,
        }
        for kind, partitions in kinds.items():
            self._all.add("rebalances_total", kind, n=bool(partitions))
        self._own((self._assigned | change.assigned) - change.revoked - change.lost)

    def lag(self, records: Mapping[Partition, int]) -> None:
        """Set the lag of assigned partitions; others are ignored, as they have just left."""
        for partition in self._assigned & records.keys():
            self._all.set(
                "consumer_lag_records",
                *(partition.topic, str(partition.index)),
                to=records[partition],
            )

    def committed(self, result: str, now_s: float) -> None:
        """Count a commit of offsets, and its transaction if it is one: ``committed``, ``aborted``
        or ``fenced``.
        """
        ok = result == "committed"
        self._all.add("offset_commits_total", "ok" if ok else "failed")
        if self._transactional:
            self._all.add("transactions_total", result)
        if ok:
            self._all.set("last_commit_timestamp_seconds", to=now_s)

    def replayed(self, events: int) -> None:
        self._all.add("events_replayed_total", n=events)

    def barrier(self, result: str, seconds: float, size: int) -> None:
        """Count a commit that wrote ``size`` bytes of state in ``seconds``."""
        self._all.add("barriers_total", result)
        self._all.histograms["barrier_duration_seconds"].observe_many(np.array([seconds]))
        self._all.histograms["barrier_bytes"].observe_many(np.array([float(size)]))

    def contexts(self, memory: int, disk: int = 0) -> None:
        self._all.set("contexts", "memory", to=memory)
        self._all.set("contexts", "disk", to=disk)

    def misplaced(self, contexts: int) -> None:
        self._all.add("contexts_misplaced_total", n=contexts)

    def rank(self, worst: Callable[[], Sequence[tuple[str, float]]]) -> None:
        """Show the contexts with the highest losses, as ``worst`` gives them at each scrape."""
        ranking = threading.Lock()

        def refresh() -> None:
            with ranking:  # two scrapes at once
                self._rank(worst())

        self._all.refresh = refresh

    def _rank(self, ranked: Sequence[tuple[str, float]]) -> None:
        for labels in self._ranked:
            self._all.remove("context_loss_topk", *labels)
        self._ranked = [
            (str(rank), exemplar_text(context)) for rank, (context, _) in enumerate(ranked, 1)
        ]
        for labels, (_, loss) in zip(self._ranked, ranked, strict=True):
            self._all.set("context_loss_topk", *labels, to=loss)

    def evicted(self, reason: str, n: int) -> None:
        """Count contexts that left memory: ``capacity``, ``ttl`` or ``revoked``."""
        self._all.add("contexts_evicted_total", reason, n=n)

    def state_bytes(self, kind: str, size: int) -> None:
        """Set the size of ``parameters``, ``buffers`` or ``disk``."""
        self._all.set("state_bytes", kind, to=size)

    def init_version(self, version: int) -> None:
        """Set the version served; one that follows nothing would seem to lag behind for good."""
        if self._follows:
            self._all.set("init_version", "worker", to=version)

    def init_loaded(self, result: str) -> None:
        """Count ``loaded``, ``fingerprint``, ``corrupt``, ``nonfinite`` or ``worse``."""
        self._all.add("init_loads_total", result)

    def _own(self, partitions: set[Partition]) -> None:
        for gone in self._assigned - partitions:
            self._all.remove("consumer_lag_records", gone.topic, str(gone.index))
        self._assigned = partitions
        self._all.set("assigned_partitions", to=len(partitions))

    def _losses(self, batch: Batch, decisions: Decisions, now_s: float) -> None:
        loss = self._all.histograms["prequential_loss"]
        loss.observe_many(decisions.loss, "adapted", batch.contexts, now_s)
        loss.observe_many(decisions.loss_init, "init")
        if self._baseline:
            loss.observe_many(decisions.loss_baseline, "baseline")

    def _outcomes(self, batch: Batch, decisions: Decisions) -> None:
        """Compare classes; a class nobody has named yet has no share and cannot be right."""
        total = len(batch.contexts)
        unlabelled = int(np.count_nonzero(np.isnan(batch.y)))
        if self._classes:
            shares = decisions.predictions
            best = shares.argmax(1)
            right = (best == batch.y) & (shares[np.arange(total), best] > 0)
            correct = int(np.count_nonzero(right))
            self._all.add("predictions_total", "correct", n=correct)
            self._all.add("predictions_total", "wrong", n=total - unlabelled - correct)
            self._all.add("predictions_total", "none", n=unlabelled)
        else:
            self._all.add("predictions_total", "none", n=total)
        diverged = total - unlabelled - int(np.count_nonzero(np.isfinite(decisions.loss)))
        if diverged:
            self._all.add("nonfinite_total", "loss", n=diverged)

    def _adaptations(self, batch: Batch, decisions: Decisions, now_s: float) -> None:
        places = np.flatnonzero(decisions.triggers)
        triggers, results = decisions.triggers[places], decisions.results[places]
        pairs = np.bincount(
            triggers * _RESULT_SLOTS + results, minlength=len(Trigger) * _RESULT_SLOTS
        )
        for pair in np.flatnonzero(pairs).tolist():
            trigger, result = divmod(pair, _RESULT_SLOTS)
            self._all.add(
                "adaptations_total",
                *(Trigger(trigger).name.lower(), Result(result).name.lower()),
                n=int(pairs[pair]),
            )
        histograms = self._all.histograms
        contexts = [batch.contexts[i] for i in places.tolist()]
        query = histograms["adaptation_query_loss"]
        query.observe_many(decisions.loss_before[places], "before")
        query.observe_many(decisions.loss_after[places], "after", contexts, now_s)
        histograms["support_examples"].observe_many(decisions.support[places].astype(np.float64))
        durations = decisions.seconds[places]
        histograms["adaptation_duration_seconds"].observe_many(durations, "", contexts, now_s)
        norms = decisions.gradient_norm[places]
        histograms["gradient_norm"].observe_many(norms, "inner")
        broken = int(np.count_nonzero(results == Result.DIVERGED))
        if broken:
            self._all.add("nonfinite_total", "gradient", n=broken)
