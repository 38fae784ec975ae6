"""What a running worker knows of its contexts, asked from another thread.

Rule: in the worker's thread only copies and look-ups are made; names are matched and sorted here.
A listing asks twice, for what contexts are sorted by and then for the lines of the first ones, so
a context that has left memory in between is missing in it.
"""

from __future__ import annotations

import time
from typing import Any

from streammaml.learner import Learner
from streammaml.learner.listing import Column, Glances, sort_key, top
from streammaml.query import Query
from streammaml.worker import Worker


def list_contexts(worker: Worker, query: Query, timeout_s: float) -> dict[str, Any]:
    """The first contexts in memory, and how many there are; TimeoutError.

    ``on_disk`` counts what the local stores held at the last barrier, be it in memory or not.
    """
    deadline = time.monotonic() + timeout_s

    def look() -> tuple[dict[int, Column], dict[str, Any]]:
        columns = {p.index: learner.column(query.sort) for p, learner in worker.learners.items()}
        tenures = worker.tenures.items()
        return columns, {
            "in_memory": sum(map(len, worker.learners.values())),
            "on_disk": sum(tenure.stored_contexts for _, tenure in tenures),
            "offsets": {str(p.index): t.next_offset for p, t in tenures if t.learner is not None},
            "restoring": sorted(p.index for p, t in tenures if t.learner is None),
        }

    columns, known = worker.ask(look, timeout_s)
    tops = {index: top(listed, query) for index, listed in columns.items()}

    def glance() -> list[tuple[int, Learner, Glances]]:
        return [
            (partition.index, learner, learner.glances(tops[partition.index].names))
            for partition, learner in worker.learners.items()
            if partition.index in tops
        ]

    lines = [
        line | {"partition": index}
        for index, learner, glances in worker.ask(glance, max(0.0, deadline - time.monotonic()))
        for line in learner.lines(glances)
    ]
    lines.sort(key=lambda line: sort_key(query.sort, line))
    return {
        "source": "worker",
        "sort": query.sort.value,
        "filter": query.pattern,
        "matched": sum(found.matched for found in tops.values()),
        **known,
        "contexts": lines[: query.limit],
    }


def find_context(worker: Worker, name: str, timeout_s: float) -> dict[str, Any] | None:
    """All about one context; None if this worker's partitions do not have it.

    A context that has events in two partitions is two; the one with more events is told, and
    where the other is. TimeoutError, too, while it cannot be said that there is none.
    """

    def look() -> tuple[list[dict[str, Any]], list[int]]:
        found, unknown = [], []
        for partition, tenure in sorted(worker.tenures.items()):
            learner = tenure.learner
            if learner is None or (name not in learner and not tenure.is_verified):
                unknown.append(partition.index)
                continue
            in_memory = name in learner
            state = learner.describe(name)
            if state is not None:
                found.append(
                    {
                        "source": "worker",
                        "tier": "memory" if in_memory else "disk",
                        "partition": partition.index,
                        "offset": tenure.next_offset,
                        "state": state,
                    }
                )
        return found, unknown

    found, unknown = worker.ask(look, timeout_s)
    if not found and unknown:
        raise TimeoutError(
            f"not known yet: partitions {', '.join(map(str, unknown))} are being restored"
        )
    return the_largest(found)


def the_largest(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the same context in several partitions, the one with most events."""
    if not found:
        return None
    largest = max(found, key=lambda one: one["state"]["events"])
    return largest | {"also_in": [one["partition"] for one in found if one is not largest]}
