"""What is learnt: losses, drifts, adaptations, and the outer loop."""

from __future__ import annotations

from streammaml.backends.dashboard.panel import Panel, Query, Row
from streammaml.backends.dashboard.promql import buckets, mean, quantile, rate, series, share, total

_BETWEEN_RUNS = "10m"

LOSS = Row(
    "Loss",
    [
        Panel(
            "Mean loss",
            "Before the label is learnt. The initialization's, not adapted, against the adapted"
            " model's: the gap is what adapting earns. Both rise: the initialization is too old.",
            "short",
            [Query(mean("prequential_loss", by="model"), "{{model}}")],
        ),
        Panel(
            "95th percentile of the loss",
            "The worst twentieth: some contexts suffer while the mean still looks well.",
            "short",
            [Query(quantile(0.95, "prequential_loss", by="model"), "{{model}}")],
        ),
        Panel(
            "Accuracy",
            "Right among those with a label; classification only.",
            "percentunit",
            [
                Query(
                    share("predictions_total", 'outcome="correct"', 'outcome=~"correct|wrong"'),
                    "right",
                )
            ],
        ),
        Panel(
            "Losses of the adapted model",
            "How they are spread; a second band is a group of contexts that drifted.",
            "short",
            [Query(buckets("prequential_loss", 'model="adapted"'), "{{le}}", exemplars=True)],
            "heatmap",
            16,
        ),
        Panel(
            "Predictions",
            "By outcome; none: no label yet, or a regression.",
            "eps",
            [Query(rate("predictions_total", by="outcome"), "{{outcome}}")],
        ),
    ],
)

DRIFT = Row(
    "Drift and adaptation",
    [
        Panel(
            "Drifts",
            "Events at a drift level, in a minute. Many at once: a cause that contexts share.",
            "cpm",
            [
                Query(
                    f"60 * {rate('drift_detected_total', by='detector, level')}",
                    "{{detector}} {{level}}",
                )
            ],
            "bars",
        ),
        Panel(
            "Adaptations by result",
            "Rejected: the candidate was worse on the newest examples, and was undone; only with"
            " learner.held_out_test.",
            "cps",
            [Query(rate("adaptations_total", by="result"), "{{result}}")],
            "bars",
        ),
        Panel(
            "Adaptations by cause",
            "Warm-up of new contexts, a drift, or the refresh on schedule.",
            "cps",
            [Query(rate("adaptations_total", by="trigger"), "{{trigger}}")],
            "bars",
        ),
        Panel(
            "Loss around an adaptation",
            "Mean on the newest examples. Without learner.held_out_test they were fitted, too, and"
            " after is below before even on noise: Mean loss says whether adapting helps.",
            "short",
            [Query(mean("adaptation_query_loss", by="stage"), "{{stage}}")],
        ),
        Panel(
            "Undone adaptations",
            "Share of all that was rejected or diverged.",
            "percentunit",
            [Query(share("adaptations_total", 'result=~"rejected|diverged"'), "undone")],
        ),
        Panel(
            "Numbers that diverged",
            "Losses, gradients or parameters that were not finite, each undone.",
            "cps",
            [Query(rate("nonfinite_total", by="job, where"), "{{job}} {{where}}")],
            "bars",
        ),
        Panel(
            "Time of an adaptation",
            "A point leads to its context.",
            "s",
            [Query(buckets("adaptation_duration_seconds"), "{{le}}", exemplars=True)],
            "heatmap",
            12,
        ),
        Panel(
            "Norm of the inner gradient",
            "Before clipping, first step.",
            "short",
            [
                Query(quantile(0.5, "gradient_norm", 'loop="inner"'), "median"),
                Query(quantile(0.95, "gradient_norm", 'loop="inner"'), "95th percentile"),
            ],
            width=12,
        ),
    ],
)

OUTER = Row(
    "Outer loop",
    [
        Panel(
            "Meta-loss",
            "Mean loss after adaptation in the last run. Validation rises alone: overfitting.",
            "short",
            [Query(f"avg by (split) ({series('outer_meta_loss')})", "{{split}}")],
        ),
        Panel(
            "Runs by result",
            "In the chosen time. Rejected: not better where judged, so not published.",
            "none",
            [
                Query(
                    f"sum by (result) (increase({series('outer_runs_total')}[$__range]))",
                    "{{result}}",
                )
            ],
            "stat",
        ),
        Panel(
            "Version published and served",
            "A worker below what is published has not loaded it, or has refused it. Only of workers"
            " with learner.follow.",
            "none",
            [Query(f"max by (role, instance) ({series('init_version')})", "{{role}} {{instance}}")],
        ),
        Panel(
            "Initializations received",
            "By what the workers did with them; all but loaded are refusals.",
            "cpm",
            [Query(f"60 * {rate('init_loads_total', by='result')}", "{{result}}")],
            "bars",
        ),
        Panel(
            "Time of a run",
            "Against the time from one run to the next.",
            "s",
            [
                Query(mean("outer_run_duration_seconds"), "mean of a run"),
                Query(f"max({series('outer_period_seconds')})", "period"),
                Query(
                    f"time() - max({series('outer_last_run_timestamp_seconds')} > 0)",
                    "since the last run",
                ),
            ],
            interval=_BETWEEN_RUNS,
        ),
        Panel(
            "Outer steps",
            "In a minute.",
            "cpm",
            [Query(f"60 * {rate('outer_steps_total')}", "steps")],
            interval=_BETWEEN_RUNS,
        ),
        Panel(
            "Reservoir",
            "Episodes kept to train on and to judge by, and what the last run trained on.",
            "short",
            [
                Query(total("outer_reservoir_episodes"), "episodes"),
                Query(total("outer_reservoir_contexts"), "contexts"),
                Query(total("outer_tasks"), "trained on"),
            ],
        ),
        Panel(
            "Episodes",
            "Windows of labelled events: sent by workers, and taken in by the outer loop.",
            "cps",
            [
                Query(rate("episodes_total", by="result"), "worker {{result}}"),
                Query(rate("outer_episodes_total", by="result"), "outer {{result}}"),
            ],
            width=16,
        ),
        Panel(
            "Norm of the outer gradient",
            "Before clipping, each step of the last runs.",
            "short",
            [
                Query(quantile(0.5, "gradient_norm", 'loop="outer"'), "median"),
                Query(quantile(0.95, "gradient_norm", 'loop="outer"'), "95th percentile"),
            ],
            interval=_BETWEEN_RUNS,
        ),
    ],
)
