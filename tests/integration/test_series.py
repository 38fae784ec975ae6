"""What a scrape of a worker costs does not grow with its contexts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import wire
from tests.integration.rig import Rig

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

CONTEXTS = 10_000


def series(rig: Rig) -> set[str]:
    """Names and labels of all samples that a scrape gives."""
    return set(re.findall(r"^(\w+(?:{.*})?) \S+$", rig.metrics(), re.MULTILINE))


def test_ten_thousand_contexts_leave_the_series_as_they_were(
    kafka_servers: str, tmp_path: Path
) -> None:
    rig = Rig(kafka_servers, tmp_path)
    rig.create_topics()
    worker = rig.run(web__port=rig.port)
    try:
        rig.produce(wire.stream(2000, contexts=10))
        rig.finish(worker)
        worker.until(lambda: "consumer_lag_records{" in rig.metrics(), "its lag is known")
        before = series(rig)
        rig.produce(wire.stream(2 * CONTEXTS, contexts=CONTEXTS))
        rig.finish(worker)
        worker.until(
            lambda: rig.metric('streammaml_contexts{tier="memory"}') == CONTEXTS, "all are there"
        )

        assert rig.metric("streammaml_init_loads_total") == 0  # its start was not received
        assert series(rig) == before
        assert len(before) > 100
        worker.stop()
    finally:
        rig.end_all()
