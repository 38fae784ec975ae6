"""Contexts that have events in two partitions: each of the two learns from a part only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from streammaml.backends.ports import Partition
from streammaml.events import Context
from streammaml.learner import Learner

MOST_TOLD = 10_000
"""Names that are remembered, so that each counts once; beyond, none is looked at any more."""

log = structlog.get_logger(__name__)


class MisplacedWatch:
    """Looks where else a context is that a partition has just admitted.

    It sees the partitions of one worker, as far as they are in memory.
    """

    def __init__(self) -> None:
        self._told: set[Context] = set()

    def look(
        self, here: Partition, admitted: Iterable[Context], learners: Mapping[Partition, Learner]
    ) -> int:
        """How many of them were not known to be in another partition, too."""
        if len(self._told) >= MOST_TOLD:
            return 0
        others = {p: learner for p, learner in learners.items() if p != here}
        found = {
            name: partition.index
            for partition, learner in others.items()
            for name in admitted
            if name in learner and name not in self._told
        }
        if found:
            context, there = next(iter(found.items()))
            log.warning(
                "contexts_misplaced",
                count=len(found),
                example=context,
                partitions=[here.index, there],
                cure="give each record the context as its key",
            )
            self._told.update(found)
            if len(self._told) >= MOST_TOLD:
                log.warning("contexts_misplaced_no_more_counted", known=len(self._told))
        return len(found)
