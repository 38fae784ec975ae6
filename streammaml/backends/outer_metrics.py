"""What the outer loop tells Prometheus, from a process that is no worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from prometheus_client import write_to_textfile

from streammaml.backends.instruments import OUTER_NAMES, Instruments
from streammaml.backends.metrics import build_info, new_registry

PERIOD = "outer_period_seconds"


class OuterMetrics:
    """The outer loop's numbers, in a registry of their own. Times are seconds since 1970."""

    def __init__(self, period_s: float | None, build: Mapping[str, str] | None = None) -> None:
        """Without a period, as for a run out of cron, no gauge claims one."""
        self.registry = new_registry()
        names = {k: v for k, v in OUTER_NAMES.items() if k != PERIOD or period_s is not None}
        self._all = Instruments({}, build_info() if build is None else build, names)
        if period_s is not None:
            self._all.set(PERIOD, to=period_s)
        self.registry.register(self._all)

    def episodes(self, accepted: int, rejected: int, duplicate: int) -> None:
        """Count what was read."""
        for result, n in (
            ("accepted", accepted),
            ("rejected", rejected),
            ("duplicate", duplicate),
        ):
            self._all.add("outer_episodes_total", result, n=n)

    def reservoir(self, episodes: int, contexts: int) -> None:
        self._all.set("outer_reservoir_episodes", to=episodes)
        self._all.set("outer_reservoir_contexts", to=contexts)

    def serving(self, version: int) -> None:
        """Say which version is the current one."""
        self._all.set("init_version", "outer", to=version)

    def ran(self, result: str, seconds: float, now_s: float) -> None:
        """Count a run: ``published``, ``rejected``, ``skipped`` or ``failed``."""
        self._all.add("outer_runs_total", result)
        self._all.histograms["outer_run_duration_seconds"].observe_many(np.array([seconds]))
        self._all.set("outer_last_run_timestamp_seconds", to=now_s)
        if result != "failed":
            self._all.set("outer_last_success_timestamp_seconds", to=now_s)

    def trained(self, steps: int, nonfinite: int, tasks: int, norms: Sequence[float]) -> None:
        """Count the outer steps of a run, those that were not finite, and its episodes.

        ``norms`` are those of the network's gradients.
        """
        self._all.add("outer_steps_total", n=steps)
        self._all.add("nonfinite_total", "gradient", n=nonfinite)
        self._all.set("outer_tasks", to=tasks)
        self._all.histograms["gradient_norm"].observe_many(np.array(norms), "outer")

    def losses(self, split: str, loss: float) -> None:
        """Set the mean loss of ``train`` or ``validation``."""
        self._all.set("outer_meta_loss", split, to=loss)

    def write(self, path: Path) -> None:
        """For the textfile collector of a node exporter; in one step."""
        write_to_textfile(str(path), self.registry)
