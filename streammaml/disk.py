"""The room on the disk of the local stores: whether there is enough to go on."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from streammaml.config import StateConfig

log = structlog.get_logger(__name__)


class DiskWatch:
    """Full below ``state.min_free_mb``, until there is room again."""

    def __init__(self, config: StateConfig) -> None:
        self._config = config
        self.is_full = False

    def look(self, free_bytes: Iterable[int | None]) -> None:
        """Take in the room of each store; None: it has none on a disk."""
        least = min((size for size in free_bytes if size is not None), default=None)
        full = least is not None and least < self._config.min_free_mb * 1e6
        if full and not self.is_full:
            log.error(
                "disk_full",
                directory=self._config.directory,
                free_mb=round((least or 0) / 1e6),
                min_free_mb=self._config.min_free_mb,
                effect="no event is read until there is room",
            )
        elif self.is_full and not full:
            log.info("disk_has_room", directory=self._config.directory)
        self.is_full = full
