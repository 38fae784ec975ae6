"""All of the dashboard, for a person on call: from the top, less urgent.

Rule: a panel says what it shows and what is wrong with it. Names stand in ``instruments``.
"""

from __future__ import annotations

from collections.abc import Mapping

from streammaml.backends.dashboard.learning import DRIFT, LOSS, OUTER
from streammaml.backends.dashboard.panel import BLUE, ORANGE, RED, Mark, Panel, Query, Row
from streammaml.backends.dashboard.promql import (
    WINDOW,
    here,
    mean,
    quantile,
    rate,
    raw,
    series,
    total,
)
from streammaml.backends.dashboard.work import CONTEXTS, KAFKA, PROCESS

_DRIFTS = series("drift_detected_total", 'level="drift"')
_PUBLISHED = series("init_version", 'role="outer"')
_INIT, _ADAPTED = (mean("prequential_loss", f'model="{model}"') for model in ("init", "adapted"))
_KNOWN = f"max_over_time({series('build_info')}[$__range])"
_UP = f"{raw('up')} and on (job) {_KNOWN}"
_FIRING = 'count(ALERTS{alertstate="firing",alertname=~"Streammaml.+"}) or vector(0)'

MARKS = [
    Mark(
        "Drift",
        f"sum by (instance, detector) (increase({_DRIFTS}{WINDOW})) > 0",
        "{{detector}} on {{instance}}",
        ORANGE,
    ),
    Mark(
        "Published initialization",
        f"changes({_PUBLISHED}{WINDOW}) > 0",
        "by {{instance}}",
        BLUE,
    ),
    Mark(
        "Restart",
        here(f"changes({raw('process_start_time_seconds')}{WINDOW}) > 0"),
        "of {{instance}}",
        RED,
    ),
]

ALL_RIGHT = Row(
    "Is it all right?",
    [
        Panel(
            "Processes",
            "Up: answers Prometheus, the outer loop included. Ready: workers that read and learn.",
            "none",
            [
                Query(f"sum({_UP})", "up"),
                Query(total("worker_state", 'state="ready"'), "ready"),
            ],
            "stat",
            6,
        ),
        Panel(
            "Events",
            "Records taken from Kafka, in a second. None while some wait: stalled.",
            "eps",
            [Query(rate("events_consumed_total"))],
            "stat",
            6,
        ),
        Panel(
            "Lag",
            "Records that wait in Kafka, over all assigned partitions.",
            "short",
            [Query(total("consumer_lag_records"))],
            "stat",
            6,
            [(10_000, ORANGE), (1_000_000, RED)],
        ),
        Panel(
            "Age of the data",
            "From an event's own time to when it is learnt; 95 of 100 are younger.",
            "s",
            [Query(quantile(0.95, "event_age_seconds"))],
            "stat",
            6,
            [(60, ORANGE), (900, RED)],
        ),
        Panel(
            "Adapted loss",
            "Mean loss of the predictions before their labels are learnt, and one day ago.",
            "short",
            [
                Query(mean("prequential_loss", 'model="adapted"'), "now"),
                Query(mean("prequential_loss", 'model="adapted"', offset="1d"), "one day ago"),
            ],
            "stat",
            6,
        ),
        Panel(
            "Gain by adapting",
            "Share of the initialization's loss that adapting takes away, on predictions before"
            " their labels are learnt. Below zero: adapting does not help.",
            "percentunit",
            [Query(f"1 - ({_ADAPTED}) / ({_INIT})")],
            "stat",
            6,
        ),
        Panel(
            "Outer loop's last success",
            "Time since a run of the outer loop ended without failing.",
            "s",
            [Query(f"time() - max({series('outer_last_success_timestamp_seconds')} > 0)")],
            "stat",
            6,
        ),
        Panel(
            "Firing alerts",
            "Of the rules in docker/prometheus; the README says what to do about each.",
            "none",
            [Query(_FIRING)],
            "stat",
            6,
            [(1, RED)],
        ),
    ],
)

ROWS = [ALL_RIGHT, LOSS, DRIFT, KAFKA, OUTER, CONTEXTS, PROCESS]

UNSHOWN: Mapping[str, str] = {
    "python_info": "streammaml_build_info says it",
    "process_virtual_memory_bytes": "address space, which nothing here is short of",
    "python_gc_objects_collected_total": "the collections are shown",
    "python_gc_objects_uncollectable_total": "zero since Python 3.4",
}
"""Exported, and on no panel, mark, alert or recording rule: why."""
