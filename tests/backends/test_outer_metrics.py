"""The outer loop's numbers: names, zeros, and nothing of a worker's."""

from __future__ import annotations

from pathlib import Path

import pytest

from streammaml.backends.instruments import NAMES, OUTER_NAMES, PREFIX
from streammaml.backends.outer_metrics import OuterMetrics

NOW_S = 1_800_000_000.0


def value(metrics: OuterMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(PREFIX + name, labels)


def test_every_series_is_zero_from_the_start_and_the_period_is_known() -> None:
    metrics = OuterMetrics(300.0)

    for result in ("published", "rejected", "skipped", "failed"):
        assert value(metrics, "outer_runs_total", result=result) == 0
    for result in ("accepted", "rejected", "duplicate"):
        assert value(metrics, "outer_episodes_total", result=result) == 0
    assert value(metrics, "outer_steps_total") == 0
    assert value(metrics, "outer_run_duration_seconds_count") == 0
    assert value(metrics, "nonfinite_total", where="gradient") == 0
    assert value(metrics, "outer_period_seconds") == 300


def test_a_version_is_exported_once_it_is_known_or_a_restart_looks_like_a_publication() -> None:
    metrics = OuterMetrics(300.0)

    before = value(metrics, "init_version", role="outer")
    metrics.serving(4)

    assert (before, value(metrics, "init_version", role="outer")) == (None, 4)


def test_a_run_out_of_cron_claims_no_period() -> None:
    assert value(OuterMetrics(None), "outer_period_seconds") is None


def test_a_worker_exports_nothing_of_the_outer_loop_and_the_other_way_round() -> None:
    exported = {m.name for m in OuterMetrics(1.0).registry.collect() if m.name.startswith(PREFIX)}

    assert not [name for name in NAMES if name.startswith("outer_")]
    assert set(NAMES) & set(OUTER_NAMES) == {"gradient_norm", "init_version", "nonfinite_total"}
    assert NAMES["init_version"].labels == {"role": ("worker",)}
    assert OUTER_NAMES["init_version"].labels == {"role": ("outer",)}
    assert not exported & {PREFIX + name for name in ("worker_state", "assigned_partitions")}


@pytest.mark.parametrize(
    ("result", "success_s"), [("published", NOW_S), ("rejected", NOW_S), ("failed", 0.0)]
)
def test_only_a_run_that_failed_is_no_success(result: str, success_s: float) -> None:
    metrics = OuterMetrics(300.0)

    metrics.ran(result, 12.0, NOW_S)

    assert value(metrics, "outer_runs_total", result=result) == 1
    assert value(metrics, "outer_run_duration_seconds_bucket", le="15.0") == 1
    assert value(metrics, "outer_run_duration_seconds_bucket", le="5.0") == 0
    assert value(metrics, "outer_last_run_timestamp_seconds") == NOW_S
    assert value(metrics, "outer_last_success_timestamp_seconds") == success_s


def test_what_a_run_did_and_read_is_told_and_written_to_a_file(tmp_path: Path) -> None:
    metrics = OuterMetrics(None)

    metrics.episodes(accepted=7, rejected=2, duplicate=1)
    metrics.reservoir(episodes=6, contexts=3)
    metrics.serving(4)
    metrics.trained(steps=10, nonfinite=1, tasks=240, norms=[0.5, 4.0])
    metrics.losses("validation", 0.25)
    metrics.write(tmp_path / "outer.prom")

    lines = (tmp_path / "outer.prom").read_text().splitlines()
    assert {
        'streammaml_outer_episodes_total{result="accepted"} 7.0',
        'streammaml_outer_episodes_total{result="duplicate"} 1.0',
        "streammaml_outer_reservoir_episodes 6.0",
        "streammaml_outer_reservoir_contexts 3.0",
        'streammaml_init_version{role="outer"} 4.0',
        "streammaml_outer_steps_total 10.0",
        'streammaml_nonfinite_total{where="gradient"} 1.0',
        "streammaml_outer_tasks 240.0",
        'streammaml_gradient_norm_bucket{le="1.0",loop="outer"} 1.0',
        'streammaml_gradient_norm_sum{loop="outer"} 4.5',
        'streammaml_outer_meta_loss{split="validation"} 0.25',
    } <= set(lines)
