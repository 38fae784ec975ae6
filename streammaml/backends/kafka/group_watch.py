"""Whether a group at rest has left a partition without an owner.

A static member that comes back is given what it had, without a rebalance. If it was lost in the
middle of one, or the topic was away for a moment, a partition may have been taken from it and given
to no one, and no one would share it out again (seen).
"""

from __future__ import annotations

import time

import structlog

from streammaml.backends.kafka.topics import TopicAdmin
from streammaml.config import Config
from streammaml.errors import BackendError

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 10.0


class GroupWatch:
    """Asks the group's coordinator now and then; never an error of its own."""

    def __init__(self, config: Config, connect_timeout_s: float) -> None:
        self._config = config
        self._connect_timeout_s = connect_timeout_s
        self._admin: TopicAdmin | None = None
        self._looked_at = time.monotonic()
        self._before: set[int] = set()

    def has_orphans(self, partitions: int) -> bool:
        """Whether a partition was found without an owner at this look and at the one before."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return False
        self._looked_at = now
        before, self._before = self._before, self._orphans(partitions)
        lasting = before & self._before
        if lasting:
            log.warning("partitions_without_owner", partitions=sorted(lasting))
        return bool(lasting)

    def close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            try:
                admin.close()
            except BackendError as error:
                log.info("close_failed", error=str(error))

    def _orphans(self, partitions: int) -> set[int]:
        try:
            if self._admin is None:
                self._admin = TopicAdmin(self._config, connect_timeout_s=self._connect_timeout_s)
            group, topic = self._config.kafka.group, self._config.topics.events
            return self._admin.orphans(group, topic, partitions)
        except BackendError as error:
            log.info("group_not_described", error=str(error))
            self.close()
            return set()
