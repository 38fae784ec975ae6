"""The demo: the comparison it ends with, its page, and its end when asked."""

from __future__ import annotations

import json
import math
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from streammaml.demo import CONTEXTS, POST_DRIFT, DemoOptions, messages_of, run_demo
from streammaml.evaluation.streams import hyper
from tests.kafka_broker import wait_until

DEADLINE_S = 120.0
LOSSES = {"overall", "post_drift50"}


def quick(**more: Any) -> DemoOptions:
    """Hardly trained: what matters is that all of it runs."""
    options: dict[str, Any] = {"events": 2_000, "rate": None, "port": None, "outer_steps": 5}
    return DemoOptions(**(options | more))


def test_the_summary_has_the_promised_form_and_finite_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = run_demo(quick(), threading.Event())

    assert set(summary) == {"events", "loss", "drifts", "adaptations", "rejected"}
    assert set(summary["loss"]) == {"adapted", "init", "online"}
    assert all(set(losses) == LOSSES for losses in summary["loss"].values())
    assert all(math.isfinite(x) for losses in summary["loss"].values() for x in losses.values())
    assert (summary["events"], summary["rejected"]) == (2_000, 0)
    assert summary["adaptations"] > 0
    out = capsys.readouterr().out
    for losses in summary["loss"].values():
        assert f"{losses['overall']:.3f} │" in out
        assert f"{losses['post_drift50']:.3f} │" in out
    assert f"{summary['adaptations']:,} adaptations" in out


@pytest.mark.timeout(240)
def test_after_a_drift_the_adapted_model_beats_its_initialization_and_online_descent() -> None:
    summary = run_demo(
        DemoOptions(events=20_000, rate=None, port=None),
        threading.Event(),
    )

    loss = summary["loss"]
    for part in LOSSES:
        assert loss["adapted"][part] < min(loss["init"][part], loss["online"][part])
    assert summary["events"] == 20_000
    assert summary["drifts"] > 0
    assert summary["rejected"] == 0


def test_a_stop_before_the_first_event_leaves_no_losses_and_no_nan() -> None:
    stop = threading.Event()
    stop.set()

    summary = run_demo(quick(), stop)

    assert summary["events"] == 0
    assert summary["loss"]["adapted"] == {"overall": None, "post_drift50": None}
    json.dumps(summary, allow_nan=False)


class Showing:
    """A demo with its page, on a thread."""

    def __init__(self, capsys: pytest.CaptureFixture[str], **options: Any) -> None:
        self.stop = threading.Event()
        self.summary: dict[str, Any] = {}
        self._capsys = capsys
        self._said = ""
        self._options = quick(port=0, **options)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.summary = run_demo(self._options, self.stop)

    def said(self, pattern: str) -> re.Match[str] | None:
        self._said += "".join(self._capsys.readouterr())
        return re.search(pattern, self._said)

    def wait_for(self, pattern: str) -> re.Match[str]:
        def seen() -> bool:
            return bool(self.said(pattern)) or self.stop.wait(0.05)

        wait_until(seen, DEADLINE_S, pattern)
        found = self.said(pattern)
        assert found is not None
        return found

    @contextmanager
    def running(self) -> Iterator[str]:
        """The page's address, while it runs."""
        self._thread.start()
        try:
            yield self.wait_for(r"live page: (http://127\.0\.0\.1:\d+)").group(1)
        finally:
            self.stop.set()
            self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: str = answer.read().decode()
        return body


def test_the_page_shows_the_three_models_while_the_demo_runs_and_a_stop_ends_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    showing = Showing(capsys, rate=200.0)
    with showing.running() as address:
        page = fetch(address)
        seen: dict[str, Any] = {}

        def playing() -> bool:
            seen.update(json.loads(fetch(f"{address}/api/summary")))
            return seen["events"] >= 50 or showing.stop.wait(0.1)

        wait_until(playing, DEADLINE_S, "events on the page")

    assert "<html" in page
    assert set(seen["models"]) == {"init", "adapted", "baseline"}
    assert 0 < seen["events"] <= showing.summary["events"] < 2_000
    with pytest.raises(urllib.error.URLError):
        fetch(address)


def test_the_page_stays_when_all_is_played_until_a_stop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    showing = Showing(capsys, events=1_000)
    with showing.running() as address:
        showing.wait_for("the page stays until Ctrl-C")
        summary = json.loads(fetch(f"{address}/api/summary"))

    assert summary["events"] == showing.summary["events"] == 1_000


def test_a_drift_counts_from_the_first_event_of_the_new_concept() -> None:
    stream = hyper(CONTEXTS, 300, seed=1)

    since = stream.since_drift()

    assert ((since == 0) == stream.drift).all()
    for context in (0, CONTEXTS - 1):
        own = np.flatnonzero(stream.contexts == context)
        first = np.flatnonzero(stream.drift[own])[0]
        assert since[own[:first]].tolist() == [-1] * first
        assert since[own[first : first + POST_DRIFT]].tolist() == list(range(POST_DRIFT))


def test_a_context_without_a_drift_is_never_after_one() -> None:
    stream = hyper(2, 20, seed=0, drifting=False)

    assert (stream.since_drift() == -1).all()


def test_the_demo_sends_real_events() -> None:
    stream = hyper(CONTEXTS, 1, seed=0)

    first, *others = messages_of(stream, "events")

    assert (first.topic, first.key, len(others)) == ("events", b"sensor-00", CONTEXTS - 1)
    event = json.loads(first.value or b"")
    assert (event["id"], event["context"]) == (0, "sensor-00")
    assert event["features"] == {f"x{i}": pytest.approx(x) for i, x in enumerate(stream.x[0])}
    assert event["label"] == stream.y[0]
