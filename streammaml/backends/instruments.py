"""The table of metric names, and the collector that makes, zeroes and yields all of them.

Rules: base units, ``_total`` on counters; a label set is closed (every value is exported as zero
from the start, or an alert on ``increase()`` misses the first event) or empty, and then follows
the configuration or the assignment. Only where zero would be a claim there is no series before
there is a number. No label names a context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from prometheus_client import Counter, Gauge
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from streammaml.backends.histogram import BatchHistogram
from streammaml.events import DriftLevel, Reason, Result, Trigger

PREFIX = "streammaml_"
LOSS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BYTES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
ADAPTATION_S = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 0.001, 0.0025, 0.01, 0.1, 1.0)
"""A compiled one takes some ten millionths of a second, one of a torch module milliseconds."""
INNER_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
AGE_S = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)
NORM = (0.001, 0.01, 0.1, 1, 10, 100, 1000)
RUN_S = (0.5, 1, 5, 15, 30, 60, 120, 300, 900)

STATES = ("starting", "restoring", "ready", "draining", "failed")
REASONS = tuple(reason.value for reason in Reason)
TRIGGERS = tuple(t.name.lower() for t in Trigger if t is not Trigger.NONE)
RESULTS = tuple(r.name.lower() for r in Result if r is not Result.NONE)
RUN_RESULTS = ("published", "rejected", "skipped", "failed")
LEVELS = tuple(level.name.lower() for level in DriftLevel if level is not DriftLevel.STABLE)


@dataclass(frozen=True, slots=True)
class Name:
    """One metric. An empty label set follows the configuration or the assignment."""

    kind: type[Counter] | type[Gauge] | type[BatchHistogram]
    help: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    bounds: Sequence[float] = ()
    zeroed: bool = True
    """Whether it is exported before it is set."""


NAMES = {
    "worker_state": Name(Gauge, "1 for the state the worker is in.", {"state": STATES}),
    "events_consumed_total": Name(Counter, "Records taken from Kafka.", {"topic": ()}),
    "events_rejected_total": Name(Counter, "Records that are no events.", {"reason": REASONS}),
    "unknown_categories_total": Name(Counter, "Feature values that the schema does not list."),
    "events_deadlettered_total": Name(
        Counter, "Records sent to the dead-letter topic.", {"reason": REASONS}
    ),
    "event_age_seconds": Name(BatchHistogram, "Now minus event time when learnt.", {}, AGE_S),
    "last_event_timestamp_seconds": Name(Gauge, "Newest event time learnt."),
    "consumer_lag_records": Name(
        Gauge, "Records behind the end of an assigned partition.", {"topic": (), "partition": ()}
    ),
    "assigned_partitions": Name(Gauge, "Partitions this worker owns."),
    "rebalances_total": Name(
        Counter, "Changes of the assignment.", {"kind": ("assigned", "revoked", "lost")}
    ),
    "offset_commits_total": Name(Counter, "Commits of offsets.", {"result": ("ok", "failed")}),
    "last_commit_timestamp_seconds": Name(Gauge, "Time of the latest commit."),
    "transactions_total": Name(
        Counter,
        "Transactions by their end; none where worker.delivery is at_least_once.",
        {"result": ("committed", "aborted", "fenced")},
    ),
    "events_replayed_total": Name(Counter, "Events learnt again after a recovery."),
    "barriers_total": Name(
        Counter,
        "Commits that wrote state, by their end.",
        {"result": ("committed", "aborted", "fenced")},
    ),
    "barrier_duration_seconds": Name(
        BatchHistogram, "Time of a commit that wrote state.", {}, INNER_S
    ),
    "barrier_bytes": Name(BatchHistogram, "State written by one commit.", {}, BYTES),
    "contexts": Name(
        Gauge,
        "Contexts with a model; disk: as of the last barrier, those in memory included.",
        {"tier": ("memory", "disk")},
    ),
    "contexts_misplaced_total": Name(Counter, "Contexts with events in a second partition."),
    "context_loss_topk": Name(
        Gauge,
        "The highest running losses, where web.top_contexts asks for them.",
        {"rank": (), "context": ()},
    ),
    "contexts_evicted_total": Name(
        Counter, "Contexts that left memory.", {"reason": ("capacity", "ttl", "revoked")}
    ),
    "state_bytes": Name(Gauge, "Size of the state.", {"kind": ("parameters", "buffers", "disk")}),
    "predictions_total": Name(
        Counter,
        "Predictions; none: no class to compare with.",
        {"outcome": ("correct", "wrong", "none")},
    ),
    "prequential_loss": Name(
        BatchHistogram,
        "Loss of a prediction before its label is learnt.",
        {"model": ("init", "adapted", "baseline")},
        LOSS,
    ),
    "drift_detected_total": Name(
        Counter, "Events at a drift level.", {"detector": (), "level": LEVELS}
    ),
    "adaptations_total": Name(
        Counter, "Adaptations by cause and end.", {"trigger": TRIGGERS, "result": RESULTS}
    ),
    "adaptation_duration_seconds": Name(BatchHistogram, "Time of an adaptation.", {}, ADAPTATION_S),
    "adaptation_query_loss": Name(
        BatchHistogram,
        "Loss on the newest examples around an adaptation;"
        " they are among those that were fitted, unless learner.held_out_test is on.",
        {"stage": ("before", "after")},
        LOSS,
    ),
    "support_examples": Name(BatchHistogram, "Examples of an adaptation.", {}, EXAMPLES),
    "gradient_norm": Name(
        BatchHistogram, "Before clipping, first step.", {"loop": ("inner",)}, NORM
    ),
    "nonfinite_total": Name(
        Counter, "Numbers that diverged.", {"where": ("loss", "gradient", "parameter")}
    ),
    "episodes_total": Name(
        Counter,
        "Windows of labelled events for the outer loop; dropped: more than episodes.per_second.",
        {"result": ("emitted", "dropped", "oversize")},
    ),
    "init_version": Name(
        Gauge,
        "Version of the initialization served, where learner.follow is on.",
        {"role": ("worker",)},
        zeroed=False,
    ),
    "init_loads_total": Name(
        Counter,
        "Initializations received.",
        {"result": ("loaded", "fingerprint", "corrupt", "nonfinite", "worse")},
    ),
}

"""Of the worker."""

OUTER_NAMES = {
    "outer_runs_total": Name(
        Counter, "Runs by their end; rejected: not better where judged.", {"result": RUN_RESULTS}
    ),
    "outer_steps_total": Name(Counter, "Outer steps taken."),
    "outer_run_duration_seconds": Name(BatchHistogram, "Time of a run.", {}, RUN_S),
    "outer_meta_loss": Name(
        Gauge, "Mean loss after adaptation, last run.", {"split": ("train", "validation")}
    ),
    "outer_tasks": Name(Gauge, "Episodes that the last run trained on."),
    "outer_period_seconds": Name(Gauge, "Time from one run to the next."),
    "outer_last_success_timestamp_seconds": Name(
        Gauge, "Time of the latest run that did not fail."
    ),
    "outer_last_run_timestamp_seconds": Name(Gauge, "Time of the latest run."),
    "outer_episodes_total": Name(
        Counter, "Episodes read.", {"result": ("accepted", "rejected", "duplicate")}
    ),
    "outer_reservoir_episodes": Name(Gauge, "Episodes kept to train on and to judge by."),
    "outer_reservoir_contexts": Name(Gauge, "Contexts that they are of."),
    "init_version": Name(
        Gauge, "Version of the current initialization.", {"role": ("outer",)}, zeroed=False
    ),
    "gradient_norm": Name(
        BatchHistogram, "Before clipping, each outer step.", {"loop": ("outer",)}, NORM
    ),
    "nonfinite_total": Name(Counter, "Numbers that diverged.", {"where": ("gradient",)}),
}
"""Of the outer loop, whose process exports nothing of a worker's."""


class Instruments(Collector):
    """All of ``names``, zeroed but where told; yields them without the client's ``_created``."""

    def __init__(
        self,
        open_sets: Mapping[str, Sequence[str]],
        build: Mapping[str, str],
        names: Mapping[str, Name] = NAMES,
    ) -> None:
        self._build = dict(build)
        self.refresh: Callable[[], None] = lambda: None
        """Called at each scrape, before anything is yielded."""
        self._plain: dict[str, Counter | Gauge] = {}
        self._children: dict[tuple[str, ...], Counter | Gauge] = {}
        self.histograms: dict[str, BatchHistogram] = {}
        for name, spec in names.items():
            if issubclass(spec.kind, BatchHistogram):
                label, values = next(iter(spec.labels.items()), ("", ("",)))
                self.histograms[name] = BatchHistogram(
                    PREFIX + name, spec.help, spec.bounds, label, values
                )
                continue
            self._plain[name] = spec.kind(PREFIX + name, spec.help, [*spec.labels], registry=None)
            if not spec.zeroed:
                continue
            for child in product(*(v or open_sets.get(k, ()) for k, v in spec.labels.items())):
                self._child(name, *child)

    def add(self, name: str, *labels: str, n: float = 1) -> None:
        self._child(name, *labels).inc(n)

    def set(self, name: str, *labels: str, to: float) -> None:
        child = self._child(name, *labels)
        assert isinstance(child, Gauge)
        child.set(to)

    def remove(self, name: str, *labels: str) -> None:
        if self._children.pop((name, *labels), None) is not None:
            self._plain[name].remove(*labels)

    def _child(self, name: str, *labels: str) -> Counter | Gauge:
        child = self._children.get((name, *labels))
        if child is None:
            plain = self._plain[name]
            child = plain.labels(*labels) if labels else plain
            self._children[name, *labels] = child
        return child

    def collect(self) -> Iterable[Metric]:
        self.refresh()
        yield InfoMetricFamily(PREFIX + "build", "What runs here.", self._build)
        for plain in self._plain.values():
            for metric in plain.collect():
                metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
                yield metric
        for histogram in self.histograms.values():
            yield from histogram.collect()
