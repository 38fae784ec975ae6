"""Wire events and configurations for tests."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache, partial
from typing import Any

import numpy as np

from streammaml.backends.memory import (
    MemoryBroker,
    MemorySink,
    MemorySource,
    MemoryStateLog,
    MemoryTail,
)
from streammaml.backends.ports import Clients, Message, OnRebalance
from streammaml.config import Config, spec_of
from streammaml.events import Decisions
from streammaml.initialization import Initialization, draw
from streammaml.learner.state import new_packed
from streammaml.worker import Worker


@cache
def _folders() -> str:
    """Where the workers of this run keep their state; removed at its end."""
    folder = tempfile.mkdtemp(prefix="streammaml-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def config(**sections: dict[str, Any]) -> Config:
    """Three numbers, two classes, quick commits, a small network."""
    return Config.build(
        {
            "features": [{"name": "a"}, {"name": "b"}, {"name": "c"}],
            "label": {"classes": ["no", "yes"]},
            "learner": {"hidden": [8]},
            "topics": {"partitions": 2},
            "kafka": {"instance": "one"},
            "state": {"directory": tempfile.mkdtemp(dir=_folders())},
        },
        sections,
    )


def initialization(settings: Config) -> Initialization:
    return draw(spec_of(settings), seed=0)


def event(
    i: int, context: str = "shop", label: str | float | None = "yes", **changes: Any
) -> bytes:
    fields = {
        "id": f"e-{i}",
        "context": context,
        "timestamp": "2026-11-22T10:00:00Z",
        "features": {"a": 0.1 * i, "b": -1.0, "c": None},
        "label": label,
        **changes,
    }
    return json.dumps(fields).encode()


def stream(count: int, contexts: int = 5, seed: int = 0) -> list[Message]:
    """Events of two classes that can be learned."""
    rng = np.random.default_rng(seed)
    messages = []
    for i in range(count):
        context = f"shop-{i % contexts}"
        a, b, c = rng.normal(size=3).round(3).tolist()
        label = "yes" if a + b > 0 else "no"
        value = event(i, context, label, features={"a": a, "b": b, "c": c})
        messages.append(Message("events", context.encode(), value))
    return messages


def decisions(events: int, slots: int = 2, **rows: Any) -> Decisions:
    """Nothing remarkable on ``events`` unlabelled events, save the rows that are given."""
    made = Decisions(new_packed(events, slots), rows.pop("evicted", 0), rows.pop("expired", 0))
    for name, values in rows.items():
        getattr(made, name)[:] = values
    return made


def drain(worker: Worker) -> None:
    """Restore what is to be restored, play what there is and commit it."""
    worker.open()
    while worker.run_once(timeout_s=0) or worker.is_restoring:
        pass
    worker.commit()


class Connector:
    """Builds the memory clients of one worker."""

    def __init__(self, broker: MemoryBroker, settings: Config) -> None:
        self._broker = broker
        self._config = settings
        self.connections = 0

    def __call__(self, on_rebalance: OnRebalance) -> Clients:
        self.connections += 1
        instance = self._config.kafka.instance
        sink = MemorySink(self._broker, self._config, instance)
        source = MemorySource(self._broker, self._config, instance, on_rebalance)
        state = MemoryStateLog(self._broker, self._config)
        tail = partial(MemoryTail, self._broker, self._config.topics.initializations)
        return Clients(source, sink, state, tail if self._config.learner.follow else None)
