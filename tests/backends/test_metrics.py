"""The worker's numbers: names, zeros, sums by hand, and no growth with the contexts."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from streammaml.backends.histogram import BatchHistogram
from streammaml.backends.instruments import LOSS, NAMES, PREFIX
from streammaml.backends.metrics import Metrics, build_info
from streammaml.backends.ports import Partition, Rebalance
from streammaml.config import Config
from streammaml.events import Batch, Decisions, DriftLevel, Reason, Result, Trigger
from tests import wire

NAN = math.nan
NOW_S = 1_800_000_000.0


def batch(y: list[float], contexts: list[str] | None = None) -> Batch:
    names = contexts or [f"shop-{i}" for i in range(len(y))]
    return Batch(contexts=names, x=np.zeros((len(y), 2), np.float32), y=np.array(y))


def decisions(size: int, **changed: Any) -> Decisions:
    """Nothing remarkable on ``size`` unlabelled events, save what is given."""
    shares = changed.pop("predictions", [[0.75, 0.25]] * size)
    slots = len(shares[0]) if size else 2
    return wire.decisions(size, slots, predictions=shares if size else 0, **changed)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(PREFIX + name, labels)


def families(metrics: Metrics) -> list[Metric]:
    return [m for m in metrics.registry.collect() if m.name.startswith(PREFIX)]


def series(metrics: Metrics) -> int:
    return sum(len(metric.samples) for metric in families(metrics))


def test_losses_fall_into_their_buckets_and_sum_up() -> None:
    metrics = Metrics(Config())

    metrics.observe(
        batch([0, 0, 0, NAN]),
        decisions(4, loss=[0.25, 0.3, 20.0, NAN], loss_init=[1.0, 1.0, NAN, NAN]),
        NOW_S,
    )

    def bucket(le: str) -> float | None:
        return value(metrics, "prequential_loss_bucket", model="adapted", le=le)

    assert [bucket("0.1"), bucket("0.25"), bucket("0.5"), bucket("10.0")] == [0, 1, 2, 2]
    assert bucket("+Inf") == 3
    assert value(metrics, "prequential_loss_count", model="adapted") == 3
    assert value(metrics, "prequential_loss_sum", model="adapted") == 20.55
    assert value(metrics, "prequential_loss_sum", model="init") == 2.0
    assert value(metrics, "prequential_loss_count", model="baseline") == 0


def test_the_baseline_is_observed_where_it_is_on() -> None:
    metrics = Metrics(Config.build({"learner": {"baseline_rate": 0.1}}))

    metrics.observe(batch([0]), decisions(1, loss_baseline=[0.5]), NOW_S)

    assert value(metrics, "prequential_loss_sum", model="baseline") == 0.5


def test_outcomes_compare_the_largest_share_with_the_label() -> None:
    metrics = Metrics(Config())
    shares = [[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]

    metrics.observe(batch([0, 1, 1, NAN]), decisions(4, predictions=shares), NOW_S)

    assert value(metrics, "predictions_total", outcome="correct") == 2
    assert value(metrics, "predictions_total", outcome="wrong") == 1
    assert value(metrics, "predictions_total", outcome="none") == 1


def test_a_class_without_a_share_was_not_predicted() -> None:
    metrics = Metrics(Config())

    metrics.observe(batch([0]), decisions(1, predictions=[[0.0, 0.0]]), NOW_S)

    assert value(metrics, "predictions_total", outcome="correct") == 0
    assert value(metrics, "predictions_total", outcome="wrong") == 1


def test_values_are_neither_correct_nor_wrong() -> None:
    metrics = Metrics(Config.build({"label": {"task": "regression"}}))

    metrics.observe(batch([3.5, NAN]), decisions(2, predictions=[[3.5], [1.0]]), NOW_S)

    assert value(metrics, "predictions_total", outcome="none") == 2
    assert value(metrics, "predictions_total", outcome="correct") == 0


def test_drifts_and_adaptations_are_counted_by_what_became_of_them() -> None:
    metrics = Metrics(Config())

    metrics.observe(
        batch([0, 0, 0, 0, 0]),
        decisions(
            5,
            levels=[DriftLevel.DRIFT, DriftLevel.WARNING, DriftLevel.WARNING, 0, 0],
            triggers=[Trigger.DRIFT, 0, Trigger.WARMUP, Trigger.WARMUP, Trigger.SCHEDULE],
            results=[Result.ACCEPTED, 0, Result.ACCEPTED, Result.ACCEPTED, Result.DIVERGED],
            support=[4, 0, 8, 16, 32],
            loss_before=[1.0, NAN, 0.5, 0.25, 0.25],
            loss_after=[0.5, NAN, 0.25, 0.25, NAN],
            gradient_norm=[2.0, NAN, 0.5, 0.5, math.inf],
        ),
        NOW_S,
    )

    def drifts(level: str) -> float | None:
        return value(metrics, "drift_detected_total", detector="PageHinkley", level=level)

    def adaptations(trigger: str, result: str) -> float | None:
        return value(metrics, "adaptations_total", trigger=trigger, result=result)

    assert (drifts("drift"), drifts("warning")) == (1, 2)
    assert adaptations("drift", "accepted") == 1
    assert adaptations("warmup", "accepted") == 2
    assert adaptations("schedule", "diverged") == 1
    assert adaptations("drift", "rejected") == 0
    assert value(metrics, "support_examples_sum") == 60
    assert value(metrics, "adaptation_query_loss_sum", stage="before") == 2.0
    assert value(metrics, "adaptation_query_loss_sum", stage="after") == 1.0
    assert value(metrics, "gradient_norm_sum", loop="inner") == 3.0
    assert value(metrics, "nonfinite_total", where="gradient") == 1


def test_what_is_not_finite_is_counted_where_it_was() -> None:
    metrics = Metrics(Config())

    metrics.observe(
        batch([0, 1, NAN]),
        decisions(3, loss=[math.inf, 0.5, NAN], nonfinite=[0, 1, 1], evicted=7),
        NOW_S,
    )

    assert value(metrics, "nonfinite_total", where="loss") == 1
    assert value(metrics, "nonfinite_total", where="parameter") == 2
    assert value(metrics, "prequential_loss_sum", model="adapted") == 0.5
    assert value(metrics, "contexts_evicted_total", reason="capacity") == 7


def test_the_age_of_an_event_is_now_minus_its_time_and_never_below_zero() -> None:
    metrics = Metrics(Config())

    metrics.event_times(np.array([NOW_S - 10, NAN, NOW_S + 5]), NOW_S)
    metrics.event_times(np.array([NOW_S - 100]), NOW_S)

    assert value(metrics, "event_age_seconds_count") == 3
    assert value(metrics, "event_age_seconds_sum") == 110
    assert value(metrics, "event_age_seconds_bucket", le="0.1") == 1
    assert value(metrics, "last_event_timestamp_seconds") == NOW_S + 5


def test_series_of_a_partition_leave_with_it() -> None:
    metrics = Metrics(Config())
    first, second = Partition("events", 0), Partition("events", 1)
    metrics.rebalanced(Rebalance(assigned=frozenset({first, second})))
    metrics.lag({first: 5, second: 7})

    metrics.rebalanced(Rebalance(revoked=frozenset({first})))
    metrics.lag({first: 9, second: 3})

    assert value(metrics, "consumer_lag_records", topic="events", partition="0") is None
    assert value(metrics, "consumer_lag_records", topic="events", partition="1") == 3
    assert value(metrics, "assigned_partitions") == 1
    assert value(metrics, "rebalances_total", kind="assigned") == 1
    assert value(metrics, "rebalances_total", kind="revoked") == 1
    assert value(metrics, "rebalances_total", kind="lost") == 0


def test_a_worker_that_starts_again_owns_nothing() -> None:
    metrics = Metrics(Config())
    metrics.rebalanced(Rebalance(assigned=frozenset({Partition("events", 0)})))
    metrics.lag({Partition("events", 0): 5})
    metrics.contexts(memory=3, disk=4)
    for kind in ("parameters", "buffers", "disk"):
        metrics.state_bytes(kind, 1024)
    metrics.state("ready")

    metrics.state("starting")

    assert value(metrics, "assigned_partitions") == 0
    assert value(metrics, "consumer_lag_records", topic="events", partition="0") is None
    assert value(metrics, "worker_state", state="starting") == 1
    assert value(metrics, "worker_state", state="ready") == 0
    assert [value(metrics, "contexts", tier=tier) for tier in ("memory", "disk")] == [0, 4]
    kept = [value(metrics, "state_bytes", kind=k) for k in ("parameters", "buffers", "disk")]
    assert kept == [0, 0, 1024]


def test_a_commit_without_a_transaction_is_one_of_offsets_only() -> None:
    metrics = Metrics(Config.build({"worker": {"delivery": "at_least_once"}}))

    for result in ("committed", "aborted", "fenced"):
        metrics.committed(result, NOW_S)
        assert value(metrics, "transactions_total", result=result) == 0

    assert value(metrics, "offset_commits_total", result="ok") == 1
    assert value(metrics, "offset_commits_total", result="failed") == 2


def test_a_worker_that_follows_nothing_has_no_version_to_compare() -> None:
    metrics = Metrics(Config.build({"learner": {"follow": False}}))

    metrics.init_version(7)

    assert value(metrics, "init_version", role="worker") is None


def test_the_rest_is_counted_as_told() -> None:
    metrics = Metrics(Config())

    metrics.consumed(12)
    metrics.rejected(Reason.LABEL, 2)
    metrics.rejected(Reason.DECODE, dead_lettered=False)
    metrics.committed("committed", NOW_S)
    metrics.committed("aborted", NOW_S + 1)
    metrics.committed("fenced", NOW_S + 1)
    metrics.contexts(memory=3, disk=4)
    metrics.evicted("ttl", 2)
    metrics.state_bytes("parameters", 1024)
    metrics.init_version(7)
    metrics.init_loaded("loaded")

    assert value(metrics, "events_consumed_total", topic="events") == 12
    assert value(metrics, "events_rejected_total", reason="label") == 2
    assert value(metrics, "events_deadlettered_total", reason="label") == 2
    assert value(metrics, "events_rejected_total", reason="decode") == 1
    assert value(metrics, "events_deadlettered_total", reason="decode") == 0
    assert value(metrics, "offset_commits_total", result="ok") == 1
    assert value(metrics, "offset_commits_total", result="failed") == 2
    assert value(metrics, "last_commit_timestamp_seconds") == NOW_S
    assert value(metrics, "transactions_total", result="committed") == 1
    assert value(metrics, "transactions_total", result="aborted") == 1
    assert value(metrics, "transactions_total", result="fenced") == 1
    assert value(metrics, "contexts", tier="memory") == 3
    assert value(metrics, "contexts", tier="disk") == 4
    assert value(metrics, "contexts_evicted_total", reason="ttl") == 2
    assert value(metrics, "state_bytes", kind="parameters") == 1024
    assert value(metrics, "init_version", role="worker") == 7
    assert value(metrics, "init_loads_total", result="loaded") == 1


def test_an_empty_batch_changes_nothing() -> None:
    metrics = Metrics(Config())
    before = [m.samples for m in families(metrics)]

    metrics.observe(batch([]), decisions(0), NOW_S)
    metrics.event_times(np.array([]), NOW_S)

    assert [m.samples for m in families(metrics)] == before


def test_every_closed_label_set_is_zero_from_the_start() -> None:
    metrics = Metrics(Config())

    for reason in Reason:
        assert value(metrics, "events_rejected_total", reason=reason.value) == 0
    for trigger in ("drift", "warmup", "schedule"):
        for result in ("accepted", "rejected", "diverged"):
            assert value(metrics, "adaptations_total", trigger=trigger, result=result) == 0
    assert value(metrics, "events_consumed_total", topic="events") == 0
    assert value(metrics, "drift_detected_total", detector="PageHinkley", level="drift") == 0
    assert value(metrics, "prequential_loss_count", model="init") == 0


def test_a_version_is_exported_once_it_is_known() -> None:
    metrics = Metrics(Config())

    before = value(metrics, "init_version", role="worker")
    metrics.init_version(0)

    assert (before, value(metrics, "init_version", role="worker")) == (None, 0)


def test_ten_thousand_contexts_leave_the_number_of_series_unchanged() -> None:
    metrics = Metrics(Config())
    before = series(metrics)
    size = 10_000

    metrics.observe(
        batch([0.0] * size),
        decisions(
            size,
            loss=np.linspace(0, 12, size),
            triggers=[Trigger.WARMUP] * size,
            results=[Result.ACCEPTED] * size,
            loss_after=np.linspace(0, 12, size),
        ),
        NOW_S,
    )

    assert series(metrics) == before
    assert before < 300


def test_build_info_names_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_info()["revision"] == "", "no image"
    (tmp_path / "REVISION").write_text("abc123\n")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    metrics = Metrics(Config())

    (info,) = [m for m in families(metrics) if m.name == "streammaml_build"]

    (sample,) = info.samples
    assert sample.name == "streammaml_build_info"
    assert sample.value == 1
    assert set(sample.labels) == {"version", "revision", "python", "torch", "river"}
    assert sample.labels["revision"] == "abc123"
    assert sample.labels["river"].startswith("0.")


def test_the_process_is_reported_too() -> None:
    text = generate_latest(Metrics(Config()).registry).decode()

    assert "process_resident_memory_bytes" in text
    assert "python_info" in text


def test_names_follow_the_conventions_that_promtool_checks() -> None:
    for metric in families(Metrics(Config())):
        assert re.fullmatch(r"streammaml_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.documentation.endswith(".")
        for sample in metric.samples:
            assert not sample.name.endswith("_created")
            assert (metric.type == "counter") == sample.name.endswith("_total")
        units = re.search(r"_(ms|us|minutes|kb|mb|percent|milliseconds|megabytes)\b", metric.name)
        assert units is None
        if metric.type == "gauge":
            assert not re.search(r"_(total|count|sum|bucket|info)$", metric.name)


def test_the_table_holds_all_that_is_exported() -> None:
    exported = {m.name.removeprefix(PREFIX) for m in families(Metrics(Config()))}

    assert exported == {name.removesuffix("_total") for name in NAMES} | {"build"}


def test_no_label_names_a_context_but_where_a_few_are_asked_for() -> None:
    named = {name for name, made in NAMES.items() if {"context", "key", "id"} & set(made.labels)}

    assert named == {"context_loss_topk"}
    assert not [m for m in families(Metrics(Config())) if m.name.endswith("topk") and m.samples]


def test_the_ranks_of_a_scrape_take_the_place_of_those_before() -> None:
    metrics = Metrics(Config())
    worst = [[("a", 3.0), ("b", 2.0)], [("b" * 500, 1.5)]]
    metrics.rank(lambda: worst.pop(0))

    first, second = (
        {(s.labels["rank"], s.labels["context"]): s.value for s in family.samples}
        for family in (
            next(m for m in families(metrics) if m.name.endswith("topk")) for _ in range(2)
        )
    )

    assert first == {("1", "a"): 3.0, ("2", "b"): 2.0}
    ((rank, context),) = second
    assert (rank, second[rank, context]) == ("1", 1.5)
    assert len(context) < 128


EXEMPLAR = re.compile(r'# \{context="((?:[^"\\]|\\.)*)"\} (\S+) (\S+)$', re.MULTILINE)


def exemplars(metrics: Metrics) -> list[tuple[str, ...]]:
    """Context as written, value and time of each exemplar on the OpenMetrics page."""
    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    return EXEMPLAR.findall(encode(metrics.registry).decode())


def test_the_exemplar_is_the_context_of_the_largest_loss() -> None:
    metrics = Metrics(Config())

    metrics.observe(
        batch([0, 0, 0], ["low", "high", "none"]), decisions(3, loss=[0.2, 4.0, NAN]), NOW_S
    )

    assert exemplars(metrics) == [("high", "4.0", str(NOW_S))]


def test_of_many_events_too_the_exemplar_is_that_of_the_largest_loss() -> None:
    metrics = Metrics(Config())
    losses = [NAN, 0.2, 4.0, *[0.3] * 20]

    metrics.observe(batch([0.0] * 23), decisions(23, loss=losses), NOW_S)

    assert exemplars(metrics) == [("shop-2", "4.0", str(NOW_S))]


@pytest.mark.parametrize("size", [1, 100])
def test_a_context_of_any_length_makes_a_readable_exemplar(size: int) -> None:
    metrics = Metrics(Config())
    hostile = 'x"\n\\' + "é" * 1000

    metrics.observe(batch([0.0] * size, [hostile] * size), decisions(size, loss=[1.0] * size), 1.0)

    assert exemplars(metrics) == [('x\\"\\n\\\\' + "é" * 96, "1.0", "1.0")]
    assert len("context" + hostile[:100]) < 128


def test_a_context_that_is_no_unicode_does_not_break_the_page() -> None:
    metrics = Metrics(Config())

    metrics.observe(batch([0.0], ["\ud800"]), decisions(1, loss=[1.0]), NOW_S)

    assert exemplars(metrics) == [("?", "1.0", str(NOW_S))]


@given(
    st.lists(
        st.lists(
            st.floats(-2, 20) | st.sampled_from([*LOSS, 0.0, NAN, math.inf, -math.inf]), max_size=40
        ),
        max_size=4,
    )
)
def test_buckets_equal_those_of_the_client_fed_one_by_one(batches: list[list[float]]) -> None:
    theirs = Histogram("loss", "Loss.", buckets=LOSS, registry=CollectorRegistry())
    ours = BatchHistogram("loss", "Loss.", LOSS)

    for values in batches:
        ours.observe_many(np.array(values, np.float64))
        for one in values:
            if math.isfinite(one):
                theirs.observe(one)

    (mine,) = ours.collect()
    (expected,) = theirs.collect()
    wanted = [s for s in expected.samples if not s.name.endswith(("_created", "_sum"))]
    assert [(s.name, s.labels, s.value) for s in mine.samples if s.name != "loss_sum"] == [
        (s.name, s.labels, s.value) for s in wanted
    ]
    total = sum(v for values in batches for v in values if math.isfinite(v))
    assert next(s.value for s in mine.samples if s.name == "loss_sum") == pytest.approx(total)
