"""The worker beside its outer loop, on real Kafka."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.live import problems_of
from tests.integration.live import REFUSED, Live

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

EVENTS = 14_000
CONTEXTS = 40


def write_stream(file: Path) -> None:
    """Contexts with one direction in common and one of their own, which changes once."""
    rng = np.random.default_rng(4)
    own = rng.normal(size=(2, CONTEXTS, 6)) * 0.6
    x = rng.normal(size=(EVENTS, 6)).astype(np.float32)
    contexts = np.arange(EVENTS) % CONTEXTS
    concept = own[(np.arange(EVENTS) > EVENTS // 2).astype(int), contexts] + 1.0
    labels = (x * concept).sum(1) > 0
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["ts", "context", *(f"f_{i}" for i in range(6)), "label"])
        for i in range(EVENTS):
            writer.writerow([1_700_000_000 + i, contexts[i], *x[i].tolist(), int(labels[i])])


def test_workers_take_what_is_published_and_nothing_that_is_bad(
    kafka_servers: str, tmp_path: Path
) -> None:
    write_stream(tmp_path / "stream.csv")
    live = Live(kafka_servers, tmp_path)

    found = live.play(tmp_path / "stream.csv", EVENTS, 500, "5s", steps=60)

    assert problems_of(found) == []
    assert found.results["published"] >= 2
    assert {kind for kind, count in found.refused.items() if count} == set(REFUSED.values())
