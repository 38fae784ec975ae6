"""What is worked on, and with what: Kafka, contexts, processes."""

from __future__ import annotations

from streammaml.backends.dashboard.panel import Panel, Query, Row
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

KAFKA = Row(
    "Kafka",
    [
        Panel(
            "Events in",
            "Records taken, by topic.",
            "eps",
            [Query(rate("events_consumed_total", by="topic"), "{{topic}}")],
        ),
        Panel(
            "Rejected events",
            "By reason, as the README's table of bad input lists them; and dead letters sent.",
            "eps",
            [
                Query(rate("events_rejected_total", by="reason"), "{{reason}}"),
                Query(rate("events_deadlettered_total"), "dead letters"),
            ],
            "bars",
        ),
        Panel(
            "Unknown categories",
            "Feature values that the configuration does not list: the stream has changed.",
            "cps",
            [Query(rate("unknown_categories_total"), "values")],
            "bars",
        ),
        Panel(
            "Lag by partition",
            "One that grows alone: a hot key, or a worker that is stuck.",
            "short",
            [
                Query(
                    total("consumer_lag_records", by="topic, partition"), "{{topic}} {{partition}}"
                )
            ],
        ),
        Panel(
            "Age of the events",
            "From an event's own time to when it is learnt.",
            "s",
            [
                Query(quantile(0.5, "event_age_seconds"), "median"),
                Query(quantile(0.95, "event_age_seconds"), "95th percentile"),
                Query(
                    f"time() - max({series('last_event_timestamp_seconds')} > 0)", "newest event"
                ),
            ],
        ),
        Panel(
            "Assigned partitions",
            "By instance; together as many as the topic has.",
            "none",
            [Query(total("assigned_partitions", by="instance"), "{{instance}}")],
        ),
        Panel(
            "Rebalances",
            "Lost: the group gave the partitions away before the worker let go of them.",
            "cpm",
            [Query(f"60 * {rate('rebalances_total', by='kind')}", "{{kind}}")],
            "bars",
        ),
        Panel(
            "Commits",
            "Offsets, and transactions unless worker.delivery is at_least_once; fenced: another"
            " worker has taken over.",
            "cps",
            [
                Query(rate("offset_commits_total", by="result"), "offsets {{result}}"),
                Query(rate("transactions_total", by="result"), "transaction {{result}}"),
            ],
        ),
        Panel(
            "Time since the last commit",
            "By instance; without events it grows and means nothing.",
            "s",
            [
                Query(
                    f"time() - max by (instance) ({series('last_commit_timestamp_seconds')} > 0)",
                    "{{instance}}",
                )
            ],
        ),
    ],
)

CONTEXTS = Row(
    "Contexts and state",
    [
        Panel(
            "Contexts",
            "With a model. On disk: as of the last barrier, those in memory included.",
            "short",
            [Query(total("contexts", by="tier"), "{{tier}}")],
        ),
        Panel(
            "Contexts that left memory",
            "Capacity: many in a second mean that learner.max_contexts is too small.",
            "cps",
            [Query(rate("contexts_evicted_total", by="reason"), "{{reason}}")],
            "bars",
        ),
        Panel(
            "Misplaced contexts",
            "Seen in a second partition: the producer's keys are not the contexts.",
            "cps",
            [Query(rate("contexts_misplaced_total"), "contexts")],
            "bars",
        ),
        Panel(
            "Examples of an adaptation",
            "Few: contexts are young, or have just drifted.",
            "short",
            [
                Query(quantile(0.5, "support_examples"), "median"),
                Query(quantile(0.95, "support_examples"), "95th percentile"),
            ],
        ),
        Panel(
            "Size of the state",
            "Parameters and buffers in memory; and what is on the disk.",
            "bytes",
            [Query(total("state_bytes", by="kind"), "{{kind}}")],
        ),
        Panel(
            "Replayed events",
            "Learnt again, silently, after a recovery.",
            "eps",
            [Query(rate("events_replayed_total"), "events")],
            "bars",
        ),
        Panel(
            "Barriers",
            "Commits that wrote state, by their end.",
            "cpm",
            [Query(f"60 * {rate('barriers_total', by='result')}", "{{result}}")],
            "bars",
        ),
        Panel(
            "Time of a barrier",
            "No event is learnt meanwhile.",
            "s",
            [
                Query(quantile(0.5, "barrier_duration_seconds"), "median"),
                Query(quantile(0.95, "barrier_duration_seconds"), "95th percentile"),
            ],
        ),
        Panel(
            "Size of a barrier",
            "State written by one, mean.",
            "bytes",
            [Query(mean("barrier_bytes"), "mean")],
        ),
        Panel(
            "Contexts with the worst loss",
            "Where the worker is told to list them; ranks change hands. The rest of them:"
            " /api/contexts?sort=loss, or streammaml contexts.",
            "short",
            [Query(f"max by (instance, rank, context) ({series('context_loss_topk')})")],
            "table",
            24,
        ),
    ],
    collapsed=True,
)

PROCESS = Row(
    "Process",
    [
        Panel(
            "CPU",
            "Cores in use.",
            "short",
            [Query(here(f"rate({raw('process_cpu_seconds_total')}{WINDOW})"), "{{instance}}")],
        ),
        Panel(
            "Memory",
            "Resident.",
            "bytes",
            [Query(here(raw("process_resident_memory_bytes")), "{{instance}}")],
        ),
        Panel(
            "Open files",
            "Share of what the process may open.",
            "percentunit",
            [Query(here(f"{raw('process_open_fds')} / {raw('process_max_fds')}"), "{{instance}}")],
        ),
        Panel(
            "Garbage collections",
            "Of Python, by generation.",
            "cps",
            [
                Query(
                    here(f"rate({raw('python_gc_collections_total')}{WINDOW})"),
                    "{{instance}} {{generation}}",
                )
            ],
        ),
        Panel(
            "Time of a scrape",
            "As Prometheus sees it.",
            "s",
            [Query(here(raw("scrape_duration_seconds")), "{{instance}}")],
        ),
        Panel(
            "Samples of a scrape",
            "Does not grow with the contexts; if it does, a label is not closed.",
            "short",
            [Query(here(raw("scrape_samples_post_metric_relabeling")), "{{instance}}")],
        ),
        Panel(
            "Workers by state",
            "Long in restoring: a large state, or a slow broker.",
            "none",
            [Query(total("worker_state", by="state"), "{{state}}")],
        ),
        Panel(
            "Versions",
            "What runs where.",
            "none",
            [
                Query(
                    "max by (job, instance, version, revision, python, torch, river)"
                    f" ({series('build_info')})"
                )
            ],
            "table",
            16,
        ),
    ],
    collapsed=True,
)
