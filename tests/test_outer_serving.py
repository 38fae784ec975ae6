"""What the outer loop's page and metrics learn of a job, on the memory backend."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streammaml.backends.outer_board import OuterBoard
from streammaml.backends.outer_metrics import OuterMetrics
from streammaml.jobs import Tell
from streammaml.outer import OuterJob
from streammaml.outer_serving import OuterWatch
from tests.outer_rig import PERIOD_S, Rig


def test_the_page_knows_runs_reports_and_the_run_that_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    board = OuterBoard(rig.config.outer.reservoir_total, PERIOD_S)
    watch = OuterWatch(OuterMetrics(PERIOD_S), board)
    seen: list[dict[str, Any]] = []

    @contextmanager
    def bar(steps: int) -> Iterator[Tell]:
        yield lambda done, note: seen.append(board.summary())

    episodes = rig.produce()
    progress = watch.showing(bar)
    job = OuterJob(rig.config, rig.outside, [watch], progress=progress)
    before = board.summary()
    run = job.once(threading.Event())
    after = json.loads(json.dumps(board.summary(), allow_nan=False))

    assert before["state"] == "starting"
    assert {s["state"] for s in seen} == {"training"}
    assert seen[-1]["training"] == {"step": run.steps, "steps": rig.config.outer.steps}
    assert after["state"] == "waiting"
    assert after["episodes"]["accepted"] == episodes
    assert after["reservoir"]["episodes"] == episodes
    assert after["results"][run.result] == 1
    assert after["initialization"] == run.version
    (line,) = after["runs"]
    assert line["validation_loss"] == run.validation_loss
    assert line["incumbent_loss"] == run.incumbent_loss
    assert "norms" not in line
    assert run.result == "published"
    assert after["published"][0]["report"]["nets"]["network"]["passed"]


def test_without_a_page_only_the_metrics_are_told(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.produce()
    watch = OuterWatch(OuterMetrics(None))

    run = OuterJob(rig.config, rig.outside, [watch]).once(threading.Event())

    ran = watch.metrics.registry.get_sample_value(
        "streammaml_outer_runs_total", {"result": run.result}
    )
    assert ran == 1
