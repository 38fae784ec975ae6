"""Rigs and wire events of the benchmarks on Kafka."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streammaml.backends.codec import encoder
from streammaml.backends.ports import Message
from streammaml.config import spec_of
from streammaml.evaluation.streams import Stream
from streammaml.initialization import draw
from streammaml.learner import warm_up
from tests.integration.rig import Rig

PARTITIONS = 6
SESSION_MS = 10_000


def make_rig(servers: str, folder: Path, features: int, **sections: dict[str, Any]) -> Rig:
    partitions = sections.pop("topics", {}).get("partitions", PARTITIONS)
    rig = Rig(servers, folder, partitions=partitions, session_timeout_ms=SESSION_MS)
    rig.configure_with(
        features=[{"name": f"x{i}"} for i in range(features)],
        label={"classes": [0, 1]},
        worker={"commit_interval_ms": 500},
        learner={"hidden": [64, 64], **sections.pop("learner", {})},
        **sections,
    )
    rig.create_topics()
    warm_up(rig.config, draw(spec_of(rig.config), 0))
    return rig


def messages_of(stream: Stream, features: int) -> list[Message]:
    """Wire events, keyed by their context."""
    encode = encoder("json")
    names = [f"x{i}" for i in range(features)]
    numbers = stream.x[:, :features].astype(float).round(4).tolist()
    messages = []
    for i, (c, x, y) in enumerate(
        zip(stream.contexts.tolist(), numbers, stream.y.tolist(), strict=True)
    ):
        context = f"sensor-{c:03d}"
        event = {
            "id": f"e-{i}",
            "context": context,
            "timestamp": "2026-11-22T10:00:00Z",
            "features": dict(zip(names, x, strict=True)),
            "label": int(y),
        }
        messages.append(Message("events", context.encode(), encode(event)))
    return messages
