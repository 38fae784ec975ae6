"""Which contexts someone wants to see, and in what order."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

MOST_ROWS = 1000
LONGEST_PATTERN = 1024


class Sort(StrEnum):
    """Numbers go from the greatest on, names from A on; equal ones by name."""

    LOSS = "loss"
    LABELS = "labels"
    APPLIED = "applied"
    LAST_OFFSET = "last-offset"
    NAME = "name"


class Query(NamedTuple):
    sort: Sort = Sort.LOSS
    limit: int = 50
    pattern: str = "*"
    """As in a shell: ``*``, ``?`` and ``[…]``."""

    def check(self) -> None:
        """ValueError, with what is allowed."""
        if not 1 <= self.limit <= MOST_ROWS:
            raise ValueError(f"limit must be from 1 to {MOST_ROWS}, not {self.limit}")
        if len(self.pattern) > LONGEST_PATTERN:
            raise ValueError(f"the filter has more than {LONGEST_PATTERN} characters")
